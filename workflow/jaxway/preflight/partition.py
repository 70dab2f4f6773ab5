"""A partition: whether it takes the jobs, by its state and its limits in Slurm's own words."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from jaxway.config.jobs import Placement, SubmittedJob
from jaxway.preflight import qos
from jaxway.preflight.finding import Findings, failure, passed, warning
from jaxway.preflight.qos import Qos
from jaxway.slurm.commands import error_message, run_query


@dataclass(frozen=True)
class Limits:
    """What a partition gives to a job."""

    state: str
    max_nodes: int | None  # None: all of them
    max_minutes: float  # inf: any time
    nodes_by_gpus: Mapping[int, int]  # how many nodes have this number of GPUs
    qos: str | None  # whose limits hold in it, too

    @property
    def max_gpus(self) -> int:
        """GPUs of the largest node."""
        return max(self.nodes_by_gpus, default=0)

    def nodes_with(self, gpus: int) -> int:
        """How many nodes with that many GPUs or more a job may have."""
        count = sum(nodes for has, nodes in self.nodes_by_gpus.items() if has >= gpus)
        return count if self.max_nodes is None else min(count, self.max_nodes)

    def for_job(self, own: Qos | None) -> "Limits":
        """What is left of them for jobs of a QoS: its flags may lift some."""
        flags = own.flags if own else ""
        return replace(
            self,
            max_nodes=None if "PartitionMaxNodes" in flags else self.max_nodes,
            max_minutes=math.inf if "PartitionTimeLimit" in flags else self.max_minutes,
        )


def check_partition(
    name: str | None, jobs: Mapping[str, SubmittedJob], account: str | None
) -> Findings:
    """``jobs``: those in this partition, by label. Without a name, it is Slurm's default one."""
    name = name or default_partition()
    if name is None:
        return
    if "," in name:  # by an option of Snakemake
        yield passed(f"{name}: Slurm takes one of them, whose limits are not looked at")
        return
    shown = run_query("scontrol", "--all", "--oneliner", "show", "partition", name)
    groups = run_query("sinfo", "--noheader", f"--partition={name}", "--format=%D %G")
    if "not found" in error_message(shown):
        label = next(iter(jobs))
        message = f"{label}.partition: {error_message(shown)}{open_partitions()}"
        yield failure("JW503", message)
        return
    for result in (shown, groups):
        if result.returncode:
            yield warning(f"{name}: Slurm did not report it ({error_message(result)})")
            return
    limits = parse_limits(shown.stdout, groups.stdout)
    try:
        known, default = qos.read_all(), qos.default_name(account)
    except qos.NotReportedError as error:
        known, default = {}, ""
        yield from [warning(f"{name}: QoS {limits.qos}: {error}")] if limits.qos else []
    labels: dict[tuple[str, str], list[str]] = {}
    time = submitted = (math.inf, "")
    for label, job in jobs.items():
        own = qos.of_job(known, job.placement, default)
        given, ordered = limits.for_job(own), qos.in_order(own, known.get(limits.qos or ""))
        time = min(time, (given.max_minutes, ""), qos.first(ordered, "max_minutes"))
        submitted = min(submitted, qos.first(ordered, "max_submitted"))
        problems = find_problems(name, given, job.placement)
        for problem in (*problems, *qos.find_problems(ordered, job.placement)):
            labels.setdefault(problem, []).append(label)
    for (code, message), affected in labels.items():
        more = f" (and {len(affected) - 1} more)" if affected[1:] else ""
        yield failure(code, f"{affected[0]}{message}{more}")
    if not labels and limits.state == "DOWN":
        yield warning(f"{name} is down, and jobs wait there until it is up")
    elif not labels:
        yield passed(f"{name}: {in_words(limits, *time)}")
    count = math.ceil(sum(Fraction(1, job.placement.trainings_per_node) for job in jobs.values()))
    if count > submitted[0]:
        most = f"{submitted[0]:g}"
        yield warning(
            f"{name}: QoS {submitted[1]} lets you have {most} jobs at a time, and there are "
            f"{count}: add `--jobs={most}`"
        )


def find_problems(name: str, limits: Limits, placement: Placement) -> Iterator[tuple[str, str]]:
    """Why the partition does not take a job: code, and message without the job's label."""
    gpus, nodes = placement.gpus_per_node, placement.nodes
    if limits.state not in ("UP", "DOWN"):
        yield (
            "JW504",
            f".partition: {name} is {limits.state} and starts no job{open_partitions()}",
        )
    if gpus > limits.max_gpus:
        yield "JW505", f".gpus_per_node: a node of {name} has {limits.max_gpus}, not {gpus}"
    elif nodes > (most := limits.nodes_with(gpus)):
        yield "JW505", f".nodes: {name} gives at most {most} to a job, not {nodes}"
    if placement.time_limit > limits.max_minutes:
        longest = f"{limits.max_minutes:g} minutes"
        wanted = f"{placement.time_limit}{qos.turns_in_words(placement)}"
        yield "JW505", f".walltime: {name} allows {longest}, not {wanted}"


def parse_limits(partition: str, groups: str) -> Limits:
    """Limits from `scontrol show partition`, and from lines of nodes and their GPUs of `sinfo`."""
    fields = dict(re.findall(r"(\w+)=(\S*)", partition))
    nodes_by_gpus: dict[int, int] = {}
    for line in groups.splitlines():
        count, _, gres = line.partition(" ")
        gpus = sum(map(int, re.findall(r"gpu:(?:[^,(]+:)?(\d+)", gres)))
        nodes_by_gpus[gpus] = nodes_by_gpus.get(gpus, 0) + int(count)
    max_nodes = fields["MaxNodes"]
    return Limits(
        state=fields["State"],
        max_nodes=int(max_nodes) if max_nodes.isdecimal() else None,
        max_minutes=qos.parse_minutes(fields["MaxTime"]),
        nodes_by_gpus=nodes_by_gpus,
        qos=None if fields.get("QoS") in (None, "N/A") else fields["QoS"].lower(),
    )


def in_words(limits: Limits, max_minutes: float, source: str) -> str:
    nodes = sum(limits.nodes_by_gpus.values())
    hours = f"at most {max_minutes / 60:g} h" + (f" (QoS {source})" if source else "")
    time = "without a time limit" if max_minutes == math.inf else hours
    return f"{nodes} nodes with {limits.max_gpus} GPUs, {time}"


def default_partition() -> str | None:
    """The partition that Slurm takes where a job names none; None, where it has none."""
    names = run_query("sinfo", "--noheader", "--format=%P").stdout.split()
    return next((name[:-1] for name in names if name.endswith("*")), None)


def open_partitions() -> str:
    """The end of a sentence about a partition that cannot be used: those that can."""
    lines = run_query("sinfo", "--noheader", "--format=%a %R").stdout.splitlines()
    names = dict.fromkeys(line.split()[1] for line in lines if line.startswith("up "))
    return f"; open are {', '.join(names)}" if names else ""
