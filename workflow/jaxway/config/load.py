"""The whole configuration, from its file or from Snakemake, becomes one typed value."""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
import yte

from jaxway.config import allocations, entries
from jaxway.config.jobs import BenchmarkJob, Config, SmokeTestJob, TrainJob
from jaxway.config.schema import (
    WORKFLOW,
    ConfigurationError,
    Schema,
    Values,
    check,
    expand,
    load_schema,
    with_defaults,
)
from jaxway.config.site import Site, load_site


def load(settings: Any, site: Site) -> Config:
    """The configuration that these values describe, checked and completed by the site."""
    schema = load_schema("config")
    check(settings, {**schema, "properties": known_sections(schema)}, "")
    values = with_defaults(settings, schema["properties"])
    if re.match(r"\w+://[^/]*@", values["image"]):  # not repeated here, nor in any log
        raise ConfigurationError(
            "JW016",
            "image: a user or password does not belong in the image's name; set "
            "APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD",
        )
    options = (f"--exclude={','.join(values['exclude'])}",) if values["exclude"] else ()
    train = jobs_by_name("train", values["train"], entries.trainings, site, options)
    entries.check_origins(train)
    benchmark = jobs_by_name("benchmark", values["benchmark"], entries.benchmarks, site, options)
    check_nodes = values["node_check"]
    return Config(
        image=expand(values["image"], "image"),
        tmpdir=expand(values["tmpdir"], "tmpdir") if values["tmpdir"] else None,
        packages={
            kind: tuple(expand(name, f"packages.{kind}") for name in names)
            for kind, names in values["packages"].items()
        },
        preflight=values["preflight"],
        account=values["account"] or account_of(site, schema["properties"]["account"]),
        platform=values["platform"] or site.platform,
        environment={**site.environment, **values["environment"]},
        smoke_test=with_options(entries.smoke_test(values["smoke_test"], site), options),
        train=train,
        benchmark=benchmark,
        history=expand(values["history"], "history"),
        benchmark_allocations=allocations.shared_allocations(benchmark, site),
        node_check_allocations=allocations.node_check_allocations(
            check_nodes.get("nodes", []), check_nodes.get("benchmarks", []), benchmark, site
        ),
    )


def account_of(site: Site, schema: Schema) -> str | None:
    """The Slurm account that the environment names; None, where the site needs none."""
    if not site.account_variables:
        return None
    # In a job Slurm's own variables are gone; ours has their values.
    names = [*site.account_variables, "JAXWAY_ACCOUNT"]
    found = next(filter(None, map(os.environ.get, names)), None)
    if not found:
        raise ConfigurationError(
            "JW015",
            "account: no Slurm account; set it in the configuration, or "
            f"`export {names[0]}=<account>`",
        )
    check(found, schema, "account")
    os.environ["JAXWAY_ACCOUNT"] = found
    return found


# Many times faster, where PyYAML was built with libyaml.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


Job = TypeVar("Job", SmokeTestJob, TrainJob, BenchmarkJob)
NamedJob = TypeVar("NamedJob", TrainJob, BenchmarkJob)


def with_options(job: Job, options: tuple[str, ...]) -> Job:
    """A job with these options of sbatch."""
    return replace(job, placement=replace(job.placement, options=options)) if options else job


def jobs_by_name(
    section: str,
    values: Mapping[str, Values | None] | None,
    jobs_of: Callable[[str, Values, Site], Iterable[NamedJob]],
    site: Site,
    options: tuple[str, ...],
) -> dict[str, NamedJob]:
    """Jobs of a section by name, with these options of sbatch."""
    jobs: dict[str, NamedJob] = {}
    for name, entry in (values or {}).items():  # one without entries is none in YAML
        for job in jobs_of(name, entry or {}, site):
            if job.name in jobs:
                raise ConfigurationError(
                    "JW008", f"{section}.{name}: there are two jobs named {job.name}"
                )
            jobs[job.name] = with_options(job, options)
    return jobs


def known_sections(schema: Schema) -> Schema:
    """Top-level properties, with the sections reduced to their shape: their jobs check the rest."""
    shape = {
        "type": ["object", "null"],
        "additionalProperties": {"type": ["object", "null"]},
        "propertyNames": schema["$defs"]["entries"]["propertyNames"],
    }
    sections = {"train": shape, "benchmark": shape, "smoke_test": {"type": "object"}}
    return {**schema["properties"], **sections}


def refuse_repeated_keys(file: Path) -> None:
    """Raise a sentence if a mapping of a YAML file has a key twice: YAML would drop the first."""
    for mapping in mappings(yaml.compose(file.read_text(), LOADER)):
        seen = set()
        for key, _ in mapping.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigurationError("JW005", f"{file}, line {line}: {name} is there twice")
            seen.add(name)


def mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Each mapping of a YAML document."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from mappings(item)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name profile and configuration, as for Snakemake."""
    for name, default in (("profile", "profiles/local"), ("configfile", "config/config.yaml")):
        path = WORKFLOW.parent / default
        parser.add_argument(f"--{name}", type=Path, default=path, help=f"default: {default}")


def read(args: argparse.Namespace) -> tuple[Values, Values, Site]:
    """Profile, configuration as it is written, and site, that these arguments name."""
    try:
        text = (args.profile / "config.yaml").read_text()
        profile: Values = yte.process_yaml(text, require_use_yte=True)  # names the site
        settings: Values = yaml.safe_load(args.configfile.read_text()) or {}
        if "jaxway" in settings:  # of a workflow that has this one as a module
            settings = settings["jaxway"] or {}
    except Exception as error:  # a profile may run any code
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            "JW024", f"{args.profile} or {args.configfile} cannot be used: {reason}"
        ) from None
    return profile, settings, load_site(WORKFLOW.parent)
