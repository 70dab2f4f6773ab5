"""A state is used again if data, program, image and options are the same, and only then."""

import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jax
import pytest
import results
import train
from example_records import data_record
from examples import make_config
from jaxway.preflight.disk_space import has_checkpoint
from jaxway_job import training_state
from jaxway_shared import identity
from jaxway_shared.container_record import ContainerRecord
from test_training_files import MODEL, SEGMENTS

PARTS = ("data", "program", "image", "options")
COMBINATIONS = [set(each) for n in range(5) for each in itertools.combinations(PARTS, n)]
CONTAINER = ContainerRecord("docker://a/b:c", "sha256:" + "1" * 64, "2" * 64, 1, 1, "", "", {}, ())


class Trainings:
    """Trainings of train.py in one folder of states, whose steps are left out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.trained: list[Path] = []
        self.finish = True
        for name in ("old", "new"):
            (folder / name).mkdir()
            shards = folder / name
            (shards / "train-00000.bin").write_bytes(bytes(1000))
            (shards / "validation.bin").write_bytes(bytes(1000))
            record = data_record(
                **{"shards": (1000,), "train_tokens": 1000, "validation_tokens": 1000},
                **{"dtype": "uint8", "sha256": name, "folder": str(shards)},
            )
            (shards / "data.json").write_text(json.dumps(record.to_json()))
            container = replace(CONTAINER, digest="sha256:" + name * 22)
            (shards / "sif.json").write_text(json.dumps(container.to_json()))
            scripts = shutil.copytree(identity.SCRIPTS, shards / "scripts")
            with (scripts / "jaxway_job/model.py").open("a") as file:
                file.write(f"# {name}\n")
        monkeypatch.setattr(train, "TrainingSetup", lambda *_: None)
        monkeypatch.setattr(train, "Training", lambda _, state, timer: Steps(self, state))
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)

    def run(self, changed: Iterable[str] = (), out: str = "out", **options) -> bool:
        """Train with some parts changed; whether that took any steps."""
        of = {part: self.folder / ("new" if part in changed else "old") for part in PARTS}
        self.out = self.folder / out / "small/summary.json"
        flags = {
            "data-record": of["data"] / "data.json",
            "container-record": of["image"] / "sif.json",
            "steps": 120 if "options" in changed else 60,
            "state": self.out.with_name("state"),
            "states": self.folder / "states/small",
            "out": self.out,
            "platform": "cpu",
            **options,
        }
        self.monkeypatch.setattr(identity, "SCRIPTS", of["program"] / "scripts")
        words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        self.monkeypatch.setattr(sys, "argv", ["train.py", *words])
        self.monkeypatch.setenv("XLA_FLAGS", "")
        count = len(self.trained)
        train.main()
        return len(self.trained) > count

    def summary(self) -> dict:
        return json.loads(self.out.read_text())


class Steps:
    """What trains: leaves a result that says in which state, unless it is interrupted."""

    def __init__(self, trainings: Trainings, state: Path) -> None:
        self.trainings, self.state = trainings, state

    def run(self) -> None:
        trainings = self.trainings
        trainings.trained.append(self.state)
        training_state.record_checkpoint(self.state, 20)
        if not trainings.finish:
            raise SystemExit(75)
        summary = replace(MODEL, sample=self.state.name)
        training_state.write_results(self.state, trainings.out, summary)


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    return Trainings(tmp_path, monkeypatch)


@pytest.mark.parametrize("changed", COMBINATIONS, ids=lambda changed: "+".join(sorted(changed)))
def test_what_changed_is_trained_anew_and_nothing_else_is(trainings, changed):
    """All sixteen; also going back to the first, and in a clone that has no results yet."""
    assert trainings.run()
    first = trainings.summary()
    assert trainings.run(changed, out="clone") == bool(changed)
    assert (trainings.summary() == first) == (not changed)
    assert not trainings.run(changed, out="third")
    assert not trainings.run(out="fourth")
    assert trainings.summary() == first


def test_preflight_knows_which_state_a_training_is_going_to_use(trainings, monkeypatch):
    trainings.finish = False
    with pytest.raises(SystemExit):
        trainings.run(out="results/train")
    monkeypatch.chdir(trainings.folder)
    job, other = (
        make_config(train={"small": {"steps": steps, "hang_minutes": 5}}).train["small"]
        for steps in (60, 120)
    )
    assert job.data
    Path(job.data.record).parent.mkdir()
    shutil.copy("old/data.json", job.data.record)
    assert has_checkpoint(job, 22 * "old")
    assert not has_checkpoint(job, 22 * "new")
    assert not has_checkpoint(other, 22 * "old")
    shutil.copy("new/data.json", job.data.record)
    assert not has_checkpoint(job, 22 * "old")


def test_where_a_training_runs_is_no_part_of_it(trainings):
    assert trainings.run()
    assert not trainings.run(**{"checkpoint-minutes": 1, "hang-minutes": 2})


def test_outside_a_container_the_image_is_jax(trainings, monkeypatch, capsys):
    outside = {"container-record": None}
    assert trainings.run(**outside)
    assert not trainings.run(**outside)
    monkeypatch.setattr(jax, "__version__", "99")
    assert trainings.run(**outside)
    assert "starting at step 0: image JAX 99, not JAX " in capsys.readouterr().out


def test_finished_state_that_is_used_again_says_so_and_keeps_its_log(trainings, capsys):
    trainings.run()
    (trainings.trained[0] / "log").write_text("step 1 loss 2\n")
    capsys.readouterr()
    trainings.run()
    log, line = capsys.readouterr().out.splitlines()
    assert log == "step 1 loss 2"
    time, node = results.PROVENANCE.time, results.PROVENANCE.nodes
    assert line == (
        f"{trainings.trained[0]}: finished by job {SEGMENTS[0].provenance.job} of {time} on {node};"
        " nothing is trained again"
    )


def test_new_state_says_how_it_differs_from_the_one_most_like_it(trainings, capsys):
    trainings.run({"image", "data"})
    trainings.run()
    capsys.readouterr()
    trainings.run({"options"})
    line = "starting at step 0: steps 120, not 60, schedule_steps 120, not 60 as in "
    assert f"{line}{trainings.trained[1]}, which is finished" in capsys.readouterr().out


def test_edited_program_does_not_discard_an_unfinished_training(trainings, capsys):
    """It is asked what to do: restore the program, resume with the new one, or start over."""
    trainings.finish = False
    with pytest.raises(SystemExit, match="75"):
        trainings.run()
    (state,) = trainings.trained
    trainings.finish = True
    with pytest.raises(SystemExit, match=r"made with jaxway_job/model.py .*: restore .*\[JW302\]"):
        trainings.run({"program"})
    assert "model.py" in (state / "error").read_text()
    assert trainings.trained == [state] == [*state.parent.iterdir()]
    own = Path((state / "error").read_text().partition(f"`mv {state} ")[2].partition("`")[0])
    copy = shutil.copytree(state, trainings.folder / "copy")
    state.rename(own)
    assert trainings.run({"program"})
    assert (
        trainings.trained[1] == own
        and "is resumed with what is there now" in capsys.readouterr().out
    )
    shutil.rmtree(own)
    copy.rename(state)
    assert trainings.run() and trainings.trained[2] == state  # restored
    shutil.rmtree(state)
    assert trainings.run({"program"}) and trainings.trained[3] == own  # started over


def test_edit_in_another_clone_is_another_training(trainings):
    """While the first one may still be running."""
    trainings.finish = False
    with pytest.raises(SystemExit, match="75"):
        trainings.run()
    with (trainings.trained[0] / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trainings.finish = True
        assert trainings.run({"program"}, out="clone")


@pytest.mark.parametrize("changed", [each for each in COMBINATIONS if each - {"program"}])
def test_unfinished_training_of_something_else_is_left_alone(trainings, changed):
    trainings.finish = False
    with pytest.raises(SystemExit, match="75"):
        trainings.run()
    trainings.finish = True
    assert trainings.run(changed)
    assert len({*trainings.trained}) == 2


@pytest.mark.parametrize(
    ("changed", "difference"),
    [("data", "data new, not old: .*"), ("program", "jaxway_job/model.py .*")],
)
def test_finished_state_of_something_else_is_not_taken_by_its_name(trainings, changed, difference):
    trainings.run()
    trainings.run({changed})
    one, other = trainings.trained
    shutil.rmtree(one)
    other.rename(one)
    with pytest.raises(SystemExit, match=rf"was made with {difference}\[JW302\]"):
        trainings.run()


def test_link_that_cannot_be_made_is_one_sentence(trainings):
    (trainings.folder / "out/small/state").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"link .* cannot be made: Is a directory \[JW301\]"):
        trainings.run()
