rule pull:
    output:
        **outputs(PULLED),
    log:
        "logs/pull.log",
    localrule: not SITE.pull_partition  # most compute nodes have no internet
    container:
        no_container
    resources:
        **LAUNCH.pull_resources(),
    params:
        jaxway=jaxway,
        image=lambda w: recorded_image(Path(PULLED.sif), CONFIG.image),
        shared=SITE.sif,
        arguments=lambda w, output: command_line(LAUNCH.pull()),
    message:
        f"Pull {CONFIG.image}"
    shell:
        "{params.jaxway} {params.arguments} 2>&1 | tee {log:q}"


if CONTAINED and CONFIG.packages:

    rule add_packages:
        input:
            digest=PULLED.digest,
        output:
            **outputs(CONTAINER),
        log:
            "logs/add_packages.log",
        localrule: not SITE.pull_partition
        container:
            no_container
        resources:
            **LAUNCH.pull_resources(),
        params:
            jaxway=jaxway,
            arguments=lambda w, output: command_line(LAUNCH.add_packages()),
        message:
            f"Add to the container: {' '.join(sum(CONFIG.packages.values(), ()))}"
        shell:
            "{params.jaxway} {params.arguments} 2>&1 | tee {log:q}"


rule verify_container:
    input:
        digest=CONTAINER.digest,
    log:
        "logs/verify_container.log",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
        arguments=lambda w: command_line(LAUNCH.verify()),
    message:
        f"Compare {CONTAINER.sif} with what was recorded of it"
    shell:
        "{params.jaxway} {params.arguments} 2>&1 | tee {log:q}"
