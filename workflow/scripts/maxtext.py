"""Run the MaxText of the container as a training.

Its log becomes the metrics, and the next job resumes from its checkpoints. Works with the MaxText
of October 2024, which images have in /opt/maxtext, and with the package ``maxtext``.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
from jaxway_job import runtime, training_state
from jaxway_shared import own_checkpoints, training
from jaxway_shared.errors import fail

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
        "description": "source of the data; any but synthetic needs more in settings",
    },
    "checkpoint_period": {
        "type": "integer",
        "minimum": 1,
        "default": 100,
        "affects_result": False,
        "description": "steps between checkpoints",
    },
    "fsdp": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "affects_result": False,
        "description": "devices over which parameters and optimizer state are sharded",
    },
    "tensor": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "affects_result": False,
        "description": "devices over which matrices are sharded; the others share the batch",
    },
    "settings": {
        "type": "string",
        "default": "",
        "description": "further settings of MaxText: key=value words",
    },
}
SHUTDOWN_MARGIN_S = 120  # before the deadline, when MaxText is asked to save and exit
HOME = Path(os.environ.get("MAXTEXT_HOME", "/opt/maxtext"))
RUN_NAME = "run"  # name of the folder that MaxText makes in the state
NUMBER = r"([-+.\w]+)"
EVALUATION_RE = re.compile(  # October 2024's, today's; numpy may write np.int64(9)
    rf"average loss after step=\D*(?:64\()?(\d+)\)?: .*?\beval_loss={NUMBER}"
    rf"|Completed eval after train step (\d+), loss={NUMBER}"
)
STEP_RE = re.compile(
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
        fail("JW313", f"there is no MaxText here: neither {HOME}/MaxText nor a package maxtext")
    base = Path(package.submodule_search_locations[0], "configs/base.yml")
    return [sys.executable, "-m", "maxtext.trainers.pre_train.train", str(base)], base, None


def checkpoint_period(args: argparse.Namespace, saved: int) -> int:
    """Steps between checkpoints, after so many that a checkpoint holds.

    MaxText saves after its step 0 and each multiple of the period; that of October 2024 not after
    the last one. So when no more steps are left than a period has, it is the last one that counts.
    """
    left = args.steps - saved
    return args.checkpoint_period if left > args.checkpoint_period else max(1, args.steps - 1)


def settings(args: argparse.Namespace, folder: Path, base: Path) -> list[str]:
    """All settings as ``key=value`` words; of those set here only what this MaxText knows."""
    fixed = {
        "run_name": RUN_NAME,
        "base_output_directory": folder,
        "jax_cache_dir": folder / "compilation_cache",  # its default is in the home folder
        "hardware": "gpu_multiprocess" if runtime.process_topology(args).processes > 1 else "gpu",
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
        "checkpoint_period": checkpoint_period(args, saved_steps(folder)),
        "enable_autocheckpoint": True,  # newer: save on SIGTERM; older: always does
        "max_num_checkpoints_to_keep": 2,  # newer; older: keeps all
        "enable_goodput_recording": False,  # both would write to Google Cloud
        "monitor_goodput": False,
    }
    try:
        words = shlex.split(args.settings)
    except ValueError as error:
        fail("JW314", f"settings: {error}")
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key in fixed:
            problem = "is set already" if equals else "is no key=value"
            fail("JW314", f"settings: {word} {problem}")
    known = {line.partition(":")[0] for line in base.read_text().splitlines()}
    return [f"{key}={value}" for key, value in fixed.items() if key in known] + words


def environment(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Environment that makes MaxText start JAX's distributed service, also in one process.

    Only with it does SIGTERM make MaxText save and exit.
    """
    result = command.environment(args, folder)
    if args.platform != "cuda":
        # By a program for CPUs that JAX 0.4.33 takes from its cache, the MaxText of October 2024
        # corrupted memory and aborted each time it resumed.
        result["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    topology = runtime.process_topology(args)
    if topology.processes == 1:
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        result |= {
            "JAX_COORDINATOR_IP": "localhost",
            "JAX_COORDINATOR_PORT": str(port),
            "NNODES": "1",
            "NODE_RANK": "0",
            "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, topology.local_devices)),
        }
    return result


def saved_steps(folder: Path) -> int:
    """Steps that the newest finished checkpoint holds. MaxText counts them from 0."""
    found = own_checkpoints.find(folder, f"{RUN_NAME}/checkpoints/{own_checkpoints.STEP}")
    return max(found, default=-1) + 1


def parse_line(line: str, devices: int) -> dict[str, float] | None:
    """Metrics of a step that a line of MaxText's log is about; None, it is about none.

    Another thread may have written into the line: it is skipped unless all numbers are numbers.
    """
    with contextlib.suppress(ValueError):
        if found := STEP_RE.search(line):
            seconds, tflops, tokens, loss = map(float, found.groups()[1:])
            return {
                "step": int(found[1]) + 1,
                "loss": loss,
                "step_seconds": seconds,
                "tokens_per_second": tokens * devices,
                "tflops_per_device": tflops,
            }
        if found := EVALUATION_RE.search(line):
            step, loss = filter(None, found.groups())
            return {"step": int(step) + 1, "validation_loss": float(loss)}
    return None


class LogReader:
    """Passes MaxText's log on, and records the metrics and checkpoints that it is about."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.folder, self.devices = folder, args.devices
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.incomplete_line = b""
        self.checkpoints = command.OwnCheckpoints(
            folder, lambda: saved_steps(folder), SHUTDOWN_MARGIN_S
        )
        self.progress = command.Progress(args, folder)

    def poll(self) -> None:
        """Read what is new, and ask MaxText to stop when it is time to."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.read_end, 65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
                *lines, self.incomplete_line = (self.incomplete_line + chunk).split(b"\n")
                for line in lines:
                    self.record_metrics(line.decode(errors="replace"))
        self.checkpoints.poll()
        self.progress.poll()

    def record_metrics(self, line: str) -> None:
        """Add a line of the log to the metrics, if it is about a step."""
        metrics = parse_line(line, self.devices)
        if metrics is None:
            return
        for name in metrics.keys() & {"loss", "validation_loss"}:
            if not math.isfinite(metrics[name]):
                fail("JW305", f"the {name} is {metrics[name]} at step {metrics['step']}")
        training_state.append_metrics(self.folder, metrics)


def run(args: argparse.Namespace, words: list[str], home: Path | None, log: LogReader) -> None:
    """Run MaxText up to its last step. Ends the program if it does not get there."""
    output = {"stdout": log.write_end, "stderr": subprocess.STDOUT, "cwd": home}
    code, terminated = command.run(words, environment(args, log.folder), log.poll, **output)
    if terminated and saved_steps(log.folder) < args.steps:
        training_state.exit_for_resubmission(
            f"MaxText was asked to stop and exited with code {code}"
        )
    if code in command.EXIT_SIGNALS:
        sys.exit(code)
    if code:
        fail("JW311", f"MaxText exited with code {code}; see the log")


def main() -> None:
    """Run MaxText, and end as it does."""
    parser = runtime.parser(__doc__.splitlines()[0], OPTIONS)
    training_state.add_arguments(parser)
    args = parser.parse_args()
    runtime.check_container(args)
    start, base, home = entry_point()
    identity = training_state.identity_of(args, "maxtext", OPTIONS)
    with training_state.locked_state(args, identity) as folder:
        if training_state.rewrite_results(folder, args.out):
            return
        log = LogReader(args, folder)
        words, saved, before = start + settings(args, folder, base), saved_steps(folder), -1
        while before < saved < args.steps:  # once more where the last step was not saved
            training_state.drop_metrics_after(folder, saved)
            run(args, words, home, log)
            saved, before = saved_steps(folder), saved
            words = start + settings(args, folder, base)
        lines = training.read_metrics(folder / training.METRICS)
        steps = [line.numbers for line in lines if "loss" in line.numbers]
        summary = log.progress.summary(
            "maxtext",
            words,
            saved,
            loss=steps[-1]["loss"] if steps else None,
            tokens_per_second=(
                statistics.median(each["tokens_per_second"] for each in steps) if steps else None
            ),
        )
        training_state.write_results(folder, args.out, summary)


if __name__ == "__main__":
    main()
