"""Before the first job of a run, and after its last."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_records import write_container_record
from examples import make_config, make_site
from jaxway import interrupt, run
from jaxway.container import store
from jaxway.launch import Launch
from jaxway.slurm import accounting
from jaxway.slurm.journal import Journal
from jaxway_shared.errors import UserError
from submissions import make_submission

OWN_PROGRAM = {"program": "command", "command": "true"}


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ends pytest again, after the test."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
    interrupt.requested.clear()


def test_ctrl_c_before_the_first_job_names_those_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(run.Planned, "of", plan)
    Journal().begin(make_submission(id="5"))
    launch: Any = SimpleNamespace(site=SimpleNamespace(launcher="srun"))
    workflow = SimpleNamespace(executor_plugin=SimpleNamespace(name="jaxway"))
    with pytest.raises(SystemExit):
        run.Run(launch, []).start(workflow, None)
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; nothing was submitted [JW212]",
        "Jobs of an earlier run may still run: 5 (train_run small).",
    ]


def test_later_ctrl_c_ends_the_wait_for_accounting_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    waits = []

    def wait(*_: object) -> None:
        waits.append("begun")
        signal.raise_signal(signal.SIGINT)
        waits.append("went on")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accounting, "wait_for_accounting", wait)
    interrupt.install()
    launch: Any = SimpleNamespace(site=SimpleNamespace(launcher="srun", scratch=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    run.Run(launch, []).end(success=False)
    signal.raise_signal(signal.SIGINT)  # while Snakemake says that jobs failed
    assert waits == ["begun"]
    assert capfd.readouterr().err.split("\n\n") == [
        "Rerun the same command to resume.",
        "Ending already [JW201]\n",
    ]


@pytest.mark.parametrize("launcher", ["srun", None])
def test_ctrl_c_while_a_run_ends_by_itself_is_answered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    launcher: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accounting, "wait_for_accounting", lambda *_: [])
    interrupt.install()
    launch: Any = SimpleNamespace(site=SimpleNamespace(launcher=launcher, scratch=tmp_path))
    ended = run.Run(launch, [])
    ended._background.callback(signal.raise_signal, signal.SIGINT)
    ended.end(success=True)
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.split("\n") == ["", "Ending already [JW201]"] * 2 + [""]


def end_with(folder: Path, error: str, log: str) -> None:
    """End a run that failed, whose training has left this error and log."""
    state = folder / "state"
    state.mkdir()
    (state / "error").write_text(error)
    (folder / "log").write_text(log)
    launch: Any = SimpleNamespace(site=SimpleNamespace(launcher=None))
    ended = run.Run(launch, [])
    job: Any = SimpleNamespace(
        wildcards=SimpleNamespace(name="small"),
        resources=SimpleNamespace(training_state=str(state)),
        log=[str(folder / "log")],
    )
    ended._trainings = [job]
    ended.end(success=False)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("loss nan at step 2 [JW305]", "Training small would diverge again: change its options"),
        ("disk full [JW384]", "Rerun the same command to resume."),
    ],
)
def test_what_to_do_after_a_failure(tmp_path: Path, capsys, error: str, advice: str) -> None:
    end_with(tmp_path, error, "step 1\n")
    assert capsys.readouterr().err.startswith(advice)


def test_containers_that_benchmarks_name_are_checked_and_known_as_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sif, link = tmp_path / "jax-2.sif", tmp_path / "other.sif"
    sif.write_text("a container")
    write_container_record(sif, "docker://h.org/a")
    link.symlink_to(sif.name)
    site = make_site(sif=str(tmp_path / "jax.sif"))
    config = make_config(site, benchmark={"memory": {"sif": str(link)}, "io": {}})
    jobs: dict[str, Any] = dict.fromkeys(run.RULES, ())
    jobs["benchmark_run"] = [
        SimpleNamespace(wildcards=SimpleNamespace(name=name)) for name in config.allocations
    ]
    started = run.Run(Launch(tmp_path, config, site, contained=True), [])
    started._restore_container(jobs)
    (note,) = store.runs_folder(sif).iterdir()
    assert note.readlink() == tmp_path / "results/container"
    sif.write_text("another container")
    with pytest.raises(UserError, match=r"jax-2.sif has .* pull it again \(`jaxway pull`\)"):
        started._restore_container(jobs)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(lambda sif: sif.unlink(), "is missing"), (lambda sif: None, "was made again")],
)
def test_what_is_done_about_a_container_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, spoil: Any, why: str
) -> None:
    """One that somebody has made again is not missing: the run's link is locked again."""
    monkeypatch.chdir(tmp_path)
    site, image = make_site(sif=str(tmp_path / "jax.sif")), "docker://h.org/a"
    launch = Launch(tmp_path, make_config(site, image=image), site, contained=True)
    sif, link = tmp_path / "jax-1.sif", Path(launch.container.sif)
    sif.write_text("a container")
    write_container_record(sif, image)
    store.lock(link, sif, image)
    sif.write_text("a container, made again")
    write_container_record(sif, image)
    spoil(sif)
    jobs: dict[str, Any] = dict.fromkeys(run.RULES, ()) | {"smoke_test": [None]}
    with pytest.raises(UserError, match="could not be restored"):
        run.Run(launch, ["false"])._restore_container(jobs)
    assert capsys.readouterr().err == f"{link} {why}: restoring it\n"


