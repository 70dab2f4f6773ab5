"""Over the limit: when the next job of a training is started, and when not.

The training is a real `program: command`, which counts its starts and records its checkpoints.
"""

import json
import os
import re
import signal
import time

import pytest
from plan import Plan

SCRIPT = """
import os, signal, sys
state = os.environ["JAXWAY_STATE"]
file = os.path.join(state, "starts")
starts = 1 + (int(open(file).read()) if os.path.exists(file) else 0)
open(file, "w").write(str(starts))
step, ending = sys.argv[starts].split(":")
open(os.path.join(state, "last_checkpoint_step"), "w").write(str(step))
os.kill(os.getpid(), signal.SIGKILL) if ending == "killed" else sys.exit(int(ending))
"""


class Chain:
    """A plan with one training, whose starts reach the given steps and end as given."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        (plan.folder / "script.py").write_text(SCRIPT)
        (plan.folder / "results").mkdir()
        for name in ("smoke_test.json", ".smoke_test_passed"):
            (plan.folder / "results" / name).touch()

    def run(self, *starts: tuple[int, int | str], max_jobs: int = 10):
        """Run it; returns the exit code, its output, and how often it was started."""
        command = " ".join(["python3 script.py", *(f"{step}:{end}" for step, end in starts)])
        training = {"program": "command", "command": command, "max_jobs": max_jobs}
        self.plan.configure(train={"mine": training})
        done = self.plan.snakemake("train", "--cores=1", profile="local", check=False)
        (state,) = (self.plan.folder / "scratch/train").iterdir()
        return done.returncode, done.stdout + done.stderr, int((state / "starts").read_text())


@pytest.fixture
def chain(plan: Plan) -> Chain:
    return Chain(plan)


def test_training_is_resubmitted_until_it_has_finished(chain):
    code, output, starts = chain.run((10, 75), (20, 75), (30, "killed"), (40, 0))
    assert (code, starts) == (0, 4), output
    assert "Training mine: resuming from step 30." in output
    summary = json.loads((chain.plan.folder / "results/train/mine/summary.json").read_text())
    assert [s["last_step"] for s in summary["segments"]] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("starts", "max_jobs", "started", "why"),
    [
        ([(0, 75)], 10, 1, "no progress past step 0"),
        ([(10, 75), (10, 75)], 10, 2, "no progress past step 10"),
        ([(10, 75), (10, "killed")], 10, 2, "no progress past step 10"),
        ([(10, 75), (20, 3)], 10, 2, "the command exited with code 3"),
        ([(10, 75), (20, 75)], 2, 2, "reached max_jobs=2; last checkpoint: step 20"),
    ],
)
def test_chain_stops_with_a_reason(chain, starts, max_jobs, started, why):
    code, output, count = chain.run(*starts, max_jobs=max_jobs)
    assert (code, count) == (1, started), output
    sentence = " ".join(output.split()).partition("Training mine stopped: ")[2]
    assert re.sub("^command.py( on [^:]+)?: ", "", sentence).startswith(why), output


def test_stopped_chain_resumes_when_run_again(chain):
    starts = [(10, 75), (10, 75), (20, 75), (30, 0)]
    assert chain.run(*starts)[::2] == (1, 2)
    assert chain.run(*starts)[::2] == (0, 4)


def test_edit_between_two_jobs_stops_the_chain_with_a_question(chain):
    edited = SCRIPT.replace("os.kill(", 'open("script.py", "a").write("#")\nos.kill(')
    (chain.plan.folder / "script.py").write_text(edited)
    code, output, count = chain.run((10, 75))
    assert (code, count) == (1, 1)
    sentence = " ".join(output.split())
    assert "was made with script.py " in sentence and " to start over [JW302]" in sentence, output
    assert "[JW204]" not in sentence


INTERRUPTED = """
import os, pathlib, signal, sys
state = pathlib.Path(os.environ["JAXWAY_STATE"])
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
(state / "starts").write_text("1")
(state / "last_checkpoint_step").write_text("10")
pathlib.Path("ready").touch()
while True:
    signal.pause()
"""


def test_ctrl_c_is_one_sentence(chain):
    plan = chain.plan
    (plan.folder / "script.py").write_text(INTERRUPTED)
    plan.configure(train={"mine": {"program": "command", "command": "python3 script.py"}})
    running = plan.start("train", "--cores=1", profile="local")
    try:
        while not (plan.folder / "ready").exists():
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 1
    assert "Rerun the same command to resume." in output
    for word in ("Exception", "Error in", "Traceback", "exit status"):
        assert word not in output, output


ORPHAN = """
import os, pathlib, signal, time
state = pathlib.Path(os.environ["JAXWAY_STATE"])
(state / "starts").write_text("1")
(state / "last_checkpoint_step").write_text("10")
os.kill(os.getppid(), signal.SIGKILL)
while not pathlib.Path("stop").exists():
    time.sleep(0.05)
"""


def test_no_job_follows_while_another_one_writes_the_state(chain):
    (chain.plan.folder / "script.py").write_text(ORPHAN)
    chain.plan.configure(train={"mine": {"program": "command", "command": "python3 script.py"}})
    done = chain.plan.snakemake("train", "--cores=1", profile="local", check=False)
    (chain.plan.folder / "stop").touch()
    assert done.returncode == 1
    output = " ".join((done.stdout + done.stderr).split())
    assert output.count("is in use by host") == 1, output
