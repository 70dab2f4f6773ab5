"""All checks of a plan: which of them run, and what is printed of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_records import DIGEST, write_container_record
from examples import make_config, make_job, make_placement, make_site, make_training
from jaxway.config.containers import container_with
from jaxway.config.jobs import SubmittedJob
from jaxway.preflight import container as container_checks
from jaxway.preflight import plan
from jaxway.preflight.finding import (
    FAIL,
    PASS,
    WARN,
    Finding,
    Findings,
    Status,
    failure,
    passed,
    warning,
)
from jaxway_shared.errors import UserError

IMAGE = "docker-archive:one.tar"
CONTAINER = [(PASS, "apptainer"), (PASS, "image")]
TRAINING = make_training(context=10)


@pytest.fixture
def planned(machine, site, monkeypatch) -> Any:
    """Makes the plan of these jobs; the container is there."""
    monkeypatch.setattr(container_checks, "apptainer_version", lambda: "1.4")
    sif = Path(container_with({}, site).sif)
    sif.parent.mkdir(parents=True)
    sif.write_text("a container")
    write_container_record(sif, IMAGE)
    site = replace(site, shared=["/"], small_home=True)

    def make(jobs: dict[str, SubmittedJob], **settings: Any) -> plan.Plan:
        config = make_config(site, **{"image": IMAGE, "account": "training"} | settings)
        both = container_with({}, site), container_with(config.packages, site)
        return plan.Plan(config, site, jobs, *both)

    return make


def subjects(checked: plan.Plan) -> list[tuple[Status, str]]:
    return [(finding.status, finding.subject) for finding in plan.run_preflight(checked)]


def test_checks_of_a_plan(planned, machine) -> None:
    machine["sbatch --test-only"] = "Job 7 to start at 2020-01-01T10:00:00 using 128 processors"
    machine["sinfo --all --noheader --Node"] = "n1 idle"
    names = ("account", "partition", "queue", "nodes", "folders", "disk space", "data", "shared")
    checked = planned({"train.a": TRAINING, "benchmark.b": make_job(node="n1")})
    assert subjects(checked) == [*CONTAINER, *((PASS, name) for name in (*names, "home"))]


def test_pull_needs_no_slurm(planned) -> None:
    assert subjects(planned({}, account="forbidden")) == [*CONTAINER, (PASS, "folders")]


def test_pull_in_a_job_is_checked_and_has_a_cost(planned, machine) -> None:
    checked = planned({})
    site = replace(checked.site, partitions={"pull": "closed"})
    checked = replace(checked, site=site)
    assert subjects(checked) == [(PASS, "image"), (PASS, "folders")]  # a container is there
    shown = "PartitionName=closed State=INACTIVE MaxNodes=UNLIMITED MaxTime=1-00:00:00"
    machine["scontrol --all --oneliner show partition closed"] = shown
    findings = plan.run_preflight(replace(checked, pulls=True))
    message = "pull.partition: closed is INACTIVE and starts no job; open are gpu, other"
    assert failure("JW504", message)._replace(subject="partition") in findings
    assert not any(finding.subject == "apptainer" for finding in findings)
    (first, _) = plan.summary(replace(checked, pulls=True), [], complete=True)
    assert first.endswith("pull: 1 job, each 1 node and 120 minutes at most: 2 node-h = 256 core-h")


def test_folder_of_the_container_matters_only_where_one_is_made(planned, site) -> None:
    """Others may use a container in a folder that is not theirs."""
    there = planned({})
    assert plan.folder_of_new_container(there) is None
    assert plan.folder_of_new_container(replace(there, pulls=True)) == Path(site.sif).parent
    Path(container_with({}, site).sif).unlink()
    assert plan.folder_of_new_container(there) == Path(site.sif).parent


def test_container_is_looked_into_where_it_is_there_and_whole(planned, site, monkeypatch) -> None:
    monkeypatch.setattr(plan, "check_visible", lambda start, used: [passed(" ".join(start))])

    def looked(checked: plan.Plan) -> bool:
        return (PASS, "files") in subjects(checked)

    checked = replace(planned({"train.a": TRAINING}), start=("start",))
    assert looked(checked)
    assert not looked(replace(checked, start=()))
    assert not looked(replace(checked, jobs={}))
    assert not looked(replace(checked, pulls=True))
    sif = Path(container_with({}, site).sif)
    sif.write_text("another container")
    assert not looked(checked)
    sif.unlink()
    assert not looked(checked)


def test_image_is_known_unless_it_is_going_to_be_pulled(planned) -> None:
    assert planned({}).image == DIGEST.removeprefix("sha256:")
    assert replace(planned({}), pulls=True).image is None
    assert replace(planned({}), container=None).image is None


def test_container_that_a_benchmark_names_is_checked(planned, tmp_path) -> None:
    for sif, status in ((tmp_path / "gone.sif", FAIL), (container_with({}, make_site()).sif, PASS)):
        checked = planned({}, benchmark={"memory": {"sif": str(sif)}})
        jobs = plan.labelled_jobs(checked.config, False, [], checked.config.allocations)
        found = subjects(replace(checked, jobs=jobs))
        assert found[:3] == [*CONTAINER, (status, "image")]


def test_queue_is_not_asked_about_what_is_refused_already(planned, machine) -> None:
    machine["sbatch --test-only"] = "!Invalid account"
    jobs = {"train.a": TRAINING}
    assert (FAIL, "queue") in subjects(planned(jobs))
    wide = {"train.a": make_training(context=10, placement=make_placement(nodes=3))}
    for checked in (planned(jobs, account="forbidden"), planned(wide)):
        assert "queue" not in {subject for _, subject in subjects(checked)}


def test_check_that_raises_stops_nothing(planned, monkeypatch) -> None:
    """And what it had found counts."""

    def fail(*_: Any) -> Findings:
        yield failure("JW509", "found before")
        raise IndexError

    monkeypatch.setattr(plan, "check_folders", fail)
    assert subjects(planned({})) == [*CONTAINER, (FAIL, "folders"), (WARN, "folders")]


def test_error_of_a_user_fails_its_check(planned, monkeypatch) -> None:
    def refuse() -> Findings:
        raise UserError("JW111", "there is no apptainer in PATH")
        yield passed("1.4")

    monkeypatch.setattr(plan, "check_apptainer", refuse)
    message = "there is no apptainer in PATH"
    assert plan.run_preflight(planned({}))[0] == Finding(FAIL, message, "JW111", "apptainer")


def test_labels_are_those_of_the_configuration(site) -> None:
    settings = {"train": {"b": {}, "a": {}}, "benchmark": {"memory": {}, "io": {"nodes": 2}}}
    config = make_config(site, **settings, node_check={"nodes": ["n1"]}, account="x")
    assert [*plan.all_jobs(config)] == [
        *("smoke_test", "train.a", "train.b"),
        *("benchmark.memory", "benchmark.memory on 1x4-n1", "benchmark.io"),
    ]
    assert [*plan.labelled_jobs(config, False, ["b"], ["2x4"])] == ["train.b", "benchmark.io"]


# ----------------------------------------------------------------------------------- summary

FINDINGS = [
    passed("1.4")._replace(subject="apptainer"),
    warning("n: down")._replace(subject="nodes"),
    failure("JW510", "none left")._replace(subject="disk space"),
]


def test_summary_has_what_a_user_should_know(planned) -> None:
    assert plan.summary(planned({"train.a": TRAINING}), FINDINGS, complete=False) == [
        "WARN nodes       n: down",
        "FAIL disk space  none left [JW510]",
        "     cost        at most 5 node-h = 640 core-h in all",
    ]


def test_complete_summary_has_everything(planned) -> None:
    lines = plan.summary(planned({"train.a": TRAINING}), FINDINGS, complete=True)
    assert lines[0] == "PASS apptainer   1.4"
    assert [line.split()[:2] for line in lines[3:]] == [["cost", "train:"], ["cost", "at"]]


def test_failure_stops_the_run_and_a_warning_does_not() -> None:
    plan.require_success(FINDINGS[:2])
    with pytest.raises(UserError, match="see FAIL above; nothing was submitted") as raised:
        plan.require_success(FINDINGS)
    assert raised.value.code == "JW500"
