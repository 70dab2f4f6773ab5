"""What `jaxway check-program` finds, with scripts in place of the program that starts a command."""

import os
import signal
import subprocess
import sys

import pytest
from jaxway.preflight import program
from jaxway.preflight.program import Trial
from jaxway.processes import with_descendants

START = """
import os, pathlib, signal, sys, time
state = pathlib.Path(sys.argv[1])
def save(step):
    with (state / "metrics.jsonl").open("a") as metrics:
        print('{"step": %d}' % step, file=metrics)
    (state / "last_checkpoint_step").write_text(str(step))
try: step = int((state / "last_checkpoint_step").read_text())
except FileNotFoundError: step = 0
def end(code):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
"""
FOR_EVER = """
while True:
    save(step := step + 1)
    signal.pause() if step % 2 else None
"""
IN_STEPS = FOR_EVER.replace("signal.pause() if step % 2 else None", "time.sleep(0.05)")


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()


def check(tmp_path, script, pattern=None, timeout_s=20.0, stop_s=20.0):
    """Findings by their subjects, as their statuses and messages."""
    state = tmp_path / "state"
    state.mkdir()
    words = [sys.executable, "-S", "-E", "-c", START + script, str(state)]
    found = program.check(Trial(words, state, pattern, timeout_s, stop_s))
    return {x.subject: f"{x.status.value} {x.message}" for x in found}


def test_program_that_resumes(tmp_path):
    found = check(tmp_path, "end(75)" + FOR_EVER)
    assert found["start"].startswith("PASS checkpoint of step 1 after ")
    assert found["stop"].startswith("PASS ended ")
    assert found["stop"].endswith(" after SIGTERM, to be resumed, checkpoint of step 1")
    assert found["resume"].startswith("PASS from step 1 to ")


def test_program_that_finishes_when_it_is_resumed(tmp_path):
    found = check(tmp_path, "end(143)\nif step: sys.exit()" + FOR_EVER)
    assert "exit code 143" in found["stop"]
    assert found["resume"].startswith("PASS finished at step 1 after ")


@pytest.mark.parametrize(
    ("script", "subject", "expected"),
    [
        ("sys.exit(3)", "start", "exit code 3"),
        ("sys.exit()", "start", "without a checkpoint (last_checkpoint_step)"),
        ("end(0)" + FOR_EVER, "stop", "exit code 0 after SIGTERM means finished"),
        ("step = 0\nend(75)" + IN_STEPS, "resume", "which were saved, are done again"),
        ("end(75)\nif step: sys.exit(4)" + FOR_EVER, "resume", "exit code 4"),
    ],
)
def test_what_does_not_hold(tmp_path, script, subject, expected):
    found = check(tmp_path, script)
    assert list(found)[-1] == subject
    assert found[subject].startswith("FAIL ") and expected in found[subject]


def test_program_that_ends_with_its_checkpoint(tmp_path, monkeypatch):
    """It has ended when that is seen."""
    ended = lambda trial, after: trial.process.wait() == 0  # noqa: E731
    monkeypatch.setattr(Trial, "wait_for_checkpoint", ended)
    found = check(tmp_path, "save(1)")
    assert list(found)[-1] == "stop"
    assert found["stop"].startswith("FAIL ") and "let it last longer" in found["stop"]


def test_error_that_would_end_the_chain(tmp_path):
    script = "def end(*_):\n    (state / 'error').write_text('x: it broke [JW311]'); os._exit(1)\n"
    found = check(tmp_path, script + "signal.signal(signal.SIGTERM, end)" + FOR_EVER)
    assert "it broke" in found["stop"] and "exit with 75 or by the signal" in found["stop"]
    assert "resume" not in found


def test_program_without_a_checkpoint_is_ended(tmp_path):
    script = "(state / 'process').write_text(str(os.getpid()))\nsignal.pause()"
    found = check(tmp_path, script, timeout_s=0.5)
    assert found["start"].startswith("FAIL no checkpoint within ")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "state/process").read_text()), 0)


def test_program_that_ignores_sigterm(tmp_path):
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" + FOR_EVER
    found = check(tmp_path, script, stop_s=0.2)
    assert found["stop"].startswith("WARN still runs ")
    assert found["resume"].startswith("PASS ")


def test_own_checkpoints_that_are_written_again(tmp_path):
    """The number of the newest one says nothing then."""
    own = """
def save(step):
    (state / f"c{step}").touch()
    newest = max(int(path.name[1:]) for path in state.glob("c*"))
    (state / "last_checkpoint_step").write_text(str(newest))
"""
    found = check(tmp_path, own + "step = 0\nend(75)" + IN_STEPS, pattern="c{step}")
    assert found["resume"].startswith("FAIL steps up to ")


def test_processes_below_one_are_found():
    script = "import os, signal; os.fork(); os.fork(); print(1, flush=True); signal.pause()"
    words = [sys.executable, "-S", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        below = with_descendants([process.pid])[1:]
        for each in [*below, process.pid]:
            os.kill(each, signal.SIGKILL)
    assert len(below) == 3
