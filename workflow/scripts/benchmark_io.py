"""What passes outside the arithmetic: a checkpoint to the scratch folder and back, the start of the
container, and the import of JAX.

A checkpoint is written and read as train.py does it, by orbax. Reads are of files that were just
written, so the file system's cache may hold them.
"""

import time

STARTED = time.time()  # before the imports, which are measured

import argparse  # noqa: E402
import functools  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402

from jaxway_job import runtime  # noqa: E402

IMPORTED = time.time()  # harness imports JAX

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from jaxway_job import checkpoints, measure  # noqa: E402

OPTIONS = {
    "repeats": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "checkpoints to write and read in each round",
    },
    "megabytes": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "size of the checkpoint in MiB; null, 64 on a CPU and 4096 on a GPU",
    },
}
MEGABYTES, ARRAYS = {"cpu": 64, "gpu": 4096}, 8


def lasting(quantity: str, seconds: float) -> measure.Measurement:
    """A time that a round takes once."""
    return {
        "quantity": quantity,
        "unit": "s",
        "higher_is_better": False,
        "formula": "t",
        "seconds": [seconds],
        "samples": [seconds],
    }


def start() -> measure.Measurement:
    """From before the launcher to the first line of Python: launcher, container, interpreter."""
    launched = os.environ.get("JAXWAY_LAUNCHED")
    if not launched:
        raise measure.UnsupportedError("run_benchmarks.py did not start this program")
    return lasting("start of launcher, container and Python", STARTED - float(launched))


def checkpoint(args: argparse.Namespace, mesh: Mesh) -> measure.Measurement:
    """Seconds to write and to read a checkpoint whose arrays are split over all devices, its bytes,
    and how many numbers are wrong after that."""
    size = (args.megabytes or MEGABYTES[jax.default_backend()]) * 2**20
    sharding = NamedSharding(mesh, PartitionSpec(runtime.AXIS))
    count = size // 4 // ARRAYS // mesh.size * mesh.size
    fill = jax.jit(
        lambda key: [jax.random.bits(k, (count,)) for k in jax.random.split(key, ARRAYS)],
        out_shardings=[sharding] * ARRAYS,
    )
    different = jax.jit(lambda a, b: sum(jnp.sum(x != y) for x, y in zip(a, b, strict=True)))
    state = jax.block_until_ready(fill(jax.random.key(0)))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    folder = args.scratch.absolute() / f"benchmark_io-{os.environ.get('SLURM_JOB_ID', os.getpid())}"
    if runtime.first_process():
        shutil.rmtree(folder, ignore_errors=True)  # of a round that was ended
    multihost_utils.sync_global_devices("nothing left")
    # If a checkpoint is damaged, users are told to delete the folder above.
    store = checkpoints.Checkpoints(folder / "checkpoints", keep=1)
    times: dict[str, list[float]] = {"write": [], "read": []}
    wrong = 0
    try:
        for step in range(1, args.repeats + 1):
            begin = time.perf_counter()
            store.save(step, state)
            store.wait()
            written = time.perf_counter()
            _, found = store.restore(like)
            jax.block_until_ready(found)
            times["read"].append(time.perf_counter() - written)
            times["write"].append(written - begin)
            wrong += int(different(state, found))
    finally:
        multihost_utils.sync_global_devices("checkpoints read")
        if runtime.first_process():
            shutil.rmtree(folder, ignore_errors=True)
    return {"seconds": times, "bytes": 4 * ARRAYS * count, "wrong": wrong}


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    mesh = runtime.start(args)
    once = functools.cache(partial(checkpoint, args, mesh))

    def bandwidth(what: str) -> measure.Measurement:
        return measure.measurement(
            quantity=f"checkpoint {what}",
            unit="GB/s",
            formula="S / t, with S the bytes of the arrays",
            work=once()["bytes"] / 1e9,
            check=measure.check("the checkpoint that was read", once()["wrong"], 0.0),
            seconds=once()["seconds"][what],
        )

    find: dict[str, Callable[[], measure.Measurement]] = {
        "start": start,
        "import": partial(lasting, "import of JAX", IMPORTED - STARTED),
        "write": partial(bandwidth, "write"),
        "read": partial(bandwidth, "read"),
    }
    measure.write(args, (measure.case(f, what=what) for what, f in find.items()))


if __name__ == "__main__":
    main()
