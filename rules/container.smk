rule pull:
    output:
        sif=SITE["sif"],
        record=SITE["sif"] + ".json",
    log:
        "logs/pull.log",
    retries: 2
    localrule: True  # compute nodes have no internet
    params:
        image=CONFIG["image"],
        script=script("pull"),
    message:
        "Pull {params.image} to {output.sif}"
    run:
        shell(
            "{sys.executable} {params.script:q} --image {params.image:q} --sif {output.sif:q} > {log:q} 2>&1"
        )
