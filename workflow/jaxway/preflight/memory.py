"""The GPU's memory: whether the step of each training fits, and if not, which settings would."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from jaxway_shared import training_rules
from jaxway_shared.benchmark import TRAINED
from jaxway_shared.errors import UserError

from jaxway.config.jobs import Allocation, BenchmarkJob, Config, SubmittedJob, TrainJob
from jaxway.config.site import Site
from jaxway.preflight.data import vocabulary_size
from jaxway.preflight.finding import Finding, Findings, and_more, failure, passed, warning
from jaxway.steps import compiled
from jaxway.steps.formula import ERROR, estimate
from jaxway.steps.step import Step, resolved, step_of, step_of_benchmark

GIB = 2**30
SETTINGS = ("global_batch", "gradient_accumulation_steps", "remat", "fsdp")
REMATS = ("none", "dots", "full")
XLA_SHARE = 0.75  # of a GPU's memory, JAX's default (XLA_PYTHON_CLIENT_MEM_FRACTION)
UNIFIED = "TF_FORCE_UNIFIED_MEMORY"


class Need(NamedTuple):
    """Bytes of a GPU that a step needs. ``known``: by compiling; None, by the formula."""

    memory: float
    known: compiled.Compiled | None = None

    def __str__(self) -> str:
        if not self.known:
            return f"{self.memory / GIB:.1f} GiB by formula"
        return f"{self.memory / GIB:.1f} GiB"


def check_memory(config: Config, site: Site, jobs: Mapping[str, SubmittedJob]) -> Findings:
    """By what has been compiled before, else by the formula: to compile takes a while."""
    folder = compiled.folder_of(site.scratch)

    def need_of(step: Step) -> Need:
        known = compiled.read(step, folder)
        return Need(known.memory, known) if known else estimated(step)

    yield from findings(config, site, jobs, need_of)


def estimated(step: Step) -> Need:
    return Need(estimate(step))


def findings(
    config: Config,
    site: Site,
    jobs: Mapping[str, SubmittedJob],
    need_of: Callable[[Step], Need],
) -> Findings:
    """One for all jobs with the same step. ``need_of`` says what it needs."""
    if config.platform == "cpu":
        return
    labels: dict[tuple[Step, float], list[str]] = {}
    for label, step, environment in steps_of(config, site, jobs):
        share = xla_share(label, {**config.environment, **environment})
        labels.setdefault((step, share), []).append(label)
    for (step, share), sharing in labels.items():
        yield finding(and_more(sharing), step, share, need_of)


def steps_of(
    config: Config, site: Site, jobs: Mapping[str, SubmittedJob]
) -> Iterator[tuple[str, Step, Mapping[str, str]]]:
    """Label, step and environment of each training, and of each preset of a training benchmark.

    In the partitions that the site names: of others the GPU is not known.
    """
    partitions = {None, *site.partitions.values()}
    for label, job in jobs.items():
        where = job.placement
        size = where.nodes, where.devices // where.nodes
        if not site.gpu or where.partition not in partitions:
            continue
        if isinstance(job, TrainJob) and job.data:
            vocabulary = vocabulary_size(job.data.tokenizer)
            yield label, step_of(job.options, vocabulary, site.gpu, *size), job.environment
        elif isinstance(job, Allocation):
            for benchmark in (config.benchmark[name] for name in job.benchmarks):
                for preset in presets_of(benchmark):
                    label = f"benchmark.{benchmark.name} {preset}"
                    step = step_of_benchmark(benchmark.options, preset, site.gpu, *size)
                    yield label, step, benchmark.environment


def presets_of(job: BenchmarkJob) -> list[str]:
    """Those of a training benchmark."""
    if job.program != "train":
        return []
    found: list[str] = job.options["presets"] or [TRAINED["gpu"][0]]
    return found


def xla_share(label: str, environment: Mapping[str, str]) -> float:
    """Share of a GPU's memory that XLA may take in a job. UserError where it cannot be one."""
    names = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
    name = next(filter(environment.get, names), None)
    if name is None:
        return XLA_SHARE
    value = environment[name]
    with contextlib.suppress(ValueError):
        # The host's memory is taken, too, where it is unified.
        if 0 < (share := float(value)) <= (math.inf if UNIFIED in environment else 1):
            return share
    raise UserError("JW003", f"{label}: {name} must be above 0 and at most 1, not {value}")


def finding(who: str, step: Step, share: float, need_of: Callable[[Step], Need]) -> Finding:
    """Whether a step fits. A formula's figure that it may exceed is a warning."""
    needed, limit = need_of(step), share * step.kind.memory
    of = f"the {limit / GIB:.1f} that XLA takes of an {step.gpu}"
    if needed.memory <= limit:
        return passed(f"{who}: {needed} of {of}{speed(needed)}")
    advice = f"{who}: {needed}, more than {of}; {advise(step, limit, need_of)}"
    sure = needed.known or needed.memory > (1 + ERROR) * limit
    return failure("JW517", advice) if sure else warning(advice)


def speed(needed: Need) -> str:
    """The lower limit of the step's time, in words."""
    if not (known := needed.known):
        return ""
    mfu = f", MFU {known.mfu:.0%}" if known.mfu else ""
    tokens = f"{known.tokens_per_second:,.0f} tokens/s{mfu}"
    return f"; at least {1e3 * known.seconds:.1f} ms a step, so at most {tokens}"


def advise(step: Step, limit: float, need_of: Callable[[Step], Need]) -> str:
    """The nearest setting that fits, in words."""
    for other in candidates(step, limit):
        if (needed := need_of(other)).memory <= limit:
            pairs = zip(SETTINGS, settings(step), settings(other), strict=True)
            changes = ", ".join(f"{name}: {new}" for name, old, new in pairs if new != old)
            return f"{changes} fits ({needed})"
    return f"no {', '.join(SETTINGS[:-1])} or {SETTINGS[-1]} fits: use more GPUs"


def candidates(step: Step, limit: float) -> Iterator[Step]:
    """Settings that fit by the formula. By the compiler the nearest may not; if not even the one
    that needs least does, none is worth the time to compile it."""
    fitting = (x for x in nearest_first(step) if x != step and estimate(x) <= limit)
    yield from itertools.islice(fitting, 3)
    yield from sorted(fitting, key=estimate)[:1]


def settings(step: Step) -> tuple[Any, ...]:
    return tuple(getattr(step.shape, name) for name in SETTINGS)


def nearest_first(step: Step) -> Iterator[Step]:
    """Settings that may need less, the nearest first: those that leave the batch as it is, that
    change few options, and that compute little twice."""
    batch, parts, remat, fsdp = now = settings(step)
    shared = step.devices // step.shape.tensor
    choices = itertools.product(
        divisors(batch),
        [n for n in divisors(batch // shared) if n >= parts] if step.accumulates else [parts],
        REMATS[REMATS.index(remat) :],
        [n for n in divisors(shared) if n >= fsdp],
    )

    def distance(choice: tuple[int, int, str, int]) -> tuple[int, ...]:
        changed = sum(a != b for a, b in zip(choice, now, strict=True))
        return -choice[0], changed, REMATS.index(choice[2]), choice[1], choice[3]

    for choice in sorted(choices, key=distance):
        shape = replace(step.shape, **dict(zip(SETTINGS, choice, strict=True)))
        if not training_rules.violations({**resolved({}), **asdict(shape)}, step.devices):
            yield replace(step, shape=shape)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
