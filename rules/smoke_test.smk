rule smoke_test:
    input:
        **IN_CONTAINER,
        script=ancient(LAUNCH.script("smoke_test")),
    output:
        result="results/smoke_test.json",
        # Always the same content: a smoke test that is run by itself makes nothing else stale.
        passed=touch("results/.smoke_test_passed"),
    log:
        "logs/smoke_test.log",
    container:
        jax_sif
    threads: LAUNCH.threads(CONFIG.smoke_test.placement)
    resources:
        **LAUNCH.resources(CONFIG.smoke_test.placement),
    params:
        command=lambda w: command_line(LAUNCH.smoke_test()),
    message:
        "Smoke test"
    shell:
        "{params.command} --out={output.result:q} > {log:q} 2>&1"
