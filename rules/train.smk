rule train:
    input:
        expand("results/train/{name}/summary.json", name=CONFIG["train"]),


# Training state is no output: Snakemake deletes outputs before each attempt. It survives in a
# folder that the configuration's hash names, so a job that ran out of time goes on from there.
rule train_run:
    input:
        **container_input(),
        smoke_test=rules.smoke_test.output.passed,
        script=ancient(script("train")),  # an edited program does not undo a training
    output:
        summary="results/train/{name}/summary.json",
        metrics="results/train/{name}/metrics.jsonl",
    log:
        "logs/train/{name}.log",
    wildcard_constraints:
        name=names("train"),
    container:
        container_for("train")
    threads: threads_of("train")
    resources:
        **resources_of("train"),
    params:
        launch=launcher("train"),
        arguments=arguments("train"),
        state=lambda w: f"{SITE['scratch']}/train/{w.name}-{job_of('train', w)['id']}",
    message:
        "Train {wildcards.name}"
    shell:
        "{params.launch} {input.script:q} {params.arguments} --state={params.state:q}"
        " --out={output.summary:q} > {log:q} 2>&1"
