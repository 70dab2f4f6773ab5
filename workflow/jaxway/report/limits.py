"""What a training benchmark reaches of the highest speed that `jaxway plan-memory` has found."""

import os
from pathlib import Path

from jaxway.config.gpus import known_gpus
from jaxway.config.site import read_site
from jaxway.report.entries import Entry
from jaxway.steps import compiled
from jaxway.steps.step import step_of_benchmark


def share_of_limit(entry: Entry, site: Path) -> float | None:
    """None where the step was not compiled for this GPU. ``site``: its site.yaml."""
    provenance, nodes = entry.judged.benchmark.provenance, entry.judged.nodes
    gpu = provenance and provenance.device_kind
    if entry.program != "train" or gpu not in known_gpus():
        return None
    scratch = os.path.expandvars(read_site(site).scratch)
    size = nodes.nodes, nodes.gpus_per_node
    step = step_of_benchmark(entry.options, entry.case["preset"], gpu, *size)
    known = compiled.read(step, compiled.folder_of(scratch))
    return entry.value.median / known.tokens_per_second if known else None
