rule benchmark:
    input:
        expand("results/benchmark/{name}.json", name=PLACES),
        expand("results/benchmark/.{name}.recorded", name=PLACES),
        passed="results/.benchmarks_passed" if PLACES else [],


# One job for all benchmarks of a placement. Their containers are started by what is in the plan,
# since each round is a start of its own.
rule benchmark_run:
    input:
        **container_input(),
        smoke_test=rules.smoke_test.output.passed,
        script=ROOT / "workflow/jaxway/run_benchmarks.py",
        measure=script("jaxway_job/measure"),
        programs=lambda w: programs_of(w.name),
        digests=lambda w: digests_of(w.name),
    output:
        result="results/benchmark/{name}.json",
        plan="results/benchmark/plan/{name}.json",
    log:
        "logs/benchmark/{name}.log",
    wildcard_constraints:
        name=names("allocations"),
    threads: threads_of("allocations")
    resources:
        **resources_of("allocations"),
    params:
        plan=lambda w: plan(w.name),
    message:
        "Benchmarks on {wildcards.name}"
    run:
        Path(output.plan).write_text(json.dumps(params.plan, indent=1) + "\n")
        shell(
            "{COMMAND} run-benchmarks --plan={output.plan:q} --out={output.result:q}"
            " > {log:q} 2>&1"
        )


rule benchmark_record:
    input:
        result=rules.benchmark_run.output.result,
    output:
        touch("results/benchmark/.{name}.recorded"),
    log:
        "logs/record/{name}.log",
    wildcard_constraints:
        name=names("allocations"),
    localrule: True
    params:
        history=CONFIG.history,
    message:
        "Add {wildcards.name} to {params.history}"
    run:
        shell("{COMMAND} record --store={params.history:q} {input.result:q}" " > {log:q} 2>&1")


rule verdict:
    input:
        results=expand(rules.benchmark_run.output.result, name=PLACES),
        site=SITE.file,
        script=ROOT / "workflow/jaxway/analysis/references.py",
    output:
        passed=touch("results/.benchmarks_passed"),
    log:
        "logs/verdict.log",
    localrule: True
    message:
        "Verdict on all benchmarks"
    run:
        shell(
            "{COMMAND} check-references --site={input.site:q} {input.results:q}"
            " 2>&1 | tee {log:q}"
        )


rule vet:
    input:
        expand("results/benchmark/{name}.json", name=VETTED),
        expand("results/benchmark/.{name}.recorded", name=VETTED),
        "results/vetting.json",


rule vet_nodes:
    input:
        results=expand(rules.benchmark_run.output.result, name=VETTED),
        site=SITE.file,
        script=ROOT / "workflow/jaxway/analysis/node_check.py",
    output:
        result="results/vetting.json",
    log:
        "logs/vet.log",
    localrule: True
    params:
        command=lambda w, output: vet_nodes(output.result),
    message:
        "Compare nodes"
    run:
        shell("{params.command} --results {input.results:q} 2>&1 | tee {log:q}")
