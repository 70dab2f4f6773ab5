rule train:
    input:
        expand("results/train/{name}/summary.json", name=CONFIG.train),


rule prepare_data:
    output:
        record="results/data/{data}.json",
    log:
        "logs/prepare_data/{data}.log",
    wildcard_constraints:
        data="[0-9a-f]{8}",
    localrule: True
    params:
        command=lambda w, output: prepare_data(w.data, output.record),
    message:
        "Prepare data"
    run:
        shell("{params.command} > {log:q} 2>&1")


# Training state is no output: Snakemake deletes outputs before each attempt. It survives in a
# folder that the configuration's hash names, from which the training's next job goes on.
rule train_run:
    input:
        unpack(lambda w: data_of(job_of("train", w))),
        **container_input(),
        smoke_test=rules.smoke_test.output.passed,
        # An edited program does not undo a training.
        script=ancient(lambda w: script(job_of("train", w).program)),
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
        data=lambda w, input: f"--data-record={input.data}" if input.get("data") else "",
        state=lambda w: f"{SITE.scratch}/train/{w.name}-{job_of('train', w).id}",
    message:
        "Train {wildcards.name}"
    shell:
        "{params.launch} {input.script:q} {params.arguments} {params.data} --state={params.state:q}"
        " --out={output.summary:q} > {log:q} 2>&1"
