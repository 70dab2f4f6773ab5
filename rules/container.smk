rule pull:
    output:
        **made(PULLED),
    log:
        "logs/pull.log",
    localrule: True  # compute nodes have no internet
    params:
        image=CONFIG["image"],
        temporary=temporary(),
        script=script("pull"),
    message:
        "Pull {params.image} to {PULLED[sif]}"
    run:
        shell(
            "{sys.executable} {params.script:q} --image={params.image:q} --sif={PULLED[sif]:q}"
            " {params.temporary} 2>&1 | tee {log:q}"
        )


if CONTAINED and CONFIG["packages"]:

    rule add_packages:
        input:
            sif=ancient(PULLED["sif"]),
            digest=PULLED["digest"],
        output:
            **made(CONTAINER),
        log:
            "logs/add_packages.log",
        localrule: True
        params:
            packages=shlex.join(
                word
                for kind, packages in CONFIG["packages"].items()
                for word in (f"--{kind}", *packages)
            ),
            temporary=temporary(),
            apptainer=workflow.deployment_settings.apptainer_args,
            script=script("add_packages"),
        message:
            "Add packages to the container: {params.packages}"
        run:
            shell(
                "{sys.executable} {params.script:q} --base={input.sif:q} --out={CONTAINER[made]:q}"
                " {params.packages} {params.temporary} {params.apptainer} 2>&1 | tee {log:q}"
            )


rule verify_container:
    input:
        sif=ancient(CONTAINER["sif"]),
        digest=ancient(CONTAINER["digest"]),
    log:
        "logs/verify_container.log",
    localrule: True
    params:
        script=script("verify_container"),
    message:
        "Compare {input.sif} with what was recorded of it"
    run:
        shell(
            "{sys.executable} {params.script:q} --full --sif {input.sif:q} 2>&1 | tee {log:q}"
        )
