rule pull:
    output:
        **made(PULLED),
    log:
        "logs/pull.log",
    localrule: True  # compute nodes have no internet
    params:
        image=pulled_image(),
    message:
        f"Pull {CONFIG.image} to {PULLED.sif}"
    run:
        shell("{PULL} 2>&1 | tee {log:q}")


if CONTAINED and CONFIG.packages:

    rule add_packages:
        input:
            digest=PULLED.digest,
        output:
            **made(CONTAINER),
        log:
            "logs/add_packages.log",
        localrule: True
        message:
            f"Add to the container: {' '.join(itertools.chain(*CONFIG.packages.values()))}"
        run:
            shell("{ADD_PACKAGES} 2>&1 | tee {log:q}")


rule verify_container:
    input:
        digest=CONTAINER.digest,
    log:
        "logs/verify_container.log",
    localrule: True
    message:
        f"Compare {CONTAINER.sif} with what was recorded of it"
    run:
        shell(
            "{COMMAND} verify --full --sif={CONTAINER.sif:q}"
            " --image={CONFIG.image:q} 2>&1 | tee {log:q}"
        )
