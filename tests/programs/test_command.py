import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import command
import pytest
from jaxway_job import runtime
from jaxway_shared.training import TrainingState

PROGRAM = Path(command.__file__)
DOCS = (PROGRAM.parents[2] / "docs/programs.md").read_text()
EXAMPLE = DOCS.partition("```python\n")[2].partition("```")[0]


def test_a_program_is_started_without_jax():
    """To import it takes a second."""
    code = "import sys, command, maxtext; print(*sys.modules)"
    words = [sys.executable, "-c", code]
    loaded = subprocess.run(words, cwd=PROGRAM.parent, capture_output=True, text=True, check=True)
    assert not {"jax", "optax", "orbax", "scipy"} & {*loaded.stdout.split()}


class Training:
    """A training in a folder of its own, whose command is a script that the test writes."""

    def __init__(self, folder):
        self.folder, self.state, self.out = folder, folder / "state", folder / "out/summary.json"
        self.state.mkdir()

    def start(self, script, devices=1, options=(), **environment):
        (self.folder / "script.py").write_text(script)
        words = f"{sys.executable} '{self.folder}/script.py' --lr 1e-3"
        return self.start_words(words, devices, options, **environment)

    def start_words(self, words, devices=1, options=(), **environment):
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "JAX"))}
        flags = ["--platform=cpu", f"--devices={devices}", f"--state={self.state}", *options]
        return subprocess.Popen(
            [sys.executable, PROGRAM, *flags, f"--command={words}", f"--out={self.out}"],
            env={**outer, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, code=0, **environment):
        return wait(self.start(script, **environment), code)

    def until(self, process, name):
        """Wait until the script has written a file of the state."""
        while not (self.state / name).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)

    def segments(self):
        segments = json.loads((self.state / "segments.json").read_text())["segments"]
        return [(s["first_step"], s["last_step"]) for s in segments]

    def writer(self):
        return TrainingState.read(self.state).writer()

    def error(self):
        path = self.state / "error"
        return path.read_text() if path.exists() else None


def wait(process, code=0):
    """Wait for a program, and return what it printed."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stdout + stderr
    return stdout + stderr


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


STEP = "import os, pathlib; state = pathlib.Path(os.environ['JAXWAY_STATE'])\n"


def test_the_documented_example_resumes_and_finishes(training):
    output = training.run(EXAMPLE, 75, JAXWAY_DEADLINE="1")
    assert "the command exited with code 75, can be resumed" in output
    assert not training.out.exists() and training.error() is None
    assert (training.state / "last_checkpoint_step").read_text() == "10"
    # As a kill before the next checkpoint leaves them.
    with (training.state / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 7}\n{"step": 12, "lo')
    training.run(EXAMPLE)
    metrics = (training.out.parent / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in metrics]
    assert [line["step"] for line in metrics] == list(range(10, 101, 10))
    assert metrics[-1]["loss"] < 1e-12 < metrics[0]["loss"] < 1
    summary = json.loads(training.out.read_text())
    assert (summary["program"], summary["steps"]) == ("command", 100)
    assert summary["command"][-2:] == ["--lr", "1e-3"]
    assert summary["provenance"]["arguments"]["platform"] == "cpu"
    assert summary["seconds"] == sum(s["seconds"] for s in summary["segments"]) > 0
    assert training.segments() == [(1, 10), (11, 100)]


# Keeps its own checkpoints, of which one is complete when the file `done` is in it.
TRAINER = f"""{STEP}import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
step = max((int(x.parent.name) for x in state.glob("run/*/done")), default=0)
while step < 6:
    step += 2
    (state / f"run/{{step}}").mkdir(parents=True)
    if step == 6 and not (state / "stopped").exists():
        (state / "stopped").touch()
        signal.sigwait([signal.SIGTERM])
        sys.exit()
    (state / f"run/{{step}}/done").touch()"""


def test_program_that_keeps_its_own_checkpoints(training):
    """It does not say that it is to be resumed: exit code 0 would mean finished."""
    options = ["--checkpoints=run/{step}/done", "--stop-seconds=60"]
    soon = str(time.time() + 60)
    job = training.start(TRAINER, options=options, JAXWAY_DEADLINE=soon)
    assert "the command exited with code 0, can be resumed" in wait(job, 75)
    assert not training.out.exists() and training.error() is None
    (training.state / "run/6").rmdir()
    wait(training.start(TRAINER, options=options))
    assert training.segments() == [(1, 4), (5, 6)]
    assert json.loads(training.out.read_text())["steps"] == 6


def test_finished_state_is_not_run_again(training):
    training.run("print('ran')")
    summary = json.loads(training.out.read_text())
    assert summary["steps"] is None
    training.out.unlink()
    assert "ran" not in training.run("print('ran')")
    assert json.loads(training.out.read_text()) == summary


def test_error_is_recorded_and_cleared_by_the_next_start(training):
    output = training.run("print('why', flush=True); raise SystemExit(3)", 1)
    sentence = "command.py: the command exited with code 3; see the log [JW311]\n"
    assert output == f"why\n{sentence}" and training.error() == sentence
    assert not training.out.exists()
    training.run("")
    assert training.error() is None and training.out.exists()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import os; os.kill(os.getpid(), 15)", 143),
        ("raise SystemExit(137)", 137),
    ],
)
def test_program_killed_by_a_signal_has_no_error(training, script, code):
    training.run(f"{STEP}(state / 'last_checkpoint_step').write_text('4')\n{script}", code)
    assert training.error() is None and not training.out.exists()
    assert training.segments() == [(1, 4)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_forwarded_to_the_program(training, number):
    script = f"""{STEP}import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
