"""Limits of a QoS, Slurm's quality of service. A job beyond one is refused, or never starts."""

import getpass
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxway.config.jobs import Placement
from jaxway.slurm.commands import error_message, run_query


class NotReportedError(Exception):
    """Slurm does not tell; ``str()`` is why."""


@dataclass(frozen=True)
class Qos:
    """What a QoS gives to a job. None: it sets no such limit."""

    name: str
    flags: str
    max_minutes: float | None
    max_nodes: int | None
    max_gpus: int | None
    max_submitted: int | None  # jobs of a user that have not ended

    @classmethod
    def of(cls, line: str) -> "Qos":
        """From a line of sacctmgr."""
        try:
            name, flags, wall, tres, submitted = line.split("|")
        except ValueError:
            raise NotReportedError(f"sacctmgr printed {line!r}") from None
        tres = "" if "Relative" in flags else tres  # in percent
        nodes, gpus = (re.search(rf"\b{key}=(\d+)", tres) for key in ("node", "gres/gpu"))
        return cls(
            name,
            flags,
            parse_minutes(wall) if wall else None,
            int(nodes[1]) if nodes else None,
            int(gpus[1]) if gpus else None,
            int(submitted) if submitted else None,
        )


def read_all() -> dict[str, Qos]:
    """Every QoS of the cluster, by name, which the database has in lower case."""
    lines = query("qos", "format=Name,Flags,MaxWall,MaxTRES,MaxSubmitJobsPerUser")
    return {qos.name: qos for qos in map(Qos.of, lines)}


def default_name(account: str | None) -> str:
    """The QoS of a job that names none."""
    if name := os.environ.get("SBATCH_QOS"):
        return name
    filters = [f"user={getpass.getuser()}", *([f"account={account}"] if account else [])]
    names = {*query("associations", *filters, "format=DefaultQOS")} - {""}
    return names.pop() if len(names) == 1 else "normal"


def query(*words: str) -> list[str]:
    result = run_query("sacctmgr", "--noheader", "--parsable2", "show", *words)
    if result.returncode:
        raise NotReportedError(error_message(result))
    return result.stdout.splitlines()


def of_job(known: Mapping[str, Qos], placement: Placement, default: str) -> Qos | None:
    """The QoS of a job: that which it names, or the default one."""
    named = [word.partition("=")[2] for word in placement.options if word.startswith("--qos=")]
    return known.get([default, *named][-1].lower())


def in_order(own: Qos | None, of_partition: Qos | None) -> list[Qos]:
    """The QoS whose limits hold for a job: of one kind, that of the first that sets it."""
    over = own and "OverPartQOS" in own.flags
    return [qos for qos in ((own, of_partition) if over else (of_partition, own)) if qos]


def first(limits: Sequence[Qos], field: str) -> tuple[float, str]:
    """The limit that holds, and the QoS that sets it."""
    found = ((most, qos.name) for qos in limits if (most := getattr(qos, field)) is not None)
    return next(found, (math.inf, ""))


def find_problems(limits: Sequence[Qos], placement: Placement) -> Iterator[tuple[str, str]]:
    """Why a job never starts: code, and message without the job's label."""
    for field, key, unit, wanted in (
        ("max_minutes", "walltime", "minutes", placement.time_limit),
        ("max_nodes", "nodes", "nodes", placement.nodes),
        ("max_gpus", "nodes", "GPUs", placement.nodes * placement.gpus_per_node),
    ):
        most, name = first(limits, field)
        if wanted > most:
            turns = turns_in_words(placement) if key == "walltime" else ""
            yield "JW505", f".{key}: QoS {name} allows {most:g} {unit}, not {wanted}{turns}"


def turns_in_words(placement: Placement) -> str:
    """Why a job's time limit is more than the configured walltime, if it is."""
    return f" ({placement.turns} turns of {placement.walltime})" if placement.turns > 1 else ""


def parse_minutes(limit: str) -> float:
    """A time as Slurm writes it, [days-]hours:minutes:seconds, in minutes."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)):
        return math.inf  # UNLIMITED
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
