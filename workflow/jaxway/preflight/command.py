"""`jaxway preflight`: all checks of all jobs in the configuration."""

import argparse

from jaxway.config.load import add_arguments, load, read
from jaxway.config.schema import WORKFLOW
from jaxway.launch import Launch, prepare_environment
from jaxway.preflight import plan


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    profile, settings, site = read(args)
    config = load(settings, site)
    contained = site.container or "apptainer" in str(profile.get("software-deployment-method"))
    launch = Launch(WORKFLOW.parent, config, site, contained, profile.get("apptainer-args", ""))
    pulled, container = (launch.pulled, launch.container) if contained else (None, None)
    prepare_environment(WORKFLOW.parent, contained)
    start = launch.on_this_node() if contained else ()
    jobs = plan.all_jobs(config)
    whole = plan.Plan(config, site, jobs, pulled, container, start=start)
    findings = plan.run_preflight(whole)
    print("\n".join(plan.summary(whole, findings, complete=True)))
    plan.require_success(findings)
