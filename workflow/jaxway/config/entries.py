"""Entries of the sections smoke_test, train and benchmark become jobs."""

import functools
import glob
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from jaxway_shared import own_checkpoints, presets, training_rules

from jaxway.config.jobs import (
    BYTE_TOKENIZERS,
    BenchmarkJob,
    DataOptions,
    Placement,
    SmokeTestJob,
    TrainJob,
)
from jaxway.config.options import benchmark_programs, data_options, options_of, program_options
from jaxway.config.schema import (
    ConfigurationError,
    Schema,
    Values,
    check,
    expand,
    load_schema,
    nearest,
    simple_path,
)
from jaxway.config.site import Site
from jaxway.config.sweep import combinations

MIN_SHARE = 2**-12  # of a source: it is rounded to as much (jaxway_job/dataset.py)
SHELLS = ("bash", "dash", "ksh", "sh", "zsh")
SHELL_SYNTAX_RE = re.compile(
    r"\$\{?(?!JAXWAY_)[A-Za-z_]|\$\(|`|^~|^(?:\|\|?|&&?|;|<|\d?>>?|\d?>&\d)$"
)


def definition(name: str) -> Schema:
    """Properties that the configuration's schema defines for several sections or for one."""
    found: Schema = load_schema("config")["$defs"][name]["properties"]
    return found


def smoke_test(entry: Values, site: Site) -> SmokeTestJob:
    options = program_options("smoke_test", "smoke_test")
    properties = {**definition("placement"), **options}
    (name, values), *more = combinations(entry, properties, "smoke_test", "smoke_test")
    if more or name != "smoke_test":
        raise ConfigurationError("JW008", "smoke_test cannot be swept, so no key can be a list")
    where = placement(values, "smoke_test", "smoke_test", site)
    return SmokeTestJob(where, {key: values[key] for key in options}, values["environment"])


def trainings(name: str, entry: Values, site: Site) -> Iterator[TrainJob]:
    """Jobs of an entry of the section ``train``."""
    path = f"train.{name}"
    program = entry.get("program", "train")
    check({"program": program}, {"properties": definition("training")}, path)
    options, data = program_options("train", program), data_options(program)
    properties = {**definition("placement"), **definition("training"), **options, **data}
    shared: dict[DataOptions, DataOptions] = {}  # one for all trainings of a sweep
    for job_name, values in combinations(entry, properties, name, path):
        text = data_of(values, path) if data else None
        text = shared.setdefault(text, text) if text else None
        if text and values["mixture"]:
            check_mixture(values["mixture"], text, f"{path}.mixture")
        if text and values["document_attention"] and text.end_of_text is None:
            raise ConfigurationError("JW029", f"{path}.document_attention: needs end_of_text")
        if values.get("from"):
            values["from"] = expand(values["from"], f"{path}.from")
        job = TrainJob(
            name=job_name,
            placement=shared_placement(values, path, site),
            program=program,
            options={key: values[key] for key in options},
            data=text,
            max_jobs=values["max_jobs"],
            environment=values["environment"],
        )
        if program == "train":
            check_sizes(job, path)
        if program == "command":
            check_command(values["command"], f"{path}.command")
            check_checkpoints(values["checkpoints"], f"{path}.checkpoints")
        yield job


def benchmarks(name: str, entry: Values, site: Site) -> Iterator[BenchmarkJob]:
    """Jobs of an entry of the section ``benchmark``."""
    path = f"benchmark.{name}"
    own = definition("benchmark")
    check(entry.get("program"), own["program"], f"{path}.program")
    program, known = entry.get("program") or name, benchmark_programs()
    if program not in known:
        raise ConfigurationError(
            "JW013",
            f"{path}.program: there is no workflow/scripts/benchmark_{program}.py; "
            + nearest(program, known),
        )
    options = program_options("benchmark", program)
    for job_name, values in combinations(
        entry, {**definition("placement"), **own, **options}, name, path
    ):
        sif = values["sif"]
        yield BenchmarkJob(
            name=job_name,
            placement=placement(values, "benchmark", path, site),
            program=program,
            options={key: values[key] for key in options},
            sif=simple_path(expand(sif, f"{path}.sif"), f"{path}.sif") if sif else None,
            rounds=values["rounds"],
            timeout_minutes=values["timeout_minutes"],
            environment=values["environment"],
        )