(state / "ready").touch()
assert signal.sigwait([{int(number)}]) == {int(number)}
(state / "last_checkpoint_step").write_text("8")
raise SystemExit(75)"""
    process = training.start(script)
    training.until(process, "ready")
    process.send_signal(number)
    wait(process, 75)
    assert training.segments() == [(1, 8)]


# Saves a second after SIGTERM, when whoever started it has long been ended by that, and needs
# the process that reads its data.
SLOW_TO_SAVE = f"""{STEP}import signal, subprocess, sys, time
worker = subprocess.Popen(["sleep", "1000"])
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1)
    assert worker.poll() is None
    (state / "last_checkpoint_step").write_text("8")
    os._exit(75)
signal.signal(signal.SIGTERM, save)
(state / "ready").touch()
while True: signal.pause()"""


@pytest.mark.parametrize(
    "words",
    [
        "bash -c 'python3 script.py; echo ended'",
        "bash -c 'python3 script.py | tee log'",
        "bash -c 'python3 script.py & wait'",
        "sh wrapper.sh",
    ],
)
def test_a_program_behind_a_shell_is_told_and_waited_for(training, monkeypatch, words):
    monkeypatch.chdir(training.folder)
    Path("script.py").write_text(SLOW_TO_SAVE)
    Path("wrapper.sh").write_text("python3 script.py\n")
    process = training.start_words(words)
    training.until(process, "ready")
    process.terminate()
    wait(process, 143)
    assert training.segments() == [(1, 8)]
    assert training.writer() is None


def test_what_a_program_leaves_behind_is_ended(training):
    words = f"bash -c 'sleep 1000 & echo $! > {training.state}/left'"
    wait(training.start_words(words))
    left = (training.state / "left").read_text().strip()
    assert not Path(f"/proc/{left}").exists()


def test_what_ignores_sigterm_is_killed(training):
    """After 300 s; the program is given less here."""
    words = ["bash", "-c", 'trap "" TERM; sleep 1000 & echo $!']
    code = f"import command; command.GROUP_WAIT_S = 0; print(command.run({words}, {{}}, bool))"
    line = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parent)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    left, result = done.stdout.split("\n")[:2]
    assert result == "(0, False)", done.stderr
    assert not Path(f"/proc/{left}").exists()


def test_a_daemon_of_the_program_does_not_keep_the_lock(training):
    """As that of a tracker, which begins a session of its own."""
    file = training.state / "daemon"
    daemon = f"setsid sh -c 'echo $$ > {file}; exec sleep 1000' > /dev/null 2>&1 &"
    script = f"{daemon} until [ -s {file} ]; do :; done; exit 75"
    wait(training.start_words(shlex.join(["bash", "-c", script])), 75)
    process = int(file.read_text())
    assert Path(f"/proc/{process}").exists()
    try:
        assert training.writer() is None
    finally:
        os.kill(process, signal.SIGKILL)


def test_segment_is_kept_when_all_processes_are_killed(training):
    script = (
        f"{STEP}(state / 'last_checkpoint_step').write_text('5')\nimport signal; signal.pause()"
    )
    process = training.start(script)
    while not (training.state / "segments.json").exists() or training.segments() != [(1, 5)]:
        assert process.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    wait(process, -signal.SIGKILL)
    assert training.segments() == [(1, 5)]


def test_state_whose_step_has_the_old_name_is_refused(training):
    """As a program leaves it that was written for the name before."""
    training.run(f"{STEP}(state / 'step').write_text('4')\nraise SystemExit(75)", 75)
    output = training.run("", 1)
    assert "has a file `step`, which is called `last_checkpoint_step` now: rename it" in output


def test_state_has_one_writer(training):
    script = f"{STEP}(state / 'ready').touch()\nimport signal; signal.pause()"
    process = training.start(script)
    training.until(process, "ready")
    assert f"is in use by host {os.uname().nodename}" in training.run("", 1)
    assert training.error() is None
    process.terminate()
    wait(process, 143)


def test_two_processes_join(training):
    script = f"""{STEP}import jax
