"""Programs of JAX in processes of their own, forked from one that has imported it: to import takes
longer than most of them compute."""

import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = ("jax", "jax.experimental.multihost_utils", "numpy", "optax", "orbax.checkpoint")


class Program:
    """A started program, as subprocess.Popen has it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.returncode: int | None = None

    def poll(self) -> int | None:
        ended = self.folder / "ended"
        if self.returncode is None and ended.exists():
            self.returncode = os.waitstatus_to_exitcode(int(ended.read_text()))
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.folder), timeout)
            time.sleep(0.005)
        return (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks. Its programs have its environment and what else they are given."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="preforked-")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, program: Path, words: Sequence[str], environment: Mapping[str, str]) -> Program:
        assert self.process.stdin and self.process.stdout
        folder = tempfile.mkdtemp(dir=self.folder.name)
        request = {"words": [str(program), *words], "environment": environment, "folder": folder}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Program(int(self.process.stdout.readline()), Path(folder))

    def close(self) -> None:
        self.process.communicate()
        self.folder.cleanup()


def become(words: list[str], environment: dict[str, str], folder: str) -> None:
    """In the fork: do what `python PROGRAM ...` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environment)
    for name in environment:
        if name.startswith("JAX_"):  # which JAX reads when it is imported
            sys.modules["jax"].config.update(name.lower(), json.loads(environment[name]))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    if pause := float(environment.get("SECONDS_TO_PRINT", 0)):
        print_slowly(pause)
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def print_slowly(pause: float) -> None:
    """Have each print() to a program's output that is flushed take so many seconds."""
    flush = sys.stdout.flush

    def flush_late() -> None:
        time.sleep(pause)
        flush()

    sys.stdout.flush = flush_late  # type: ignore[method-assign]


def serve() -> None:
    """Fork for each line of input, until it ends."""
    folders: dict[int, str] = {}

    def note_ends(*_: Any) -> None:
        """Each ended child once: another one's signal may come in the midst of this."""
        with contextlib.suppress(ChildProcessError):  # there is none
            while any(ended := os.waitpid(-1, os.WNOHANG)):
                pid, status = ended
                part = Path(folders.pop(pid), "part")
                part.write_text(str(status))
                part.rename(part.with_name("ended"))

    for module in PRELOADED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, note_ends)
    for line in sys.stdin:
        request = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # before it is in `folders`
        pid = os.fork()
        if not pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            become(**request)
            return
        folders[pid] = request["folder"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