def placement(values: Values, section: str, path: str, site: Site) -> Placement:
    """Where a job runs, completed by the site; raises a sentence if the site has no such nodes."""
    gpus = values["gpus_per_node"] or site.gpus_per_node
    processes = values["processes_per_node"]
    if gpus > site.gpus_per_node:
        raise ConfigurationError(
            "JW009",
            f"{path}.gpus_per_node: a node of {site.name} has {site.gpus_per_node}, not {gpus}",
        )
    if gpus % processes:
        raise ConfigurationError(
            "JW009",
            f"{path}.processes_per_node: {processes} processes cannot share {gpus} GPUs equally",
        )
    for key in ("nodes", "processes_per_node"):
        if values[key] > 1 and not site.launcher:
            raise ConfigurationError(
                "JW009",
                f"{path}.{key}: must be 1, since the site {site.name} has no launcher "
                "for several processes",
            )
    return Placement(
        nodes=values["nodes"],
        gpus_per_node=gpus,
        processes_per_node=processes,
        walltime=values["walltime"],
        partition=values["partition"] or site.partitions.get(section),
    )


def shared_placement(values: Values, path: str, site: Site) -> Placement:
    """Where a training runs, and with how many others; raises a sentence if they cannot share."""
    where, count = placement(values, "train", path, site), values["trainings_per_node"]
    if count == 1 or not site.launcher:  # without one, they run one after the other
        return where
    if where.processes > 1:
        problem = "only trainings of one process share a node"
    elif where.gpus_per_node % count and count % where.gpus_per_node:
        problem = f"{count} trainings cannot share {where.gpus_per_node} GPUs equally"
    else:
        return replace(where, trainings_per_node=count)
    raise ConfigurationError("JW009", f"{path}.trainings_per_node: {problem}")


def data_of(values: Values, path: str) -> DataOptions:
    """How a training's data are prepared; raises a sentence if they cannot be read."""
    tokenizer = values["tokenizer"]
    if tokenizer not in BYTE_TOKENIZERS:
        tokenizer = expand(tokenizer, f"{path}.tokenizer")
        check_readable(tokenizer, f"{path}.tokenizer")
    data, end = values["data"], values["end_of_text"]
    named = data if isinstance(data, dict) else {"": data}
    sources = [
        (name, found_entries(entries, f"{path}.data{name and f'.{name}'}"))
        for name, entries in named.items()
    ]
    is_byte = isinstance(end, int)
    if end is not None and is_byte != (tokenizer in BYTE_TOKENIZERS):
        expected = "name a token of the tokenizer" if is_byte else "be a byte, 0 to 255"
        raise ConfigurationError("JW029", f"{path}.end_of_text: must {expected}, not {end!r}")
    if values["token_shards"] and (tokenizer in BYTE_TOKENIZERS or not values["validation"]):
        needed = (
            "validation"
            if tokenizer not in BYTE_TOKENIZERS
            else "the tokenizer.json that made them"
        )
        raise ConfigurationError("JW029", f"{path}.token_shards: needs {needed}")
    return DataOptions(
        sources=tuple(sources),
        tokenizer=tokenizer,
        validation_bytes=values["validation_bytes"],
        validation=found_entries(values["validation"] or [], f"{path}.validation"),
        text_column=values["text_column"],
        end_of_text=end if end is None else str(end),
        token_shards=values["token_shards"],
    )


def check_mixture(mixture: dict[str, float], data: DataOptions, path: str) -> None:
    """Raise a sentence if shares are not those of the sources, or too small to be kept."""
    names = [name for name, _ in data.sources if name]
    if {*mixture} != {*names}:
        known = ", ".join(names) or "none: data is a list, not lists by name"
        raise ConfigurationError("JW029", f"{path}: must name all sources of data ({known})")
    for name, share in mixture.items():
        if share < MIN_SHARE * sum(mixture.values()):
            raise ConfigurationError("JW029", f"{path}.{name}: less than 1 in {1 / MIN_SHARE:.0f}")


