rule benchmark:
    input:
        expand("results/benchmark/{name}.json", name=CONFIG.benchmark_allocations),
        expand("results/benchmark/.{name}.recorded", name=CONFIG.benchmark_allocations),
        passed="results/.benchmarks_passed" if CONFIG.benchmark else [],


# One job for all benchmarks of a placement. Their containers are started by what is in the plan,
# since each round is a start of its own.
rule benchmark_run:
    input:
        **IN_CONTAINER,
        smoke_test=rules.smoke_test.output.passed,
        script=ROOT / "workflow/jaxway/run_benchmarks.py",
        measure=LAUNCH.script("jaxway_job/measure"),
        programs=JOBS.benchmark_programs,
        digests=JOBS.benchmark_digests,
    output:
        result="results/benchmark/{name}.json",
        plan="results/benchmark/plan/{name}.json",
    log:
        "logs/benchmark/{name}.log",
    wildcard_constraints:
        name="[^/]+",
    container:
        jax_sif
    threads: JOBS.threads_of(CONFIG.allocations)
    resources:
        **JOBS.resources_of(CONFIG.allocations),
    params:
        plan=JOBS.plan,
    message:
        "Benchmarks on {wildcards.name}"
    script:
        "start_benchmarks.py"


rule benchmark_record:
    input:
        result=rules.benchmark_run.output.result,
    output:
        touch("results/benchmark/.{name}.recorded"),
    log:
        "logs/record/{name}.log",
    wildcard_constraints:
        name="[^/]+",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
        history=CONFIG.history,
    message:
        "Add {wildcards.name} to {params.history}"
    shell:
        "{params.jaxway} record --store={params.history:q} {input.result:q} > {log:q} 2>&1"


rule verdict:
    input:
        results=expand(rules.benchmark_run.output.result, name=CONFIG.benchmark_allocations),
        site=SITE.file,
        script=ROOT / "workflow/jaxway/analysis/references.py",
    output:
        passed=touch("results/.benchmarks_passed"),
    log:
        "logs/verdict.log",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
    message:
        "Verdict on all benchmarks"
    shell:
        "{params.jaxway} check-references --site={input.site:q} {input.results:q} 2>&1"
        " | tee {log:q}"


rule node_check:
    input:
        expand("results/benchmark/{name}.json", name=CONFIG.node_check_allocations),
        expand("results/benchmark/.{name}.recorded", name=CONFIG.node_check_allocations),
        "results/node_check.json",


rule compare_nodes:
    input:
        results=expand(rules.benchmark_run.output.result, name=CONFIG.node_check_allocations),
        site=SITE.file,
        script=ROOT / "workflow/jaxway/analysis/node_check.py",
    output:
        result="results/node_check.json",
    log:
        "logs/node_check.log",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
        arguments=lambda w: command_line(LAUNCH.check_nodes()),
    message:
        "Compare nodes"
    shell:
        "{params.jaxway} {params.arguments} --out={output.result:q} --results {input.results:q}"
        " 2>&1 | tee {log:q}"