jax.distributed.initialize()
seen = len(jax.local_devices()), len(jax.devices())
(state / f"seen{{jax.process_index()}}").write_text(repr(seen))"""
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
    }
    ranks = [
        training.start(script, devices=4, **step, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in (0, 1)
    ]
    for process in ranks:
        wait(process)
    assert [(training.state / f"seen{i}").read_text() for i in (0, 1)] == ["(2, 4)", "(2, 4)"]
    assert json.loads(training.out.read_text())["provenance"]["processes"] == 2


def test_environment_of_a_node_with_two_processes(monkeypatch, tmp_path):
    step = {
        "SLURM_STEP_NODELIST": "jrc[0101-0102]",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "10",
        "SLURM_STEP_ID": "1",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    args = runtime.parser("", {}).parse_args(
        ["--devices=8", "--platform=cuda", "--host-suffix=i", "--out=x"]
    )
    found = command.environment(args, tmp_path)
    assert found["JAX_COORDINATOR_ADDRESS"] == f"jrc0101i:{61440 + 161}"
    assert found["JAX_LOCAL_DEVICE_IDS"] == "2,3"
    assert found["JAX_PLATFORMS"] == "cuda"
    assert found["JAXWAY_STATE"] == str(tmp_path)


@pytest.mark.parametrize("line", ['{"loss": 1}', '{"step": "1"}', "[1]", "loss 1"])
def test_invalid_metrics(training, line):
    script = f"{STEP}(state / 'metrics.jsonl').write_text({line + chr(10)!r})"
    assert "a line is no JSON object with an integer `step`" in training.run(script, 1)
    assert not training.out.exists() and training.error()


def test_variables_of_the_training_are_replaced_without_a_shell(training):
    wait(training.start_words("touch $JAXWAY_STATE/a '${JAXWAY_STATE}/b c' $JAXWAY_STATE/$HOME"))
    assert {"a", "b c", "$HOME"} < {path.name for path in training.state.iterdir()}
    assert json.loads(training.out.read_text())["command"][1] == f"{training.state}/a"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "set `command`, what to run"),
        ("python3 'x", "command: No closing quotation"),
        ("/no/such/program", "cannot run /no/such/program: No such file or directory"),
    ],
)
def test_commands_that_cannot_run(training, words, sentence):
    assert wait(training.start_words(words), 1) == f"command.py: {sentence} [JW310]\n"


def test_checkpoints_that_cannot_be_found(tmp_path):
    args = argparse.Namespace(checkpoints="checkpoint-*")
    with pytest.raises(SystemExit, match=r"checkpoints: checkpoint-[*] must have {step} once"):
        command.watch(args, tmp_path)


def test_check_program_of_the_documented_example(tmp_path):
    slow = EXAMPLE.replace("while step < 100:\n", "while step < 1000:\n    time.sleep(0.002)\n")
    assert slow != EXAMPLE
    (tmp_path / "slow.py").write_text(slow)
    (tmp_path / "config.yaml").write_text(
        f"train: {{mine: {{program: command, command: {sys.executable} slow.py}}}}"
    )
    profile = f"--profile={PROGRAM.parents[2]}/profiles/local"
    words = [sys.executable, "-m", "jaxway", "check-program", "mine", profile]
    done = subprocess.run(
        [*words, "--configfile=config.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["PASS", "start"],
        ["PASS", "stop"],
        ["PASS", "resume"],
    ]