def found_entries(entries: list[str], path: str) -> tuple[str, ...]:
    """What files, folders and globs a list names; raises a sentence if one cannot be read."""
    expanded = tuple(expand(entry, path) for entry in entries)
    for entry in expanded:
        if entry != "python":
            check_readable(entry, path)
    return expanded


def check_readable(pattern: str, path: str) -> None:
    """Raise a sentence if a pattern matches no file, or one that this user cannot read."""
    if problem := why_unreadable(pattern):
        raise ConfigurationError("JW011", f"{path}: {problem}")


@functools.cache
def why_unreadable(pattern: str) -> str | None:
    """Why a pattern cannot be read; None, if it can. A sweep asks the same for each of its jobs.

    Of what is below a ``**`` only jaxway.data.find takes a look: where links lead back to their
    folder, glob.glob() does not end.
    """
    above = re.split(r"(?:^|/)\*\*(?:/|$)", pattern)[0] or ("/" if pattern[0] == "/" else ".")
    files = [above] if os.path.lexists(above) else glob.glob(above)
    if not files:
        return f"nothing matches {os.path.abspath(pattern)}"
    closed = (file for file in files if not os.access(file, os.R_OK))
    return next((f"{file} cannot be read by this user" for file in closed), None)


def check_sizes(job: TrainJob, path: str) -> None:
    """Raise a sentence if sizes of a training do not fit together."""
    sizes = presets.resolve(job.options)
    for key, expected in training_rules.violations(sizes, job.placement.devices):
        value = sizes[key]
        standard = options_of("scripts/train.py")[key]["default"]
        default = ", its default" if value == standard else ""
        raise ConfigurationError("JW010", f"{path}.{key}: must be {expected}, not {value}{default}")


def check_origins(jobs: Mapping[str, TrainJob]) -> None:
    """Raise a sentence if a training begins at one that is not there or has another shape, or in
    the end at itself."""
    for name, job in jobs.items():
        before = [name]
        while (run := job.origin) and "/" not in run:
            path = f"train.{before[-1]}.from"
            known = [each for each, other in jobs.items() if other.program == "train"]
            if run not in known:
                raise ConfigurationError(
                    "JW030",
                    f"{path}: no training of program train is named {run}; {nearest(run, known)}; "
                    "or name the folder of a state, as in results/train/<run>/state",
                )
            if run in before:
                raise ConfigurationError("JW030", f"{path}: {run} would begin at itself")
            check_shape(job, jobs[run], path)
            before.append(run)
            job = jobs[run]


def check_shape(job: TrainJob, origin: TrainJob, path: str) -> None:
    """Raise a sentence if the parameters of another training have not the shapes of this one's."""
    own, other = (
        presets.resolve(each.options) | {"tokenizer": each.data and each.data.tokenizer}
        for each in (job, origin)
    )
    differing = [key for key in presets.SHAPE if own[key] != other[key]]
    # What vocabulary a file has is not known here.
    if (own["tokenizer"] in BYTE_TOKENIZERS) != (other["tokenizer"] in BYTE_TOKENIZERS):
        differing.append("tokenizer")
    for key in differing:
        raise ConfigurationError(
            "JW030",
            f"{path}: parameters have other shapes in {origin.name}, where {key} is {other[key]}, "
            f"not {own[key]}; options of {origin.name} are not taken over",
        )


def check_checkpoints(pattern: str | None, path: str) -> None:
    """Raise a sentence if a pattern of a program's own checkpoints cannot tell their steps."""
    if pattern is not None and (problem := own_checkpoints.problem(pattern)):
        raise ConfigurationError("JW012", f"{path}: {problem}")


def check_command(command: str | None, path: str) -> None:
    """Raise a sentence if a command has no words, or needs a shell and names none."""
    try:
        words = shlex.split(command or "")
    except ValueError as error:
        raise ConfigurationError("JW012", f"{path}: {error}: {command}") from None
    if not words:
        raise ConfigurationError("JW012", f"{path}: must say what to run")
    if Path(words[0]).name in SHELLS:
        return
    for word in filter(SHELL_SYNTAX_RE.search, words):
        raise ConfigurationError(
            "JW012",
            f"{path}: no shell reads it, so {word} stays as it is (only $JAXWAY_STATE and its like "
            "are replaced); write what is meant, or use `bash -c '...'`",
        )
