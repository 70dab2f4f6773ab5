"""What a pull takes: `apptainer pull`, `jaxway pull`, and the floor by hand, side by side on the
test cluster's login node. And how long JAX takes to start on a compute node from what was pulled.

Run from the checkout as root, the test cluster up: .venv/bin/python benchmarks/pull.py [REPEATS]
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from threading import Event

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/cluster"), str(ROOT / "workflow"), str(ROOT / "workflow/scripts")]
from jaxway.container.apptainer import ZSTD  # noqa: E402
from nodes import Checkout, Cluster  # noqa: E402

TAG = "24.10-maxtext-py3"  # the default
STARTS_TAG = "26.06-py3"  # newer, as a new project would take it
STARTS = 5
NODE = "jrc0101"
IMAGES = "/p/scratch/training/pull-benchmark"
DISK = "/tmp/pull-benchmark"  # on the login node's own disk
CACHE = "/p/home/jusers/alice/jureca/pull-benchmark"  # as an empty ~/.apptainer/cache
APPTAINER = (
    f"TMPDIR={IMAGES} APPTAINER_CACHEDIR={CACHE} "
    "apptainer pull {sif} docker://nvcr.io/nvidia/jax:{tag}"
)
JAXWAY = (
    f"TMPDIR={DISK} python3 workflow/jaxway pull "
    "--image docker://nvcr.io/nvidia/jax:{tag} --sif {sif}"
)
FLOOR = f"""
mkdir {DISK}/root; cd {DISK}
curl --silent --show-error --fail --parallel --parallel-immediate --remote-name-all {{urls}}
for layer in {{layers}}; do tar -xzf ./$layer --force-local -C root; done
mksquashfs root {{sif}} {ZSTD[1]}
"""
CLEAN = f"chmod -fR u+rwX {DISK} {IMAGES}; rm -rf {DISK} {IMAGES} {CACHE}; mkdir {DISK} {IMAGES}"
IMPORT = "python3 -c 'import jax'"
VERSIONS = "python3 -c 'import sys, jax; print(jax.__version__, *sys.version_info[:2])'"
QUANTITIES = ("wall, s", "CPU, s", "image, MB", "inodes in its folder, at most")

Taken = tuple[float, ...]  # by one pull, of each of QUANTITIES


def timed(
    cluster: Cluster, command: str, node: str = Cluster.login, cold: bool = True
) -> tuple[float, float]:
    """Wall and CPU seconds of a command of alice's on a node, with its children."""
    os.sync()  # so that it does not pay for what another one wrote, nor find what it has read
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    line = f"set -e; TIMEFORMAT='%R %U %S'; time {{ {command}\n}} > /dev/null"
    stderr = cluster.run(line, node, timeout=3600).stderr
    wall, user, system = map(float, stderr.splitlines()[-1].split())
    return wall, user + system


@contextlib.contextmanager
def inodes_below(folder: Path) -> Iterator[list[int]]:
    """While the body runs, counts what is in a folder every 0.2 s; less often if that is work."""
    counts, done = [0], Event()

    def count() -> None:
        pause = 0.2
        while not done.wait(pause):
            began = time.monotonic()
            counts.append(sum(len(folders) + len(files) for _, folders, files in os.walk(folder)))
            pause = max(0.2, 20 * (time.monotonic() - began))

    with ThreadPoolExecutor() as pool:
        pool.submit(count)
        try:
            yield counts
        finally:
            done.set()


def floor_command(cluster: Cluster) -> str:
    """FLOOR for the layers that the registry names."""
    url = "https://nvcr.io/v2/nvidia/jax"
    accept = "Accept: application/vnd.docker.distribution.manifest.v2+json"
    manifest = cluster.run(["curl", "-sSf", "-H", accept, f"{url}/manifests/{TAG}"]).stdout
    layers = [layer["digest"] for layer in json.loads(manifest)["layers"]]
    urls = " ".join(f"{url}/blobs/{layer}" for layer in layers)
    return FLOOR.format(urls=urls, layers=" ".join(layers), sif="{sif}")


def pull(checkout: Checkout, command: str) -> Taken:
    cluster, sif = checkout.cluster, f"{IMAGES}/jax.sif"
    cluster.run(CLEAN, timeout=600)
    with inodes_below(cluster.path(IMAGES)) as inodes:
        times = timed(cluster, f"cd {checkout.folder}; {command.format(sif=sif, tag=TAG)}")
    return *times, cluster.path(sif).stat().st_size / 1e6, max(inodes)


def spread(values: list[float], form: str = ",.0f") -> str:
    """Median and range."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_pulls(checkout: Checkout, repeats: int) -> None:
    """What the three ways to pull take, and the ratios of their times in the same round."""
    ways = {"apptainer": APPTAINER, "jaxway": JAXWAY, "floor": floor_command(checkout.cluster)}
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, command in ways.items():
            taken[way].append(pull(checkout, command))
    print(f"pull of {TAG}, {repeats} times: median (range)")
    print(f"{'':<32}" + "".join(f"{way:<28}" for way in ways))
    for i, quantity in enumerate(QUANTITIES):
        cells = (spread([one[i] for one in taken[way]]) for way in ways)
        print(f"{quantity:<32}" + "".join(f"{cell:<28}" for cell in cells))
    for a, b in (("apptainer", "jaxway"), ("jaxway", "floor")):
        ratios = [x[0] / y[0] for x, y in zip(taken[a], taken[b], strict=True)]
        print(f"{f'wall, {a} / {b}':<32}{spread(ratios, '.2f')}")


def print_starts(checkout: Checkout) -> None:
    """Seconds until JAX is imported, with nothing in memory and then with all that was read."""
    cluster = checkout.cluster
    cluster.run(CLEAN, timeout=600)
    ways = {}
    for way, command in (("apptainer", APPTAINER), ("jaxway", JAXWAY)):
        sif = f"{IMAGES}/{way}.sif"
        line = command.format(sif=sif, tag=STARTS_TAG)
        cluster.run(f"cd {checkout.folder}; {line}", timeout=3600)
        ways[way] = f"apptainer exec {sif} "
    # Without a container: the image's Python and JAX as plain files; and the node's own, newer.
    cluster.run(f"apptainer build --sandbox {IMAGES}/files {sif}", timeout=600)
    ways |= {"files": f"PYTHONHOME={IMAGES}/files/usr {IMAGES}/files/usr/bin/", "node's own": ""}

    def start(way: str, cold: bool = False) -> float:
        line = f"export PYTHONDONTWRITEBYTECODE=1; {ways[way]}{IMPORT}"
        return timed(cluster, line, NODE, cold)[0]

    cold: dict[str, float] = {}
    for way in ways:
        cold[way] = start(way, cold=True)
    warm: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(STARTS):
        for way in ways:
            warm[way].append(start(way))
    print(f"\nimport jax on {NODE}, the images from {STARTS_TAG}: s; warm, {STARTS} times")
    for way, prefix in ways.items():
        jax, *python = cluster.run(prefix + VERSIONS, NODE).stdout.split()
        versions = f"JAX {jax}, Python {'.'.join(python)}"
        print(f"{way:<14}first {cold[way]:.1f}, warm {spread(warm[way], '.2f')}: {versions}")


def main() -> None:
    checkout = Checkout(Cluster(), name="pull-benchmark")
    try:
        print_pulls(checkout, int(sys.argv[1]) if sys.argv[1:] else 3)
        print_starts(checkout)
    finally:
        checkout.cluster.run(f"{CLEAN}; rm -rf {DISK} {IMAGES} {checkout.folder}", timeout=600)


if __name__ == "__main__":
    main()
