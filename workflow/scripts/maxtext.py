"""Run the MaxText of the container as a training.

Its own log becomes the metrics, its own checkpoints let the next job go on. Knows the MaxText of
October 2024, which images have in /opt/maxtext, and the package ``maxtext``.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import command
from jaxway_job import runtime, training_state

OPTIONS: dict[str, dict[str, Any]] = {
    "model_name": {
        "type": "string",
        "default": "gpt3-52k",
        "description": "one of MaxText's configs/models",
    },
    "steps": {"type": "integer", "minimum": 1, "default": 100, "description": "steps in all"},
    "per_device_batch_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 2,
        "description": "sequences per step and device",
    },
    "max_target_length": {
        "type": "integer",
        "minimum": 1,
        "default": 2048,
        "description": "length of a sequence, in tokens",
    },
    "dataset_type": {
        "type": "string",
        "enum": ["synthetic", "tfds", "grain", "hf"],
        "default": "synthetic",
        "description": "where the data come from; any but synthetic needs more in settings",
    },
    "checkpoint_period": {
        "type": "integer",
        "minimum": 1,
        "default": 100,
        "same": False,
        "description": "steps between checkpoints",
    },
    "fsdp": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "same": False,
        "description": "devices over which parameters and optimizer are split",
    },
    "tensor": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "same": False,
        "description": "devices over which matrices are split; the rest of all share the batch",
    },
    "settings": {
        "type": "string",
        "default": "",
        "description": "further settings of MaxText: key=value words",
    },
}
MARGIN = 120  # seconds before the deadline at which MaxText is told to save and end
HOME = Path(os.environ.get("MAXTEXT_HOME", "/opt/maxtext"))
RUN = "run"  # name of the folder that MaxText makes in the state
NUMBER = r"([-+.\w]+)"
LINE = re.compile(
    rf"completed step: (\d+), seconds: {NUMBER}, TFLOP/s/device: {NUMBER}, "
    rf"Tokens/s/device: {NUMBER}, .*?\bloss: {NUMBER}"
)


def entry_point() -> tuple[list[str], Path, Path | None]:
    """Words that start MaxText, its basic configuration, and the folder where to start it."""
    base = HOME / "MaxText/configs/base.yml"
    if base.exists():
        return [sys.executable, "MaxText/train.py", "MaxText/configs/base.yml"], base, HOME
    # This file has the package's name, and lies where Python looks first.
    sys.path[:] = [path for path in sys.path if not Path(path, "maxtext.py").exists()]
    package = importlib.util.find_spec("maxtext")
    if not package or not package.submodule_search_locations:
        runtime.fail(f"there is no MaxText here: neither {HOME}/MaxText nor a package maxtext")
    base = Path(package.submodule_search_locations[0], "configs/base.yml")
    return [sys.executable, "-m", "maxtext.trainers.pre_train.train", str(base)], base, None


def settings(args: argparse.Namespace, folder: Path, base: Path) -> list[str]:
    """All settings as ``key=value`` words. Of ours only those that this MaxText knows."""
    ours = {
        "run_name": RUN,
        "base_output_directory": folder,
        "jax_cache_dir": folder / "compilation_cache",  # its default is in the home folder
        "hardware": "gpu_multiprocess" if runtime.place(args).processes > 1 else "gpu",
        "model_name": args.model_name,
        "steps": args.steps,
        "per_device_batch_size": args.per_device_batch_size,
        "max_target_length": args.max_target_length,
        "dataset_type": args.dataset_type,
        "ici_data_parallelism": -1,
        "ici_fsdp_parallelism": args.fsdp,
        "ici_tensor_parallelism": args.tensor,
        "enable_checkpointing": True,
        "async_checkpointing": True,
        "checkpoint_period": args.checkpoint_period,
        "enable_autocheckpoint": True,  # newer: save when told to end; older: always do
        "max_num_checkpoints_to_keep": 2,  # newer; older: keep all
        "enable_goodput_recording": False,  # both would write to Google Cloud
        "monitor_goodput": False,
    }
    try:
        words = shlex.split(args.settings)
    except ValueError as error:
        runtime.fail(f"settings: {error}")
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key in ours:
            runtime.fail(f"settings: {word} is " + ("set already" if equals else "no key=value"))
    known = {line.partition(":")[0] for line in base.read_text().splitlines()}
    return [f"{key}={value}" for key, value in ours.items() if key in known] + words


def environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Environment that makes MaxText start JAX's distributed service, also in one process.

    Only with it does SIGTERM make MaxText save and end.
    """
    result = command.environment(args, folder)
    here = runtime.place(args)
    if here.processes == 1:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        result |= {
            "JAX_COORDINATOR_IP": "localhost",
            "JAX_COORDINATOR_PORT": str(port),
            "NNODES": "1",
            "NODE_RANK": "0",
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, here.local_devices)),
        }
    return result


