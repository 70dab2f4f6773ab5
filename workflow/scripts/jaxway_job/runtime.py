"""What all programs share: command line, JAX processes, provenance, result files.

A program declares its options as a literal dictionary ``OPTIONS`` of JSON-schema properties. The
plan reads the same dictionary to check the configuration, so each option is defined once. Needs
only what the container holds: Python 3.10, JAX 0.4.33 and numpy, or anything newer. JAX takes a
second to import, and what only starts another program does not need it.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import operator
import os
import platform as machine
import re
import resource
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxlib.version
import numpy as np
from jaxway_shared import hostlist
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.environment import recorded
from jaxway_shared.errors import UserError, fail
from jaxway_shared.provenance import Provenance

if TYPE_CHECKING:
    from jax.sharding import Mesh

TYPES: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "string": str,
    "object": json.loads,
}
BOUNDS = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
if "JAXWAY_GPUS" in os.environ:  # of a node that jobs share (jaxway/share_node.py)
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["JAXWAY_GPUS"]
INHERITED = recorded(os.environ)  # before any program changes it
# Options of mallopt (malloc.h): M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX.
GLIBC_KEEPS_MEMORY = {-4: 0, -1: 2**31 - 1, -8: 1}
AXIS = "data"  # name of the one mesh axis over all devices


def jax_versions() -> tuple[str, str]:
    """Version of JAX's code, and of its build, which in NVIDIA's images has the date of their
    making. JAX's setup.py runs the module that has them alone, too."""
    jax = find_spec("jax")
    assert jax and jax.origin
    found = runpy.run_path(str(Path(jax.origin).with_name("version.py")))
    return ".".join(map(str, found["__version_info__"])), found["__version__"]


JAX_VERSION, JAX_BUILD = jax_versions()


def parser(description: str, options: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Command line of a program: the standard arguments and one flag for each option."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    result.add_argument("--devices", type=int, default=1, help="devices in all processes together")
    result.add_argument(
        "--platform", choices=("cpu", "cuda"), help="JAX platform that must be used"
    )
    result.add_argument("--container-record", type=Path, help="record of the container (JSON)")
    result.add_argument("--image", help="image that the container must have been pulled from")
    result.add_argument(
        "--host-suffix", default="", help="appended to a node's name to reach its fast interconnect"
    )
    for name, schema in options.items():
        flag = "--" + name.replace("_", "-")
        default, text = schema["default"], schema["description"]
        if default is None:
            schema = schema | {"type": next(kind for kind in schema["type"] if kind != "null")}
        if schema["type"] == "boolean":
            action = argparse.BooleanOptionalAction
            result.add_argument(flag, action=action, default=default, help=text)
        elif schema["type"] == "array":
            kind = converter(schema["items"])
            result.add_argument(flag, type=kind, nargs="+", default=default, help=text)
        else:
            kind, choices = converter(schema), schema.get("enum")
            result.add_argument(flag, type=kind, choices=choices, default=default, help=text)
    return result


def converter(schema: dict[str, Any]) -> Callable[[str], Any]:
    """How a command-line word becomes a value of a schema's type, within its bounds."""

    def convert(word: str) -> Any:
        value = TYPES[schema["type"]](word)
        for bound, holds in BOUNDS.items():
            if bound in schema and not holds(value, schema[bound]):
                raise argparse.ArgumentTypeError(f"{word} breaks the {bound} of {schema[bound]}")
        return value

    convert.__name__ = schema["type"]  # argparse names it when the word is not a number at all
    return convert


@dataclass(frozen=True)
class ProcessTopology:
    """This process among those of its Slurm step; the only one outside a step of several tasks.

    ``nodes`` has as many processes on each, ``local_devices`` are this one's among those of its
    node, and at the address ``coordinator`` the first process waits for the others.
    """

    processes: int
    process: int
    nodes: list[str]
    local_devices: list[int]
    coordinator: str

    def node_of(self, process: int) -> str:
        """Where Slurm starts a process: it fills one node after the other."""
        return self.nodes[process * len(self.nodes) // self.processes]


def process_topology(args: argparse.Namespace) -> ProcessTopology:
    """Which process this is. Ends the program if the devices cannot be shared equally.

    Every process takes its equal share of its node's devices, in the order of its local id.
    """
    env = os.environ
    processes = int(env["SLURM_NTASKS"]) if "SLURM_STEP_NODELIST" in env else 1
    if args.devices < 1 or args.devices % processes:
        fail("JW380", f"{args.devices} devices cannot be shared equally by {processes} processes")
    share = args.devices // processes
    if processes == 1:
        return ProcessTopology(1, 0, [socket.gethostname()], list(range(share)), "")
    first = int(env["SLURM_LOCALID"]) * share
    # JAX's own choice of port is the same for all steps of a job; this one is not.
    port = 61440 + (int(env["SLURM_JOB_ID"]) * 16 + int(env["SLURM_STEP_ID"])) % 4096
    nodes = hostlist.expand(env["SLURM_STEP_NODELIST"])
    coordinator = f"{nodes[0]}{args.host_suffix}:{port}"
    local_devices = list(range(first, first + share))
    return ProcessTopology(processes, int(env["SLURM_PROCID"]), nodes, local_devices, coordinator)


def check_container(args: argparse.Namespace) -> None:
    """End the program if it runs in another image than the configured one."""
    record = container_record(args)
    if record and args.image and not record.same_image(args.image):
        fail(
            "JW383",
            f"the container is {record.image}, not {args.image}: the configuration has changed; "
            "run `snakemake pull --forcerun pull`",
        )


def start(args: argparse.Namespace) -> "Mesh":
    """Join the processes of this Slurm step, and return a mesh over exactly ``args.devices``.

    On the CPU the devices are virtual. Ends the program with a sentence when JAX does not see what
    the plan expects; above all, it never falls back to the CPU when a GPU is expected.
    """
    import jax
    from jax.sharding import Mesh

    check_container(args)
    _, limit = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limit))  # a dump is as large as all memory
    topology = process_topology(args)
    share = len(topology.local_devices)
    if args.platform != "cpu" and "XLA_FLAGS" in os.environ:
        check_xla_flags()
    # JAX reads all of this when the first device is asked for, not when it is imported.
    count = f"--xla_force_host_platform_device_count={share}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    if args.platform:
        jax.config.update("jax_platforms", args.platform)
    if args.platform == "cpu":
        keep_memory()
    else:
        visible = ",".join(map(str, topology.local_devices))
        jax.config.update("jax_cuda_visible_devices", visible)
    if share > 1:
        # With fewer threads than virtual CPU devices, queued collectives wait for each other for
        # ever. Does nothing on a GPU.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    try:
        if topology.processes > 1:
            if args.platform != "cuda":
                jax.config.update("jax_cpu_collectives_implementation", "gloo")
                # A program for CPUs that comes from a compilation cache does its collectives in
                # another order than one just compiled, and only the first process writes a cache.
                jax.config.update("jax_enable_compilation_cache", False)
            jax.distributed.initialize(
                topology.coordinator,
                num_processes=topology.processes,
                process_id=topology.process,
                local_device_ids=topology.local_devices,
            )
        seen = jax.devices()
    except AssertionError:
        fail("JW381", f"this installation of JAX knows no platform {args.platform}")
    except RuntimeError as error:
        platform = args.platform or "default"
        fail("JW381", f"JAX cannot use its {platform} devices: {first_line(error)}")
    if len(seen) != args.devices:
        kind = seen[0].platform
        fail("JW382", f"JAX sees {len(seen)} {kind} devices, but the plan expects {args.devices}")
    return Mesh(np.array(seen), (AXIS,))


