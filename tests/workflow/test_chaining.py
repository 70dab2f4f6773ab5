"""Over the limit: when the next job of a training is started, and when not.

The training is a real `program: command`, which counts its starts and its safe steps.
"""

import json

import pytest
from plan import Plan

SCRIPT = """
import os, signal, sys
state = os.environ["JAXWAY_STATE"]
file = os.path.join(state, "starts")
starts = 1 + (int(open(file).read()) if os.path.exists(file) else 0)
open(file, "w").write(str(starts))
step, ending = sys.argv[starts].split(":")
open(os.path.join(state, "step"), "w").write(str(step))
os.kill(os.getpid(), signal.SIGKILL) if ending == "killed" else sys.exit(int(ending))
"""


class Chain:
    """A plan with one training, whose starts come to the given steps and ends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        (plan.folder / "script.py").write_text(SCRIPT)
        (plan.folder / "results").mkdir()
        for name in ("smoke_test.json", ".smoke_test_passed"):
            (plan.folder / "results" / name).touch()

    def run(self, *starts: tuple[int, int | str], allocations: int = 10):
        """Run it; returns the exit code, what was said, and how often it was started."""
        command = " ".join(["python3 script.py", *(f"{step}:{end}" for step, end in starts)])
        training = {"program": "command", "command": command, "max_jobs": allocations}
        self.plan.configure(train={"mine": training})
        done = self.plan.snakemake("train", "--cores=1", profile="local", check=False)
        (state,) = (self.plan.folder / "scratch/train").iterdir()
        return done.returncode, done.stdout + done.stderr, int((state / "starts").read_text())


@pytest.fixture
def chain(plan: Plan) -> Chain:
    return Chain(plan)


def test_a_training_goes_on_until_it_has_finished(chain):
    code, said, starts = chain.run((10, 75), (20, 75), (30, "killed"), (40, 0))
    assert (code, starts) == (0, 4), said
    assert "Training mine goes on from step 30." in said
    summary = json.loads((chain.plan.folder / "results/train/mine/summary.json").read_text())
    assert [s["last_step"] for s in summary["segments"]] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("starts", "allocations", "started", "why"),
    [
        ([(0, 75)], 10, 1, "its last job got no further than step 0"),
        ([(10, 75), (10, 75)], 10, 2, "its last job got no further than step 10"),
        ([(10, 75), (10, "killed")], 10, 2, "its last job got no further than step 10"),
        ([(10, 75), (20, 3)], 10, 2, "the command ended with exit code 3"),
        ([(10, 75), (20, 75)], 2, 2, "it has had its 2 allocations; step 20 is safe"),
    ],
)
def test_a_chain_stops_and_says_why(chain, starts, allocations, started, why):
    code, said, count = chain.run(*starts, allocations=allocations)
    assert (code, count) == (1, started), said
    sentence = " ".join(said.split()).partition("Training mine stops: ")[2]
    assert sentence.removeprefix("command.py: ").startswith(why), said


def test_a_chain_that_had_stopped_goes_on_when_run_again(chain):
    starts = [(10, 75), (10, 75), (20, 75), (30, 0)]
    assert chain.run(*starts)[::2] == (1, 2)
    assert chain.run(*starts)[::2] == (0, 4)
