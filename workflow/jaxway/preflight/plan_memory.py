"""`jaxway plan-memory`: whether each training fits a GPU, and how fast it can be at most."""

import argparse

from jaxway_shared.errors import UserError

from jaxway.config.load import add_arguments, load, read
from jaxway.preflight import memory, plan
from jaxway.preflight.finding import FAIL, passed
from jaxway.steps import compiled
from jaxway.steps.step import Step


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Compile each step where JAX's plugin for GPUs is here. UserError where one does not fit."""
    _, settings, site = read(args)
    config = load(settings, site)
    if not site.gpu:
        raise UserError("JW519", f"{site.file} names no `gpu` to plan for")
    jobs, folder = plan.all_jobs(config), compiled.folder_of(site.scratch)

    def compile_one(step: Step) -> memory.Need:
        known = compiled.compile_missing([step], folder)[step]
        return memory.Need(known.memory, known)

    need_of = memory.estimated
    if compiled.can_compile():
        need_of = compile_one
        # All in one process: the first step of one costs seconds more.
        compiled.compile_missing(
            (step for _, step, _ in memory.steps_of(config, site, jobs)), folder
        )
    findings = [*memory.findings(config, site, jobs, need_of)]
    if not findings:
        findings = [passed("no training and no training benchmark on GPUs that the site names")]
    print(*(finding._replace(subject="memory") for finding in findings), sep="\n")
    if any(finding.status is FAIL for finding in findings):
        raise UserError("JW517", "not all fit, see FAIL above")