def test_data_that_no_job_prepares_are_restored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Though what trainings wait for is there, their data or the record of them may be gone."""
    monkeypatch.chdir(tmp_path)
    site = make_site()
    config = make_config(site, train={"a": {"steps": [100, 200]}, "own": OWN_PROGRAM})
    trainings = [SimpleNamespace(wildcards=SimpleNamespace(name=name)) for name in config.train]
    (data,) = config.data.values()
    prepared = SimpleNamespace(output=SimpleNamespace(record=data.record))
    jobs: dict[str, Any] = dict.fromkeys(run.RULES, ()) | {"train_run": trainings}
    run.Run(Launch(tmp_path, config, site, contained=True), ["true"])._restore_data(jobs)
    assert capsys.readouterr().err == f"data of {data.record} is missing: restoring it\n"
    jobs["prepare_data"] = [prepared]
    run.Run(Launch(tmp_path, config, site, contained=True), ["false"])._restore_data(jobs)


def test_training_that_had_finished_before_is_named(tmp_path: Path, capsys) -> None:
    line = "/s/small-0123abcd: finished by job 7 of 2026; nothing is trained again"
    end_with(tmp_path, "", f"step 1\n{line}\n")
    assert capsys.readouterr().err.startswith(f"Training small: {line}.\n")


def test_jobs_are_checked_with_what_snakemake_asks_for() -> None:
    """Of jobs that are placed alike only the first is asked: `c` is not."""
    train = {"a": {}, "b": {"walltime": 31}, "c": {"walltime": 31}, "not_planned": {"walltime": 31}}
    config = make_config(make_site(partitions={"train": "gpu"}), train=train)
    usual = {"nodes": 1, "gres": "gpu:4", "runtime": 30, "slurm_partition": "gpu"}
    asked = {
        **{"nodes": 2, "gres": "gpu:a100:2", "runtime": 60, "slurm_partition": "closed"},
        **{"slurm_account": "other", "constraint": "mem512", "slurm_extra": "--exclusive --nice=5"},
    }
    jobs: dict[str, Any] = dict.fromkeys(run.RULES, ())
    jobs["train_run"] = [
        SimpleNamespace(wildcards={"name": name}, resources=resources)
        for name, resources in (("a", usual | {"slurm_account": None}), ("b", asked), ("c", None))
    ]
    found = run.with_asked_placements(config, jobs)
    for name in ("a", "not_planned"):
        assert found.train[name] == config.train[name]
    assert found.train["c"].placement == found.train["b"].placement
    placement = found.train["b"].placement
    assert (placement.nodes, placement.gpus_per_node, placement.walltime) == (2, 2, 60)
    assert placement.partition == "closed"
    options = ("--account=other", "--constraint=mem512", "--exclusive", "--nice=5")
    assert placement.options == options
