NODE_CHECK = "results/node_check.json" if CONFIG.nodes_to_check else []
# Slurm's accounting knows what jobs have used; without Slurm nothing is paid.
COST = "results/cost.json" if SITE.launcher else []


rule cost:
    input:
        rules.smoke_test.output.result,
        JOBS.summaries,
        rules.verdict.input.results,
        node_check=NODE_CHECK,
        site=SITE.file,
        script=ROOT / "workflow/jaxway/slurm/accounting.py",
    output:
        "results/cost.json",
    log:
        "logs/cost.log",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
        scratch=SITE.scratch,
    message:
        "What the jobs have used"
    shell:
        "{params.jaxway} cost --site={input.site:q}"
        " --scratch={params.scratch:q} --out={output:q} > {log:q} 2>&1"


rule report:
    input:
        smoke_test=rules.smoke_test.output.result,
        train=JOBS.summaries,
        benchmark=rules.verdict.input.results,
        site=SITE.file,
        recorded=expand("results/benchmark/.{name}.recorded", name=CONFIG.benchmark_allocations),
        node_check=NODE_CHECK,
        cost=COST,
        script=ROOT / "workflow/jaxway/report/page.py",
        templates=sorted((ROOT / "workflow/report").iterdir()),
    output:
        html=report("results/report.html", caption="../workflow/report/report.rst"),
    log:
        "logs/report.log",
    localrule: True
    container:
        no_container
    params:
        jaxway=jaxway,
        history=CONFIG.history,
        node_check=lambda w, input: f"--node-check={input.node_check}" if NODE_CHECK else [],
        cost=lambda w, input: f"--cost={input.cost}" if COST else [],
    message:
        "Report {output.html}"
    shell:  # the shell's own printf: a program takes 2 MB of arguments, as 40,000 trainings have
        "printf '%s\\n' {input.train:q} |"
        " {params.jaxway} report --out={output.html:q} --smoke-test={input.smoke_test:q}"
        " --train=- --benchmark {input.benchmark:q} --site={input.site:q}"
        " --history={params.history:q} {params.node_check:q} {params.cost:q} > {log:q} 2>&1"
