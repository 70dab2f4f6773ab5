"""Pulls that are interrupted or killed, and pulls at the same time."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from pulls import Pull, Target, processes, sha256


def interrupt(target: Target, moment: str, number: signal.Signals) -> Pull:
    """A pull that got a signal while it waited for a layer or made the SIF."""
    target.registry.faults(*([target.fault("third", hold=True)] if moment == "download" else []))
    pull = target.start()
    pull.until(target.is_held if moment == "download" else target.is_building, moment)
    pull.send(number)
    return pull


@pytest.mark.parametrize("moment", ["download", "build"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_pull_leaves_only_layers(
    target: Target, moment: str, number: signal.Signals
) -> None:
    interrupt(target, moment, number).fail("SIGTERM|SIGINT|Ctrl-C")
    kept = target.check_leftovers()
    assert moment == "download" or kept == {*target.registry.layers}
    target.pull_again(kept)


@pytest.mark.parametrize("moment", ["download", "build"])
def test_killed_pull_is_cleaned_up_by_the_next(target: Target, moment: str) -> None:
    assert interrupt(target, moment, signal.SIGKILL).wait()
    target.cluster.wait_for(lambda: not target.is_building(), what="the end of apptainer")
    part = Path(target.part).name
    assert target.beside() <= {part, part.replace(".part", ".lock")}
    kept = target.finished_layers()
    assert moment == "download" or kept == {*target.registry.layers}
    target.pull_again(kept)


def test_another_user_resumes_after_a_killed_pull(target: Target) -> None:
    """And puts another image beside it."""
    assert interrupt(target, "build", signal.SIGKILL).wait()
    target.cluster.wait_for(lambda: not target.is_building(), what="the end of apptainer")
    made = []
    for tag in ("latest", "index"):
        target.start(target.image(tag), user="bob").succeed()
        made.append(target.made())
    target.start().succeed()  # removes what her killed one left
    assert target.made() == made[0]
    target.check_sif(made)


def test_old_sif_survives_a_failed_pull(target: Target, good: Target) -> None:
    target.cluster.run(f"cp -a {good.folder}/sif/. {target.folder}/sif")
    old = target.made()
    record = old.with_name(f"{old.name}.json")
    record.write_text(record.read_text().replace(target.registry.tags["latest"], "sha256:old"))
    files = [target.here(target.sif).parent / name for name in target.beside()]
    before = {file: (sha256(file), file.stat().st_mtime_ns) for file in files}
    interrupt(target, "build", signal.SIGTERM).fail("SIGTERM")
    assert {file: (sha256(file), file.stat().st_mtime_ns) for file in files} == before
    assert target.beside() == {file.name for file in files}
    target.pull_again(target.finished_layers())


@pytest.mark.parametrize(("user", "node"), [("bob", "jrlogin01"), ("alice", "jrc0101")])
def test_two_pulls_at_once_fetch_each_layer_once(target: Target, user: str, node: str) -> None:
    target.registry.faults(target.fault("third", hold=True))
    first = target.start()
    first.until(target.is_held, "a layer")
    second = target.start(user=user, node=node)
    second.until(lambda: "is locked by another process" in second.output(), "waiting")
    target.registry.faults()
    first.succeed()
    second.succeed()
    target.check_sif()
    fetched = sorted(x["path"].rpartition("/")[2] for x in target.gets())
    assert fetched == sorted(target.registry.layers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_waiting_pull_and_the_first_do_not_need_each_other(
    target: Target, number: signal.Signals
) -> None:
    """Ending the waiting one leaves the first alone; when the first is killed, it continues."""
    target.registry.faults(target.fault("third", hold=True))
    first = target.start()
    first.until(lambda: target.is_held() and len(target.finished_layers()) == 2, "two layers")
    [process] = processes("python3", "--sif", target.sif)
    second = target.start()
    second.until(lambda: "is locked by another process" in second.output(), "waiting")
    if number == signal.SIGTERM:
        [process] = {*processes("python3", "--sif", target.sif)} - {process}
    target.registry.faults()
    os.kill(process, number)
    if number == signal.SIGTERM:
        second.fail("SIGTERM")
        first.succeed()
    else:
        assert first.wait()
        second.succeed()
    target.check_sif()
    paths = Counter(x["path"].rpartition("/")[2] for x in target.gets())
    assert [paths[x] for x in target.registry.layers[:2]] == [1, 1]
