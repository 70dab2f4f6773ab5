"""pull -> smoke_test -> train / benchmark -> report"""

import gc

from snakemake.utils import min_version

min_version("9.27")
gc.set_threshold(100_000)  # a plan is no garbage: to look for some took a tenth of planning


# A --configfile replaces the default one; it is not laid over it.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/container.smk"
include: "rules/smoke_test.smk"
include: "rules/train.smk"
include: "rules/benchmark.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        rules.report.output.html,
        # Named too, so that one that was deleted is made again.
        rules.smoke_test.output.result,
        JOBS.deleted_results,
        rules.benchmark.input,
        rules.node_check.input if CONFIG.nodes_to_check else [],


# The checks come before the first job of any run; this is a run that has no other.
rule preflight:
    log:
        "logs/preflight.log",
    localrule: True
    container:
        no_container
    message:
        "Checked the plan, before it was submitted"
    shell:
        "touch {log:q}"


RUN = Run(LAUNCH, JAXWAY)
check_at_exit_of_dry_run(RUN, workflow, rules)


# A workflow that has this one as a module calls its hooks: docs/usage.md.
onstart:
    if not workflow.touch:
        RUN.start(workflow, rules)


onsuccess:
    RUN.end(success=True)


onerror:
    RUN.end(success=False)
