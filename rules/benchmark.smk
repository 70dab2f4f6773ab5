rule benchmark:
    input:
        expand("results/benchmark/{name}.json", name=CONFIG["benchmark"]),


rule benchmark_run:
    input:
        **container_input(),
        smoke_test=rules.smoke_test.output.passed,
        script=lambda w: script(f"benchmark_{job_of('benchmark', w)['program']}"),
        shared=[script("harness"), script("measure")],
    output:
        result="results/benchmark/{name}.json",
    log:
        "logs/benchmark/{name}.log",
    wildcard_constraints:
        name=names("benchmark"),
    container:
        container_for("benchmark")
    threads: threads_of("benchmark")
    resources:
        **resources_of("benchmark"),
    params:
        launch=launcher("benchmark"),
        arguments=arguments("benchmark"),
    message:
        "Benchmark {wildcards.name}"
    shell:
        "{params.launch} {input.script:q} {params.arguments} --out={output.result:q}"
        " > {log:q} 2>&1"
