"""What runs again after a finished chain, and what does not."""

import os
import time

import pytest
from plan import Plan

SMALL = {"steps": 100, "global_batch": 8}
FINISHED = {"platform": "cpu", "image": "docker-archive:one.tar", "train": {"a": SMALL, "b": SMALL}}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A plan whose chain has run, with stubs of Slurm and the container."""
    plan = Plan(tmp_path_factory.mktemp("plan"))
    plan.configure(**FINISHED)
    plan.use_stubs()
    (plan.folder / "one.tar").write_text("a stub of an image")
    plan.snakemake()
    return plan


@pytest.fixture
def finished(ran):
    """The same plan, with nothing to do."""
    ran.configure(**FINISHED)
    files = {file: file.read_bytes() for file in (ran.sif, ran.record, ran.digest)}
    yield ran
    for file, content in files.items():
        file.write_bytes(content)


def test_finished_chain_does_nothing(finished):
    assert finished.planned() == []


def test_forced_smoke_test_reruns_what_relies_on_it(finished):
    jobs = ["cost", "ready", "report", "smoke_test", "train_run a", "train_run b"]
    assert finished.planned("--forcerun=smoke_test") == jobs


def test_smoke_test_by_itself_makes_nothing_stale(finished):
    finished.snakemake("smoke_test", "--forcerun=smoke_test")
    assert finished.planned() == []


def test_another_learning_rate_reruns_that_training_and_the_report(finished):
    finished.configure(**FINISHED | {"train": {"a": SMALL | {"learning_rate": 0.0123}, "b": SMALL}})
    assert finished.planned() == ["cost", "report", "train_run a"]


def test_another_walltime_reruns_nothing(finished):
    finished.configure(**FINISHED | {"train": {"a": SMALL | {"walltime": 99}, "b": SMALL}})
    assert finished.planned() == []


def test_touched_container_reruns_nothing(finished):
    later = time.time() + 60
    for file in (finished.sif, finished.digest):
        os.utime(file, (later, later))
    assert finished.planned() == []


def test_container_that_scratch_has_wiped_reruns_nothing(finished):
    finished.sif.resolve().unlink()
    assert finished.planned() == []


def test_new_digest_reruns_what_used_the_old_one(finished):
    finished.digest.write_text("sha256:another\n")
    later = time.time() + 60
    os.utime(finished.digest, (later, later))
    jobs = ["cost", "ready", "report", "smoke_test", "train_run a", "train_run b"]
    assert finished.planned() == jobs


def test_new_image_is_pulled_and_reruns_everything(finished):
    finished.configure(**FINISHED | {"image": "docker-archive:two.tar"})
    assert finished.planned() == [
        "cost",
        "pull",
        "ready",
        "report",
        "smoke_test",
        "train_run a",
        "train_run b",
    ]


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_deleted_result_is_made_again(finished, name):
    file = finished.folder / "results/train/a" / name
    file.rename(finished.folder / name)
    assert finished.planned() == ["cost", "report", "train_run a"]
    (finished.folder / name).rename(file)
