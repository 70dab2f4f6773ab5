"""Nodes by their names: whether Slurm can start a job on each. Else it would wait without end."""

import re
from collections.abc import Iterable

from jaxway.preflight.finding import Findings, failure, passed, warning
from jaxway.slurm.commands import error_message, run_query

UNUSABLE_RE = re.compile(r"down|drain|fail|unknown|\*")  # of a node's state; *: no answer


def check_nodes(names: Iterable[str]) -> Findings:
    wanted = sorted({*names})
    if not wanted:
        return
    options = ("--all", "--noheader", "--Node", "--format=%N %T")
    result = run_query("sinfo", *options, f"--nodes={','.join(wanted)}")
    if result.returncode:
        yield warning(f"Slurm did not report them ({error_message(result)})")
        return
    known = dict(line.split() for line in result.stdout.splitlines())
    states = {node: known.get(node, "unknown") for node in wanted}
    unusable = [f"{node} ({state})" for node, state in states.items() if UNUSABLE_RE.search(state)]
    if unusable:
        yield failure(
            "JW507", f"node_check.nodes: no job can start on {', '.join(unusable)}; remove these"
        )
    else:
        yield passed(f"all {len(states)} to check can start a job")