def check_xla_flags() -> None:
    """End the program if XLA does not know what XLA_FLAGS has: XLA would abort, with its own stack
    in place of a sentence. So another process is the first to read them."""
    read = "from jaxlib import xla_client as x; x.CompileOptions().executable_build_options"
    words = [sys.executable, "-c", f"{read}.debug_options"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    wrong = re.search(r"Unknown flags? in XLA_FLAGS: .*|Couldn't interpret .*", done.stderr)
    if wrong:
        fail("JW317", f"{wrong[0].strip()} (JAX {JAX_VERSION})")


def keep_memory() -> None:
    """What the process frees stays its own, where the C library is glibc.

    Else it would ask the system in each step for memory that it gave back after the one before,
    which is made zero page by page: 70 MB for a layer of width 512, a seventh of the CPU time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for option, value in GLIBC_KEEPS_MEMORY.items():
            mallopt(option, value)


def first_line(error: BaseException) -> str:
    """First line of an error's message, for use in a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def first_process() -> bool:
    """Whether this is the process that writes and prints; known even when JAX cannot start."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def container_record(args: argparse.Namespace) -> ContainerRecord | None:
    """Record of the container; None outside a container."""
    return read_record(args.container_record) if args.container_record else None


@functools.cache  # as it was at the start: a pull may replace it while this runs
def read_record(path: Path) -> ContainerRecord:
    """A container's record. Ends the program when it cannot be read."""
    try:
        return ContainerRecord.read(path)
    except UserError as error:
        fail(error.code, str(error))


def container_digest(args: argparse.Namespace) -> str:
    """Hexadecimal digest of the container's image, or of its file if it came from no registry."""
    record = container_record(args)
    return record.identity.removeprefix("sha256:") if record else ""


def provenance_without_devices(args: argparse.Namespace) -> Provenance:
    """The part of a provenance that is known before JAX looks for its devices."""
    driver = Path("/proc/driver/nvidia/version")
    return Provenance(
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        container=container_record(args),
        commit=os.environ.get("JAXWAY_COMMIT"),
        site=os.environ.get("JAXWAY_SITE"),
        nodes=os.environ.get("SLURM_STEP_NODELIST", socket.gethostname()),
        job=os.environ.get("SLURM_JOB_ID"),
        processes=process_topology(args).processes,
        devices=args.devices,
        platform=args.platform,
        device_kind=None,
        python=machine.python_version(),
        jax=JAX_VERSION,
        jaxlib=jaxlib.version.__version__,
        numpy=np.__version__,
        backend=None,
        driver=driver.read_text().splitlines()[0] if driver.exists() else None,
        arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        environment=INHERITED,
    )


def provenance(args: argparse.Namespace) -> Provenance:
    """Where a result comes from: image, code, nodes, devices, versions and configuration."""
    import jax

    device = jax.devices()[0]
    return dataclasses.replace(
        provenance_without_devices(args),
        platform=device.platform,
        device_kind=device.device_kind,
        backend=device.client.platform_version.replace("\n", " "),
    )


@contextmanager
def explain_write(path: Path) -> Iterator[None]:
    """End the program with a sentence if a file cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        fail("JW384", f"{path} cannot be written: {error.strerror}")


def atomic_replace(path: Path, text: str) -> None:
    """Replace a file, so that nobody ever sees half of it. Only the first process writes."""
    if first_process():
        with explain_write(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_text(text)
            part.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file. Only the first process writes."""
    atomic_replace(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
