def made(container):
    """What a rule that makes a container puts out: always the digest that reruns depend on.

    Snakemake deletes outputs before each attempt and after a failure, so the container is one only
    while it is missing: an old one stays until the new one takes its place.
    """
    folder = container["packages"]
    if Path(folder or container["sif"]).exists():
        return {"digest": container["digest"]}
    missing = directory(folder) if folder else container["sif"]
    return {"digest": container["digest"], "missing": missing}


def where():
    """Where a rule that makes a container works, as its argument."""
    return [f"--temporary={CONFIG['temporary']}"] if CONFIG["temporary"] else []


PULLED = configuration.container(CONFIG | {"packages": {}}, SITE)


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
    localrule: True
    params:
        script=script("verify_container"),
    message:
        "Compare {input.sif} with what was recorded of it"
    run:
        shell("{sys.executable} {params.script:q} --full --sif {input.sif:q}")
