rule report:
    input:
        smoke_test=rules.smoke_test.output.result,
        train=rules.train.input,
        metrics=expand("results/train/{name}/metrics.jsonl", name=CONFIG["train"]),
        benchmark=rules.verdict.input.results,
        site=SITE["file"],
        recorded=expand("results/benchmark/.{name}.recorded", name=PLACES),
        vetting="results/vetting.json" if VETTED else [],
        script=script("report"),
        templates=expand(ROOT / "workflow/report/report.{kind}", kind=["html.j2", "css"]),
    output:
        html=report("results/report.html", caption="../workflow/report/report.rst"),
    log:
        "logs/report.log",
    localrule: True
    params:
        history=CONFIG["history"],
        vetting=lambda w, input: [f"--vetting={input.vetting}"] if input.vetting else [],
    message:
        "Report {output.html}"
    run:
        shell(
            "{sys.executable} {input.script:q} --out={output.html:q} --smoke-test={input.smoke_test:q}"
            " --train {input.train:q} --benchmark {input.benchmark:q} --site={input.site:q}"
            " --history={params.history:q} {params.vetting:q} > {log:q} 2>&1"
        )
