"""`jaxway preflight`: all checks of all jobs in the configuration."""

import argparse

from jaxway import launch
from jaxway.config import containers
from jaxway.config.load import add_arguments, load, read
from jaxway.config.schema import WORKFLOW
from jaxway.preflight import plan


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    profile, settings, site = read(args)
    config = load(settings, site)
    pulled = container = None
    if site.container or "apptainer" in str(profile.get("software-deployment-method")):
        pulled = containers.container({}, site)
        container = containers.container(config.packages, site)
    launch.prepare_environment(WORKFLOW.parent, site, container)
    complete_plan = plan.Plan(config, site, plan.all_jobs(config), pulled, container)
    findings = plan.run_preflight(complete_plan)
    print("\n".join(plan.summary(complete_plan, findings, complete=True)))
    plan.require_success(findings)
