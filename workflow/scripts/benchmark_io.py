"""I/O and startup: a checkpoint written to the scratch folder and read back, the start of the
container, and the import of JAX.

A checkpoint is written and read by orbax, as in train.py. Reads are of files that were just
written, so the file system's cache may hold them.
"""

import time

STARTED = time.time()  # before the imports, which are measured

import argparse  # noqa: E402
import functools  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402

IMPORTED = time.time()

import jax.numpy as jnp  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from jaxway_job import checkpoints, measure, runtime  # noqa: E402
from jaxway_shared.benchmark import RoundMeasurement  # noqa: E402

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


@dataclass
class Checkpoint:
    """A checkpoint's bytes, the seconds that it took, and how many numbers were wrong when read."""

    bytes: int
    write_seconds: list[float] = field(default_factory=list)
    read_seconds: list[float] = field(default_factory=list)
    wrong: int = 0


def single_time(quantity: str, seconds: float) -> RoundMeasurement:
    """A time that is measured once a round."""
    return RoundMeasurement(
        quantity=quantity,
        unit="s",
        higher_is_better=False,
        formula="t",
        seconds=[seconds],
        samples=[seconds],
    )


def measure_start() -> RoundMeasurement:
    """From before the launcher to the first line of Python: launcher, container, interpreter."""
    launched = os.environ.get("JAXWAY_LAUNCHED")
    if not launched:
        raise measure.UnsupportedError("run_benchmarks.py did not start this program")
    return single_time("start of launcher, container and Python", STARTED - float(launched))


def measure_checkpoint(args: argparse.Namespace, mesh: Mesh) -> Checkpoint:
    """Write and read a checkpoint whose arrays are split over all devices."""
    size = (args.megabytes or MEGABYTES[mesh.devices.flat[0].platform]) * 2**20
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
        shutil.rmtree(folder, ignore_errors=True)  # of a round that was killed
    multihost_utils.sync_global_devices("folder is empty")
    # If a checkpoint is damaged, users are told to delete this folder.
    store = checkpoints.Checkpoints(folder, keep=1)
    result = Checkpoint(4 * ARRAYS * count)
    try:
        for step in range(1, args.repeats + 1):
            begin = time.perf_counter()
            store.save(step, state)
            store.wait()
            written = time.perf_counter()
            _, found = store.restore(like)
            jax.block_until_ready(found)
            result.read_seconds.append(time.perf_counter() - written)
            result.write_seconds.append(written - begin)
            result.wrong += int(different(state, found))
            store.delete_old()
    finally:
        multihost_utils.sync_global_devices("checkpoints read")
        if runtime.first_process():
            shutil.rmtree(folder, ignore_errors=True)
    return result


def main() -> None:
    args = measure.parser(__doc__, OPTIONS).parse_args()
    mesh = runtime.start(args)
    once = functools.cache(partial(measure_checkpoint, args, mesh))  # both bandwidths are of it

    def bandwidth(direction: str) -> RoundMeasurement:
        found = once()
        return measure.measurement(
            quantity=f"checkpoint {direction}",
            unit="GB/s",
            formula="S / t, with S the bytes of the arrays",
            work=found.bytes / 1e9,
            check=measure.check("the checkpoint that was read", found.wrong, 0.0),
            samples=measure.Samples(
                found.write_seconds if direction == "write" else found.read_seconds
            ),
        )

    cases: dict[str, Callable[[], RoundMeasurement]] = {
        "start": measure_start,
        "import": partial(single_time, "import of JAX", IMPORTED - STARTED),
        "write": partial(bandwidth, "write"),
        "read": partial(bandwidth, "read"),
    }
    measure.write(args, (measure.run_case(each, what=name) for name, each in cases.items()))


if __name__ == "__main__":
    main()
