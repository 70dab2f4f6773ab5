rule smoke_test:
    input:
        **container_input(),
        script=ancient(script("smoke_test")),
    output:
        result="results/smoke_test.json",
        # Always the same content: a smoke test that is run by itself makes nothing else stale.
        passed=touch("results/.smoke_test_passed"),
    log:
        "logs/smoke_test.log",
    container:
        container_for("smoke_test")
    threads: threads_of("smoke_test")
    resources:
        **resources_of("smoke_test"),
    params:
        launch=launcher("smoke_test"),
        arguments=arguments("smoke_test"),
        scratch=SITE.scratch,
    message:
        "Smoke test"
    shell:
        "{params.launch} {input.script:q} {params.arguments} --scratch={params.scratch:q}"
        " --out={output.result:q} > {log:q} 2>&1"
