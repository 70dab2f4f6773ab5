"""`jaxway follow`: what it prints, on a terminal and elsewhere, and when it ends."""

import argparse
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jaxway.config.load import add_arguments
from run_folder import METRICS, PROGRESS, log, submit, train

ROOT = Path(__file__).parents[3]


def command_line(
    folder: Path, profile: str = "jureca", configfile: str = "config.yaml"
) -> tuple[list[str], dict[str, str]]:
    """The command line, and its environment: no account, as in a terminal that submits nothing."""
    (folder / "config.yaml").write_text("train: {gpt: {program: maxtext, steps: 10000}}\n")
    words = [sys.executable, f"{ROOT}/workflow/jaxway", "follow"]
    words += [f"--profile={ROOT}/profiles/{profile}", f"--configfile={configfile}"]
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return words, {**kept, "SCRATCH": str(folder / "work"), "USER": "alice"}


def follow(folder: Path, *more: str, **options: str) -> subprocess.CompletedProcess[str]:
    words, environment = command_line(folder, **options)
    return subprocess.run(
        [*words, *more], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_terminal_it_prints_once(folder) -> None:
    submit()
    submit(id="18", comment="rule_smoke_test", state="PENDING", start="N/A")
    (folder / "pending").write_text("dc-gpu 18\n")
    (folder / "work/alice/jaxway").mkdir(parents=True)
    (folder / "scratch").symlink_to("work/alice/jaxway")
    train(METRICS)
    done = follow(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"train gpt   {PROGRESS}; job 17 runs on jrc0101 for 41:10, 23:18:50 left; "
        "https://llview.fz-juelich.de/jurecadc/17\n"
        "smoke_test  pending as job 18, position 1 of 1 in dc-gpu\n"
    )


def test_folder_without_a_run_is_named(folder) -> None:
    """What there is of earlier ones is written for TensorBoard."""
    state = train(METRICS)
    link = folder / "results/train/gpt/state"
    link.parent.mkdir(parents=True)
    link.symlink_to(state.absolute())
    done = follow(folder, "--tensorboard=events")
    assert (done.returncode, done.stdout) == (0, f"no run in {folder}\n")
    assert [*(folder / "events").glob(f"{state.name}/events.*")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"configfile": "none.yaml"}, "none.yaml cannot be used: [Errno 2] No such file"),
        ({"profile": "none"}, "/profiles/none or config.yaml cannot be used: [Errno 2]"),
    ],
)
def test_missing_configuration_is_one_sentence(folder, options, sentence) -> None:
    done = follow(folder, **options)
    assert done.returncode == 1
    assert done.stderr.startswith("jaxway follow: ") and sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_missing_squeue_is_one_sentence(folder, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = follow(folder)
    assert (done.returncode, done.stderr) == (
        1,
        "jaxway follow: there is no squeue in PATH [JW552]\n",
    )


class Terminal:
    """The command on a terminal."""

    def __init__(self, folder: Path) -> None:
        self.reader, writer = pty.openpty()
        words, environment = command_line(folder)
        environment |= {"TERM": "xterm", "COLUMNS": "80", "LINES": "20"}
        self.process = subprocess.Popen(
            words, env=environment, stdin=writer, stdout=writer, stderr=writer
        )
        os.close(writer)
        self.output = ""

    def read(self, until: str | None = None) -> str:
        """Read until this is there, or to the end; a minute at most."""
        deadline = time.monotonic() + 60
        while until is None or until not in self.output:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.reader], [], [], left)[0], self.output
            try:
                self.output += os.read(self.reader, 65536).decode()
            except OSError:  # the program has ended
                break
        assert until is None or until in self.output
        return self.output

    def end(self) -> int:
        """Exit code, after all has been read."""
        self.read()
        os.close(self.reader)
        return self.process.wait(60)


def test_on_a_terminal_it_refreshes_until_ctrl_c(folder) -> None:
    submit(comment="rule_smoke_test")
    log("smoke_test.log", "one\n")
    terminal = Terminal(folder)
    terminal.read(until="one")
    log("smoke_test.log", "two\n")
    terminal.read(until="two")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.output


def test_on_a_terminal_it_ends_with_the_run(folder, lock) -> None:
    log("pull.log", "a long line " * 20)
    terminal = Terminal(folder)
    terminal.read(until="a long line")
    lock.close()
    assert terminal.end() == 0
    assert terminal.output.rstrip().endswith("the run has ended")
    assert "pull" in terminal.output and "…" in terminal.output  # cut: one line for a job


def test_defaults_are_those_of_this_repository() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([])
    assert args.profile == ROOT / "profiles/local"
    assert args.configfile == ROOT / "config/config.yaml"
