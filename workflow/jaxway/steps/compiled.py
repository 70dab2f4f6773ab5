"""What steps of trainings need of a GPU, by compiling them for it; kept by content."""

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxway_shared.environment import for_compiling
from jaxway_shared.errors import UserError

from jaxway import files
from jaxway.config.jobs import short_hash
from jaxway.config.schema import WORKFLOW
from jaxway.steps.step import Step

CUDA = Path(sys.prefix, "cuda")  # where `make setup` puts JAX's plugin
PROGRAM = WORKFLOW / "scripts/compile_steps.py"


@dataclass(frozen=True)
class Compiled:
    """What PROGRAM prints of a step."""

    memory: int  # bytes of a GPU
    seconds: float  # at least, by the best rates of such a GPU
    seconds_of_products: float  # of matrix products, among them
    tokens_per_second: float  # at most, on all GPUs
    mfu: float | None  # at most


def can_compile() -> bool:
    """Whether JAX's CUDA plugin is here."""
    return (CUDA / "jax_plugins").is_dir()


def compile_steps(steps: Sequence[Step]) -> Iterator[Compiled]:
    """What each of some steps needs. UserError where one cannot be compiled."""
    arguments = json.dumps([step.arguments() for step in steps])
    with subprocess.Popen(
        [sys.executable, PROGRAM],
        env=for_compiling(os.environ, str(CUDA)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(arguments)
        process.stdin.close()
        for line in process.stdout:
            yield Compiled(**json.loads(line))
        lines = process.stderr.read().strip().splitlines()
    if process.returncode:
        raise UserError("JW518", f"a step could not be compiled: {(lines or ['no output'])[-1]}")


def folder_of(scratch: str) -> Path:
    """Where what was compiled is kept."""
    return Path(scratch, "steps")


def compile_missing(steps: Iterable[Step], folder: Path) -> dict[Step, Compiled]:
    """What steps need, those that are not in ``folder`` compiled now and put there."""
    steps = [*dict.fromkeys(steps)]
    found = {step: known for step in steps if (known := read(step, folder))}
    missing = [step for step in steps if step not in found]
    for step, result in zip(missing, compile_steps(missing) if missing else (), strict=True):
        keep(step, result, folder)
        found[step] = result
    return found


def keep(step: Step, result: Compiled, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.atomic_replace({file_of(step, folder): json.dumps(asdict(result))})


def read(step: Step, folder: Path) -> Compiled | None:
    """What is known of a step; None, it has not been compiled by this program and this JAX."""
    try:
        return Compiled(**json.loads(file_of(step, folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def file_of(step: Step, folder: Path) -> Path:
    return folder / f"{short_hash([step.arguments(), *compiler()])}.json"


@functools.cache
def compiler() -> tuple[str, str]:
    """JAX's version, and a hash of the code that makes the program of a step."""
    code = hashlib.sha256()
    for file in (PROGRAM, *sorted(PROGRAM.parent.glob("jaxway_job/*.py"))):
        code.update(file.read_bytes())
    return importlib.metadata.version("jax"), code.hexdigest()