def saved_steps(folder: Path) -> int:
    """Steps that the newest finished checkpoint holds. MaxText counts them from 0."""
    found = (folder / RUN / "checkpoints").glob("*")
    return max((int(path.name) + 1 for path in found if path.name.isdecimal()), default=0)


class Log:
    """Passes MaxText's log on, and notes what it and the checkpoints say."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.folder, self.devices = folder, args.devices
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.rest = b""
        self.step = 0
        self.note_checkpoint()
        self.progress = command.Progress(args, folder)
        self.stop = (training_state.deadline() or math.inf) - MARGIN

    def note_checkpoint(self) -> None:
        step = saved_steps(self.folder)
        if step != training_state.safe_step(self.folder):
            training_state.write(self.folder / "step", f"{step}\n")

    def look(self, child: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.read, 65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
                *lines, self.rest = (self.rest + chunk).split(b"\n")
                for line in lines:
                    self.note(line.decode(errors="replace"))
        self.note_checkpoint()
        self.progress.look()
        if time.time() > self.stop:
            self.stop = math.inf
            signal.raise_signal(signal.SIGTERM)

    def note(self, line: str) -> None:
        """Add a line of the log to the metrics, if it is of a step."""
        if not (found := LINE.search(line)):
            return
        self.step = int(found[1]) + 1
        seconds, tflops, tokens, loss = map(float, found.groups()[1:])
        if not math.isfinite(loss):
            runtime.fail(f"the loss is {loss} at step {self.step}")
        if runtime.first_process():
            metrics = {
                "step": self.step,
                "loss": loss,
                "step_seconds": seconds,
                "tokens_per_second": tokens * self.devices,
                "tflops_per_device": tflops,
            }
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")


def main() -> None:
    """Run MaxText, and end as it does."""
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_argument(parser)
    args = parser.parse_args()
    runtime.check_container(args)
    start, base, home = entry_point()
    with training_state.opened(args) as folder:
        if training_state.finished(folder, args.out):
            return
        log = Log(args, folder)
        words = start + settings(args, folder, base)
        if saved_steps(folder) < args.steps:
            output = {"stdout": log.write, "stderr": subprocess.STDOUT, "cwd": home}
            code, told = command.run(words, environment(args, folder), log.look, **output)
            if told and log.step < args.steps:
                training_state.to_be_continued(f"MaxText was told to end, with exit code {code}")
            if code in command.SIGNALS:
                sys.exit(code)
            if code:
                runtime.fail(f"MaxText ended with exit code {code}; see the log")
        metrics = training_state.read_lines(folder / "metrics.jsonl")
        rates = [line["tokens_per_second"] for line in metrics]
        summary = {
            "program": "maxtext",
            "command": words,
            **log.progress.summary(),
            "steps": args.steps,
            "loss": metrics[-1]["loss"] if metrics else None,
            "tokens_per_second": statistics.median(rates) if rates else None,
        }
        training_state.finish(folder, args.out, summary)


if __name__ == "__main__":
    main()
