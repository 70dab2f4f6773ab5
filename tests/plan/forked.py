"""Snakemake, forked from a process that has imported it: that takes longer than to plan.

`python forked.py serve SOCKET PATHS` is that process, and ends with the one that started it. Tests
ask it by `snakemake()`, and jobs by `python forked.py ask SOCKET ARGUMENTS...`.
"""

import atexit
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

TESTS = str(Path(__file__).parents[1])
FORK = multiprocessing.get_context("fork")
OURS = ("jaxway", "jaxway_shared")
PRELOADED = (
    *("snakemake.cli", "snakemake.report.html_reporter", "snakemake_logger_plugin_rich.handler"),
    *("smart_open", "jaxway.job_functions", "jaxway.preflight.plan"),
)


@functools.cache
def server() -> tuple[tempfile.TemporaryDirectory[str], subprocess.Popen[bytes]]:
    """The folder of its socket, and the process."""
    folder = tempfile.TemporaryDirectory()
    words = [sys.executable, __file__, "serve", f"{folder.name}/socket", json.dumps(sys.path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline(), "it has not started"
    return folder, process


def address() -> str:
    """The server's socket."""
    return f"{server()[0].name}/socket"


def asking() -> str:
    """What replaces `python -m snakemake` in a job's command line."""
    return shlex.join([sys.executable, __file__, "ask", address()]) + " "


def snakemake(*words: str, folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run Snakemake; what it printed, and its exit code."""
    with tempfile.TemporaryDirectory() as output:
        files = [f"{output}/{name}" for name in ("stdout", "stderr")]
        code = request(address(), [*words], str(folder), {**environment}, files)
        printed = [Path(file).read_text() for file in files]
    return CompletedProcess(words, code, *printed)


def request(
    path: str, words: list[str], folder: str, environment: dict[str, str], files: list[str]
) -> int:
    """Have the server run Snakemake; its exit code."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
        connection.connect(path)
        print(json.dumps([words, folder, environment, files]), file=stream, flush=True)
        return int(stream.readline())


def serve(path: str, paths: list[str]) -> None:
    """Answer each request in a process of its own, until standard input is closed."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        sys.path[:] = paths
        for name in PRELOADED:
            importlib.import_module(name)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork() == 0:
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> NoReturn:
    """Run Snakemake in a child, and send its exit code."""
    with connection.makefile("rw") as stream:
        child = FORK.Process(target=become, args=json.loads(stream.readline()))
        child.start()
        child.join()
        print(child.exitcode, file=stream)
    os._exit(0)  # else Python would take a second to tidy up


def become(words: list[str], folder: str, environment: dict[str, str], files: list[str]) -> None:
    """Do what `python -m snakemake` would."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["snakemake", *words]
    paths = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = ["", *paths, *(path for path in sys.path if not path.startswith(TESTS))]
    if paths:  # another checkout's packages
        for name in [each for each in sys.modules if each.split(".")[0] in OURS]:
            del sys.modules[name]
    try:
        runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


if __name__ == "__main__":
    _, command, path, *words = sys.argv
    if command == "serve":
        serve(path, json.loads(words[0]))
    else:
        files = [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)]
        sys.exit(request(path, words, os.getcwd(), {**os.environ}, files))
