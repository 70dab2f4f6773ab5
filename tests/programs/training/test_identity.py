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

import pytest
import results
import train
from example_records import data_record
from examples import make_config
from jaxway.preflight.disk_space import checkpoints_there
from jaxway_job import origin, runtime, training_state
from jaxway_shared import identity, training
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.training import Segments
from test_training_files import MODEL, SEGMENTS

PARTS = ("data", "program", "image", "options")
COMBINATIONS = [set(each) for n in range(5) for each in itertools.combinations(PARTS, n)]
CONTAINER = ContainerRecord("docker://a/b:c", "sha256:" + "1" * 64, "2" * 64, 1, 1, "", "", {}, ())


class Trainings:
    """Trainings of train.py in one folder of states, whose steps are left out."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.trained: list[Path] = []
        self.finish, self.step = True, 20
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
        monkeypatch.setattr(train, "Training", lambda _, state, *__: Steps(self, state))
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
        words = [f"--{k}" if v is True else f"--{k}={v}" for k, v in flags.items() if v is not None]
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
        checkpoint = self.state / f"checkpoints/{trainings.step}/default"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "numbers").write_text(self.state.name)
        training_state.record_checkpoint(self.state, trainings.step)
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
    assert checkpoints_there(job, 22 * "old")
    assert not checkpoints_there(job, 22 * "new")
    assert not checkpoints_there(other, 22 * "old")
    shutil.copy("new/data.json", job.data.record)
    assert not checkpoints_there(job, 22 * "old")


def test_where_a_training_runs_is_no_part_of_it(trainings):
    assert trainings.run()
    assert not trainings.run(**{"checkpoint-minutes": 1, "hang-minutes": 2})


def test_outside_a_container_the_image_is_jax(trainings, monkeypatch, capsys):
    outside = {"container-record": None}
    assert trainings.run(**outside)
    assert not trainings.run(**outside)
    monkeypatch.setattr(runtime, "JAX_BUILD", "99")
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
    line = (
        f"starting at step 0: steps 120, not 60, schedule_steps 120, not 60 as in "
        f"{trainings.trained[1]}, which is finished; a schedule that ends with `steps` cannot go on"
    )
    assert line in capsys.readouterr().out


def test_more_steps_go_on_where_the_schedule_does(trainings, capsys):
    constant = {"schedule": "constant", "log-every": 8, "validate-every": 10}
    assert trainings.run(**constant)
    first, summary = trainings.trained[0], trainings.summary()
    lines = [f'{{"step": {step}, "validation_loss": 1}}\n' for step in (10, 16, 20)]
    (first / "metrics.jsonl").write_text("".join([*lines, '{"step": 24}\n']))
    segments = Segments((replace(SEGMENTS[0], last_step=20), replace(SEGMENTS[1], first_step=21)))
    (first / "segments.json").write_text(json.dumps(segments.to_json()))
    (first / "trace").mkdir()
    trainings.step = 120
    assert trainings.run({"options"}, **constant)
    second = trainings.trained[1]
    assert training.checkpoint_steps(second) == [20, 120]
    assert (second / "checkpoints/20/default/numbers").read_text() == first.name
    assert (second / "metrics.jsonl").read_text() == "".join(lines)
    assert training.read_segments(second) == segments.segments[:1]
    assert (second / "trace").is_dir()
    assert f"going on from step 20 of {first}" in capsys.readouterr().out
    assert not trainings.run(**constant) and trainings.summary() == summary
    for other in ({"data"}, {"image"}, {"program"}):
        assert trainings.run(other, **constant)
        assert training.checkpoint_steps(trainings.trained[-1]) == [120]


def test_step_at_the_end_of_another_training_has_a_line_only_where_it_is_due(trainings):
    constant = {"schedule": "constant", "log-every": 8}
    trainings.run(**constant)
    (trainings.trained[0] / "metrics.jsonl").write_text('{"step": 16}\n{"step": 20}\n')
    trainings.step = 120
    trainings.run({"options"}, **constant)
    assert (trainings.trained[1] / "metrics.jsonl").read_text() == '{"step": 16}\n'


def begin_at(trainings, **options):
    """A training that begins at the checkpoint of another one."""
    return trainings.run({"options"}, out="fork", **options)


def test_training_that_begins_at_another_ones_checkpoint_is_known_by_that_ones_content(trainings):
    trainings.run()
    (trainings.trained[0] / "metrics.jsonl").write_text('{"step": 20, "validation_loss": 1}\n')
    base = {"from": trainings.out.with_name("state")}
    assert begin_at(trainings, **base)
    assert not begin_at(trainings, **base | {"from": f"{base['from']}@20"})
    assert not begin_at(trainings, **base | {"from": f"{trainings.trained[0]}@best"})
    assert begin_at(trainings, **base, restart=True)
    trainings.run({"data"})  # the same run, of other content
    assert begin_at(trainings, **base)
    options = identity.Identity.read(trainings.trained[-1]).options
    of = identity.Identity.read(trainings.trained[-2])
    assert (options["from"], options["from_step"]) == (of.digest, 20)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/nowhere/state", "no training in /nowhere/state: No such file"),
        ("{}", "is not finished, so write .*@<step>; checkpoints of steps 20"),
        ("{}@best", "has no validation, so write"),
    ],
)
def test_training_that_cannot_begin_at_a_checkpoint(trainings, name, sentence):
    trainings.finish = False
    with pytest.raises(SystemExit, match="75"):
        trainings.run()
    with pytest.raises(SystemExit, match=rf"from: .*{sentence}.*\[JW315\]"):
        begin_at(trainings, **{"from": name.format(trainings.out.with_name("state"))})


def test_checkpoint_at_which_a_training_begins_is_gone(trainings):
    trainings.run()
    found = origin.find(f"{trainings.out.with_name('state')}@19", trainings.out)
    with pytest.raises(SystemExit, match=r"@19 is not there; checkpoints of steps 20 \[JW315\]"):
        _ = found.checkpoint


def test_training_has_more_steps_than_the_checkpoint_at_which_it_begins(trainings):
    trainings.step = 120
    trainings.run()
    base = {"from": trainings.out.with_name("state")}
    with pytest.raises(SystemExit, match=r"more than the 120 .*unless `restart` is true \[JW307\]"):
        begin_at(trainings, **base)
    assert begin_at(trainings, **base, restart=True)


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
