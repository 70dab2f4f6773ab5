rule pull:
    output:
        **made(PULLED),
    log:
        "logs/pull.log",
    localrule: True  # compute nodes have no internet
    params:
        arguments=shlex.join([f"--image={CONFIG['image']}", f"--sif={PULLED['sif']}", *where()]),
        script=script("pull"),
    message:
        "Pull the container {output.digest}"
    run:
        shell("{sys.executable} {params.script:q} {params.arguments} 2>&1 | tee {log:q}")


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
            arguments=shlex.join(
                [f"--base={PULLED['sif']}"]
                + [f"--out={CONTAINER['packages'] or CONTAINER['sif']}", *where()]
                + [x for kind, names in CONFIG["packages"].items() for x in (f"--{kind}", *names)]
            ),
            apptainer=workflow.deployment_settings.apptainer_args,
            script=script("add_packages"),
        message:
            "Add packages to the container"
        run:
            shell(
                "{sys.executable} {params.script:q} {params.arguments} {params.apptainer} 2>&1 | tee {log:q}"
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
