"""The report's part about provenance: what all results have in common, and what differs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxway_shared.provenance import Provenance

MUST_AGREE = {  # parts of a provenance, and their names in the plural
    "image digest": "images",
    "SIF sha256": "SIF files",
    "commit": "commits",
    "JAX": "versions of JAX",
    "driver": "drivers",
    "device": "kinds of device",
}


@dataclass(frozen=True)
class Origin:
    """Where all results come from."""

    warnings: list[str]
    node_sets: int
    known: dict[str, str]  # a few values of each part
    common: dict[str, str | None]  # parts that are the same for all
    differing: list[str]  # the other parts
    rows: list[dict[str, str | None]]  # each combination of parts, with its results and jobs
    first: str  # earliest and latest time
    last: str


def identity(provenance: Provenance) -> dict[str, str | None]:
    """What a result depends on, apart from its arguments."""
    container = provenance.container
    return {
        "image": container.image if container else "no container",
        "image digest": container.digest if container else None,
        "SIF sha256": container.sha256 if container else None,
        "commit": provenance.commit,
        "site": Path(provenance.site or "unknown").name,
        "nodes": provenance.nodes,
        "device": provenance.device_kind,
        "JAX": provenance.jax,
        "jaxlib": provenance.jaxlib,
        "numpy": provenance.numpy,
        "python": provenance.python,
        "backend": provenance.backend,
        "driver": provenance.driver,
    }


def origin_of(results: Sequence[tuple[str, Provenance]]) -> Origin:
    """Compare the provenance of named results, of which there is at least one."""
    members: dict[tuple[str | None, ...], list[tuple[str, Provenance]]] = {}
    for name, provenance in results:
        members.setdefault(tuple(identity(provenance).values()), []).append((name, provenance))
    keys = list(identity(results[0][1]))
    columns = {key: [row[i] for row in members] for i, key in enumerate(keys)}
    different = {key: len(set(values)) for key, values in columns.items()}
    different["device"] = len(set(columns["device"]) - {None})  # a command's is not known
    rows = [
        dict(zip(keys, row, strict=True))
        | {"results": first_few(n for n, _ in group), "jobs": first_few(p.job for _, p in group)}
        for row, group in members.items()
    ]
    times = sorted(provenance.time for _, provenance in results)
    return Origin(
        warnings=warnings(different, columns["commit"]),
        node_sets=different["nodes"],
        known={key: first_few(values) for key, values in columns.items()},
        common={key: columns[key][0] for key in keys if different[key] == 1},
        differing=[key for key in keys if different[key] > 1],
        rows=rows,
        first=times[0],
        last=times[-1],
    )


def warnings(different: dict[str, int], commits: Sequence[str | None]) -> list[str]:
    """Why results cannot be compared or reproduced, as sentences."""
    found = []
    if mixed := [f"{different[k]} {text}" for k, text in MUST_AGREE.items() if different[k] > 1]:
        several = " and ".join([", ".join(mixed[:-1]), mixed[-1]] if mixed[1:] else mixed)
        found.append(f"The results cannot be compared: they come from {several}.")
    if any(commit and commit.endswith("-dirty") for commit in commits):
        found.append("Some code had uncommitted changes, so it cannot be reproduced.")
    if {None, "unknown"} & set(commits):
        found.append("Some of the code's commits are not known.")
    return found


def first_few(values: Iterable[str | None]) -> str:
    """The first few of the different values, and how many more there are."""
    different = list(dict.fromkeys(str(value) for value in values if value is not None))
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(different[:3]) + more
