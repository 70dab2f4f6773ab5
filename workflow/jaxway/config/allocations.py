"""Which benchmarks share a job, and which run on each node that is to be checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxway_shared import hostlist

from jaxway.config.jobs import Allocation, BenchmarkJob, Placement
from jaxway.config.schema import ConfigurationError, nearest
from jaxway.config.site import Site


def shared_allocations(benchmarks: Mapping[str, BenchmarkJob], site: Site) -> dict[str, Allocation]:
    """Allocations by name: benchmarks of one placement share it, for the longest of their times."""
    groups: dict[str, list[BenchmarkJob]] = {}
    for job in benchmarks.values():
        groups.setdefault(allocation_name(job.placement, site), []).append(job)
    return {
        name: Allocation(
            name,
            replace(jobs[0].placement, walltime=max(job.placement.walltime for job in jobs)),
            tuple(job.name for job in jobs),
        )
        for name, jobs in groups.items()
    }


def allocation_name(placement: Placement, site: Site) -> str:
    """Name of a placement: nodes x GPUs, and what else is not as usual."""
    name = f"{placement.nodes}x{placement.gpus_per_node}"
    if placement.processes_per_node > 1:
        name += f"-{placement.processes_per_node}_processes"
    if placement.partition != site.partitions.get("benchmark"):
        name += f"-{placement.partition}"
    return name


def node_check_allocations(
    hosts: Sequence[str],
    selected: Sequence[str],
    benchmarks: Mapping[str, BenchmarkJob],
    site: Site,
) -> dict[str, Allocation]:
    """An allocation for each placement and node to check; ``selected``: empty, all of one node."""
    if not hosts:
        return {}
    if not site.launcher:
        raise ConfigurationError(
            "JW014",
            f"node_check.nodes: the site {site.name} has no Slurm that reaches a node by its name",
        )
    single_node = [name for name, job in benchmarks.items() if job.placement.nodes == 1]
    for name in selected:
        if name not in single_node:
            raise ConfigurationError(
                "JW014",
                f"node_check.benchmarks: no benchmark of one node is named {name}; "
                + nearest(name, single_node),
            )
    names = selected or single_node
    if not names:
        raise ConfigurationError(
            "JW014", "node_check.nodes: there is no benchmark of one node to run there"
        )
    templates = shared_allocations({name: benchmarks[name] for name in names}, site)
    return {
        f"{name}-{node}": Allocation(
            f"{name}-{node}",
            replace(template.placement, node=node, options=()),  # it may be excluded elsewhere
            template.benchmarks,
        )
        for node in dict.fromkeys(node for each in hosts for node in nodes_of(each))
        for name, template in templates.items()
    }


def nodes_of(hosts: str) -> list[str]:
    """Names that a Slurm host list stands for."""
    try:
        return hostlist.expand(hosts)
    except ValueError as error:
        raise ConfigurationError("JW014", f"node_check.nodes: {error}") from None
