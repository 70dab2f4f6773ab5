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
    container:
        no_container
    params:
        jaxway=jaxway,
        arguments=lambda w: command_line(LAUNCH.prepare_data(CONFIG.data[w.data])),
        files=JOBS.data_files,
    message:
        "Prepare data"
    shell:
        "{params.jaxway} {params.arguments} --out={output.record:q} > {log:q} 2>&1"


# What all trainings of some data wait for, as one file: Snakemake plans each input of each training.
# Its content is what makes their results stale.
rule ready:
    input:
        **IN_CONTAINER,
        smoke_test=rules.smoke_test.output.passed,
        data=lambda w: [data.record for data in CONFIG.data.values() if data.id == w.data],
    output:
        "results/data/.{data}.ready",
    log:
        "logs/ready/{data}.log",
    wildcard_constraints:
        data="none|[0-9a-f]{8}",
    localrule: True
    container:
        no_container
    message:
        "Ready to train"
    shell:
        "cat {input:q} > {output:q} 2> {log:q}"


# Metrics are an output while some are gone, so that they are made again: to plan them takes time.
METRICS = (
    {"metrics": "results/train/{name}/metrics.jsonl"}
    if workflow.is_main_process and JOBS.deleted_metrics()
    else {}
)


# Training state is no output: Snakemake deletes outputs before each attempt. It survives in a
# folder that its identity names, from which the training's next job resumes. The executors submit
# that one; two resources tell them of a training (jaxway/slurm/resubmission.py), and the third how
# many may share a node (jaxway/slurm/sharing.py).
rule train_run:
    input:
        ready=JOBS.ready(),
        origin=JOBS.origins(),
    output:
        **METRICS,
        summary="results/train/{name}/summary.json",
    log:
        "logs/train/{name}.log",
    wildcard_constraints:
        name="[^/]+",
    retries: 0  # the executor submits what another job can bring further
    container:
        jax_sif
    threads: JOBS.threads_of(CONFIG.train)
    resources:
        **JOBS.resources_of(CONFIG.train),
        training_state=JOBS.state_link,
        max_jobs=JOBS.max_jobs(),
        trainings_per_node=JOBS.trainings_per_node(),
    params:
        command=JOBS.train_command,
        program=JOBS.programs(),
    message:
        "Train {wildcards.name}"
    shell:
        "{params.command} --out={output.summary:q} > {log:q} 2>&1"
        " && {{ cp {log:q} {resources.training_state:q}/log || true; }}"
