# What each job from this folder has used. Slurm's accounting knows; without Slurm nothing is paid.
if SITE.launcher:

    rule cost:
        input:
            rules.smoke_test.output.result,
            rules.train.input,
            rules.verdict.input.results,
            vetting="results/vetting.json" if VETTED else [],
            site=SITE.file,
            script=ROOT / "workflow/jaxway/slurm/accounting.py",
        output:
            "results/cost.json",
        log:
            "logs/cost.log",
        localrule: True
        params:
            scratch=SITE.scratch,
        message:
            "What the jobs have used"
        run:
            shell(
                "{COMMAND} cost --logs={LOGS:q} --site={input.site:q}"
                " --scratch={params.scratch:q} --out={output:q} > {log:q} 2>&1"
            )


rule report:
    input:
        smoke_test=rules.smoke_test.output.result,
        train=rules.train.input,
        metrics=expand("results/train/{name}/metrics.jsonl", name=CONFIG.train),
        benchmark=rules.verdict.input.results,
        site=SITE.file,
        recorded=expand("results/benchmark/.{name}.recorded", name=PLACES),
        vetting="results/vetting.json" if VETTED else [],
        cost="results/cost.json" if SITE.launcher else [],
        script=ROOT / "workflow/jaxway/report/page.py",
        templates=expand(ROOT / "workflow/report/report.{kind}", kind=["html.j2", "css"]),
    output:
        html=report("results/report.html", caption="../workflow/report/report.rst"),
    log:
        "logs/report.log",
    localrule: True
    params:
        history=CONFIG.history,
        more=lambda w, input: [f"--{x}={input[x]}" for x in ("vetting", "cost") if input[x]],
    message:
        "Report {output.html}"
    run:
        shell(
            "{COMMAND} report --out={output.html:q} --smoke-test={input.smoke_test:q}"
            " --train {input.train:q} --benchmark {input.benchmark:q} --site={input.site:q}"
            " --history={params.history:q} {params.more:q} > {log:q} 2>&1"
        )
