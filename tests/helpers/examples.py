"""Sites, jobs and configurations for tests that need one and do not mind which."""

from dataclasses import replace
from typing import Any

from jaxway.config import jobs
from jaxway.config.load import load
from jaxway.config.options import options_of
from jaxway.config.site import Site, parse

SITE = {
    **{"name": "here", "sif": "jax.sif", "container": True, "launcher": "srun"},
    **{"scratch": "scratch", "platform": None, "gpus_per_node": 4},
}


def make_site(**values: Any) -> Site:
    """A site with a launcher and 4 GPUs a node, but for these keys of site.yaml."""
    return parse(SITE | values, "site.yaml")


def make_config(site: Site | None = None, **settings: Any) -> jobs.Config:
    """The configuration with these keys of config.yaml."""
    return load(settings, site or make_site())


def make_placement(**values: Any) -> jobs.Placement:
    """All 4 GPUs of one node for half an hour, but for these values."""
    return replace(jobs.Placement(1, 4, 1, 30, "gpu"), **values)


def make_job(**values: Any) -> jobs.SmokeTestJob:
    """A job on make_placement()."""
    return jobs.SmokeTestJob(make_placement(**values), {})


def make_training(
    data: tuple[str, ...] = ("python",),
    tokenizer: str = "bytes",
    max_jobs: int = 10,
    placement: jobs.Placement | None = None,
    **options: Any,
) -> jobs.TrainJob:
    """A short training of the smallest model, but for these values."""
    defaults = {name: x["default"] for name, x in options_of("scripts/train.py").items()}
    short = {"steps": 10, "warmup_steps": 2, "global_batch": 4}
    return jobs.TrainJob(
        name="a",
        placement=placement or make_placement(),
        program="train",
        options={**defaults, **short, **options},
        data=jobs.DataOptions((("", data),), tokenizer, 1000),
        max_jobs=max_jobs,
    )
