"""Agreement of our benchmarks with established tools, on the same cores of this CPU, in turns:
matrix products with numpy's BLAS and memory with STREAM's kernels in C, on one core and on all, and
all_reduce of two processes with Open MPI. A round in which others took more than
5 % of the CPUs' time is taken again.

Run with any Python that has JAX and pytest: .venv/bin/python benchmarks/agreement.py [ROUNDS]
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("workflow/scripts", "tests/unit")]
import jax  # noqa: E402
import numpy as np  # noqa: E402
from jaxway_shared.benchmark import BenchmarkRound  # noqa: E402
from test_runtime import launch  # noqa: E402

PACKAGES = {"gcc": "gcc", "mpicc": "libopenmpi-dev", "mpirun": "openmpi-bin"}  # Debian's names
SHAPES = ("256x256x256", "1024x1024x1024", "1024x3072x768", "2048x2048x2048")
MEBIBYTES = 64
KIBIBYTES = [str(4**i) for i in range(1, 8)]
MPIRUN = "mpirun -n 2 --allow-run-as-root --oversubscribe --bind-to none --mca pml ob1 --mca btl"
NUMPY = """
import sys, time
import numpy as np
for shape in sys.argv[1:]:
    m, n, k = map(int, shape.split("x"))
    draw = np.random.default_rng(0).standard_normal
    a, b, c = draw((m, k), np.float32), draw((k, n), np.float32), np.empty((m, n), np.float32)
    def sample(calls):
        begin = time.perf_counter()
        for _ in range(calls):
            np.matmul(a, b, out=c)
        return (time.perf_counter() - begin) / calls
    sample(3)
    calls = int(0.02 / sample(1)) + 1
    print(shape, 2e-12 * m * n * k / np.median([sample(calls) for _ in range(10)]))
"""


def run_benchmark(program, *flags, processes=1):
    """Run one of our benchmarks: the median of each case."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        flags = ("--platform=cpu", f"--devices={processes}", "--out", out, *flags)
        done = launch(program, *flags, processes=processes)
        if any(process.returncode for process in done):
            sys.exit(done[0].stderr)
        cases = BenchmarkRound.read(out).cases
    return {
        str([*each.case.values()][-1]): median(each.measurement.samples)
        for each in cases
        if each.measurement
    }


def run_other(*command):
    """Run another program, which prints a case and its value in each line."""
    lines = subprocess.check_output(command, text=True).splitlines()
    return {case: float(value) for case, value in map(str.split, lines)}


def first_line(*command):
    """First line that a program prints."""
    return subprocess.check_output(command, text=True).splitlines()[0]


def others_work():
    """Seconds that the CPUs have worked for others than this program, or stood still for them."""
    user, nice, system, _, _, _, _, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    all_work = (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")
    return all_work - sum(usage.ru_utime + usage.ru_stime for usage in own)


def undisturbed(run):
    """What ``run`` returns in a round of which others took at most 5 %."""
    while True:
        begin, others = time.perf_counter(), others_work()
        found = run()
        share = (others_work() - others) / (time.perf_counter() - begin) / os.cpu_count()
        if share < 0.05:
            return found
        print(f"others took {share:.0%} of the CPUs: again", file=sys.stderr)


def compare(rounds, unit, benchmark, others):
    """Print each case's median values and ratios of programs that take turns."""

    def turns():
        return benchmark(), [other() for other in others.values()]

    found = [undisturbed(turns) for _ in range(rounds)]
    for k, what in enumerate(others):
        for case in found[0][1][k]:
            a, b = zip(*((x[case], y[k][case]) for x, y in found), strict=True)
            ratios = [x / y for x, y in zip(a, b, strict=True)]
            print(
                f"{what.format(case):34}{median(a):9.3g}{median(b):9.3g} {unit:8}"
                f"{median(ratios):7.3g} ({min(ratios):.3g} to {max(ratios):.3g})",
                flush=True,
            )


def main():
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    cores = sorted(os.sched_getaffinity(0))
    missing = [package for tool, package in PACKAGES.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"agreement.py: install these Debian packages: {' '.join(missing)}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"JAX {jax.__version__}; numpy {np.__version__} with {blas['name']} {blas['version']}")
    print(first_line("gcc", "--version"), first_line("mpirun", "--version"), sep="; ")
    print(f"{'':34}{'ours':>9}{'theirs':>9}           ratio ({rounds} rounds)")
    with tempfile.TemporaryDirectory() as folder:
        stream, all_reduce = Path(folder, "stream"), Path(folder, "all_reduce")
        flags = ("-O3", "-march=native")
        subprocess.check_call(["gcc", *flags, "-fopenmp", HERE / "stream.c", "-o", stream])
        subprocess.check_call(["mpicc", *flags, HERE / "all_reduce.c", "-o", all_reduce, "-lm"])
        compute = ("benchmark_compute.py", "--dtypes", "float32", "--shapes", *SHAPES)
        memory = ("benchmark_memory.py", f"--megabytes={MEBIBYTES}")
        collective = ("benchmark_collective.py", "--operations", "all_reduce")
        collective += (f"--smallest={KIBIBYTES[0]}", f"--largest={KIBIBYTES[-1]}")
        numpy = partial(run_other, sys.executable, "-c", NUMPY, *SHAPES)
        triad = partial(run_other, stream, str(MEBIBYTES))
        tcp, shared = (
            partial(run_other, *MPIRUN.split(), f"{btl},self", all_reduce, *KIBIBYTES)
            for btl in ("tcp", "vader")
        )
        for count in (1, len(cores)):
            os.sched_setaffinity(0, cores[:count])  # which the programs inherit
            on = f"{count} core{'s' * (count > 1)}"
            compare(
                rounds, "TFLOP/s", partial(run_benchmark, *compute), {f"product {{}}, {on}": numpy}
            )
            compare(rounds, "GB/s", partial(run_benchmark, *memory), {f"{{}}, {on}": triad})
        mpi = {"all_reduce {} KiB, TCP": tcp, "all_reduce {} KiB, shared memory": shared}
        compare(rounds, "GB/s", partial(run_benchmark, *collective, processes=2), mpi)


if __name__ == "__main__":
    main()
