"""The state of a training: the folder that survives its jobs, and what the plan reads there.

``step`` holds the number of the last step that is safe. The plan starts the next job of a training
that has not finished only if this number has grown, and if there is no file ``failed``: that one
holds the sentence with which a job gave up, since another one would fail as well.
"""

import argparse
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from jaxway_job import runtime

TO_BE_CONTINUED = 75  # exit code: all is safe, the next job goes on (EX_TEMPFAIL of sysexits.h)


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The argument that programs with a state have."""
    parser.add_argument("--state", type=Path, required=True, help="folder of the training state")


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Path]:
    """The folder of ``--state``, for this job alone. Ends the program when another one writes it.

    In a container the folder's name ends in the image's digest: another image is another training.
    """
    folder: Path = args.state.absolute()
    if digest := runtime.container_digest(args):
        folder = folder.with_name(f"{folder.name}-{digest[:8]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        runtime.fail(f"state {folder} cannot be written: {error.strerror}")
    with file:
        # One process holds it for all: when it fails, srun ends the others. The kernel lets go of
        # a lock whose owner is dead, on whatever node.
        if runtime.first_process():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.set_inheritable(file.fileno(), True)
            except BlockingIOError:
                file.seek(0)
                runtime.fail(f"state {folder} is in use by {file.read()}")
            except OSError as error:
                runtime.fail(f"state {folder} cannot be locked ({error.strerror})")
            file.truncate(0)
            job = os.environ.get("SLURM_JOB_ID", "none")
            file.write(f"host {socket.gethostname()}, process {os.getpid()}, job {job}")
            file.flush()
            (folder / "failed").unlink(missing_ok=True)
        try:
            yield folder
        except SystemExit as end:
            if isinstance(end.code, str):
                with suppress(OSError):  # on a full disk it stays empty, which says enough
                    (folder / "failed").write_text(f"{end.code}\n")
            raise


def to_be_continued(why: str) -> NoReturn:
    """End the program, so that the plan starts the next job."""
    if runtime.first_process():
        print(f"to be continued: {why}", flush=True)
    sys.exit(TO_BE_CONTINUED)


def deadline() -> float | None:
    """When this job is killed, in seconds since 1970; None, never."""
    return float(os.environ["JAXWAY_DEADLINE"]) if os.environ.get("JAXWAY_DEADLINE") else None


def write(path: Path, text: str) -> None:
    """Replace a file, so that nobody sees half of it. Only the first process writes."""
    if runtime.first_process():
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        part.replace(path)


def sync(path: Path) -> None:
    """Have a file on the disk, if there is one. Only the first process does."""
    if runtime.first_process() and path.exists():
        with path.open("a") as file:
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file; a last line that was cut short is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Replace a JSON Lines file. Only the first process writes."""
    write(path, "".join(json.dumps(line) + "\n" for line in lines))


def safe_step(folder: Path) -> int | None:
    """Number in the file ``step``; None as long as there is none."""
    path = folder / "step"
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None


class Segment:
    """What one job of a training does, as ``segments.jsonl`` keeps it.

    ``done``: the step that is safe when it begins; steps after it come again, so their metrics are
    dropped. ``began``: when, by time.perf_counter().
    """

    def __init__(self, folder: Path, done: int, began: float, provenance: dict[str, Any]) -> None:
        self.folder, self.began = folder, began
        self.earlier = read_lines(folder / "segments.jsonl")
        if self.earlier:
            self.earlier[-1]["last_step"] = done  # a kill may come between checkpoint and record
        self.now: dict[str, Any] = {"first_step": done + 1, "provenance": provenance}
        metrics = folder / "metrics.jsonl"
        write_lines(metrics, [line for line in read_lines(metrics) if line["step"] <= done])
        self.note(done)

    def note(self, step: int, **more: Any) -> None:
        """Write down that all up to a step is safe."""
        seconds = time.perf_counter() - self.began
        self.now |= {"last_step": step, "seconds": seconds, **more}
        write_lines(self.folder / "segments.jsonl", [*self.earlier, self.now])

    def summary(self) -> dict[str, Any]:
        """The part of a training's summary that its jobs make."""
        segments = [*self.earlier, self.now]
        return {
            "provenance": self.now["provenance"],
            "seconds": sum(segment["seconds"] for segment in segments),
            "segments": segments,
        }


def finished(folder: Path, out: Path) -> bool:
    """Whether a training has finished before; if so, write its results once more."""
    summary = folder / "summary.json"
    if summary.exists():
        finish(folder, out, json.loads(summary.read_text()))
    return summary.exists()


def finish(folder: Path, out: Path, summary: dict[str, Any]) -> None:
    """Write the results: metrics first, and the summary, which says that all is there, last."""
    if runtime.first_process():
        out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(out.parent / "metrics.jsonl", read_lines(folder / "metrics.jsonl"))
    runtime.write_json(folder / "summary.json", summary)
    runtime.write_json(out, summary)
