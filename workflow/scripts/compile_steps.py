"""Compile steps of trainings for GPUs, and say what each needs of a GPU's memory and time.

Run by jaxway/steps/compiled.py on the login node. Reads a JSON array of objects with the
arguments of compile_for_gpu.make_setup(), and prints a line of JSON for each.
"""

import json
import sys
from typing import Any

from jaxway_job import compile_for_gpu, flops, hlo, measure
from jaxway_job.compile_for_gpu import make_setup


def needs(step: dict[str, Any]) -> dict[str, Any]:
    """Memory in bytes, and the lower limit of the time in seconds, with what follows from it."""
    gpu, setup = step["gpu"], make_setup(**step)
    program = compile_for_gpu.compile_step(setup)
    seconds, products = hlo.lower_limit(program.as_text(), gpu["flops"], gpu["bytes_per_second"])
    tokens = setup.args.global_batch * setup.args.context / seconds
    work = tokens * flops.per_token(setup.config, setup.args.context)
    return {
        "memory": measure.memory_use(program).compiled,
        "seconds": seconds,
        "seconds_of_products": products,
        "tokens_per_second": tokens,
        "mfu": setup.peak_flops and work / setup.peak_flops,
    }


def main() -> None:
    for step in json.load(sys.stdin):
        print(json.dumps(needs(step)), flush=True)


if __name__ == "__main__":
    main()
