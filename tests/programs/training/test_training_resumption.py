"""However a training is interrupted, its result is the same to the last bit."""

import itertools
import json
import random
import re
import shutil
import signal
import time
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import quick
from jaxway_job import checkpoints
from jaxway_shared import training
from trainings import (
    SLOWLY,
    STEPS,
    TIMEOUT_S,
    arguments,
    last_checkpoint_step,
    logged,
    metrics,
    same_as,
    wait,
    wait_for,
)


def test_run_killed_repeatedly_gives_the_same_result(launch, undisturbed, record, tmp_path):
    state = tmp_path / "state"
    command = arguments(record, state, tmp_path / "out")
    draw = random.Random()
    moments = sorted(draw.sample(range(2, STEPS // 2), 2))
    for moment in moments:
        goal = max(moment, logged(state) + 1)
        process = launch(*command, **SLOWLY)
        wait_for(lambda goal=goal: last_checkpoint_step(state) and logged(state) >= goal, process)
        time.sleep(draw.uniform(0, 0.02))  # whatever it is doing then
        process.send_signal(signal.SIGKILL)
        wait(process, -signal.SIGKILL)
        assert not (tmp_path / "out").exists()
    with (state / "metrics.jsonl").open("a") as file:  # as a kill in mid-write leaves it
        file.write('{"step": 5')
    wait(launch(*command))
    segments = same_as(undisturbed, tmp_path)
    assert len(segments) == 3 and segments[-1]["last_step"] == STEPS
    for before, after in itertools.pairwise(segments):
        assert after["first_step"] == before["last_step"] + 1 > 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_and_stops(launch, undisturbed, record, tmp_path, signum):
    state = tmp_path / "state"
    command = arguments(record, state, tmp_path / "out", checkpoint_minutes=60)
    process = launch(*command, **SLOWLY)
    wait_for(lambda: logged(state) > 5, process)
    process.send_signal(signum)
    wait(process, 75)
    assert 5 < last_checkpoint_step(state) < STEPS  # not only the checkpoint of the first step
    assert not (state / "error").exists()
    wait(launch(*command))
    assert len(same_as(undisturbed, tmp_path)) == 2


def test_stops_before_deadline(launch, undisturbed, record, tmp_path):
    state = tmp_path / "state"
    command = arguments(record, state, tmp_path / "out", checkpoint_minutes=60)
    process = launch(*command, JAXWAY_DEADLINE=str(time.time() + 30))
    assert "Traceback" not in wait(process, 75)
    assert 0 < (step := last_checkpoint_step(state)) < STEPS
    # A save that was slow once, as that of a frozen job, ends the next job, not the one after it.
    segments = state / "segments.json"
    segments.write_text(re.sub('("save_seconds": )[0-9.]+', r"\g<1>600", segments.read_text()))
    for code in (75, 0):
        wait(launch(*command, JAXWAY_DEADLINE=str(time.time() + 1000)), code)
        assert step < (step := last_checkpoint_step(state))
    same_as(undisturbed, tmp_path)


def test_more_steps_equal_all_at_once(launch, undisturbed, record, tmp_path):
    """Its metrics are those of all steps, too."""
    options = {"states": tmp_path / "states/small", "schedule_steps": STEPS}
    state = tmp_path / "state"
    for steps in (STEPS // 2 + 3, STEPS):
        wait(launch(*arguments(record, state, tmp_path / "out", steps=steps, **options)))
    segments = same_as(undisturbed, tmp_path)
    assert [each["first_step"] for each in segments] == [1, STEPS // 2 + 4]


@quick.needs_onednn
def test_with_products_of_onednn(launch, record, tmp_path):
    """As a CPU computes for users; other tests do without it, for it is slow to begin."""
    for name, parts in (("whole", [STEPS]), ("stopped", [STEPS // 2, STEPS])):
        folder = tmp_path / name
        options = {"states": folder / "states/small", "schedule_steps": STEPS}
        for steps in parts:
            command = arguments(record, folder / "state", folder / "out", steps=steps, **options)
            assert "Warning" not in wait(launch(*command, XLA_FLAGS=quick.ONEDNN_FLAGS))
    same_as(tmp_path / "whole", tmp_path / "stopped")


def test_training_that_begins_at_a_checkpoint_equals_the_one_that_had_it(
    launch, undisturbed, record, tmp_path
):
    origin = f"{undisturbed / 'state'}@40"
    command = arguments(record, tmp_path / "state", tmp_path / "out", **{"from": origin})
    process = launch(*command, **SLOWLY)
    wait_for(lambda: logged(tmp_path / "state") > 5, process)
    process.send_signal(signal.SIGTERM)
    wait(process, 75)
    wait(launch(*command))
    first, _ = same_as(undisturbed, tmp_path, begin=40)
    assert first["first_step"] == 41


def test_training_may_begin_with_parameters_alone(launch, undisturbed, record, tmp_path):
    origin = f"{undisturbed / 'state'}@best"
    command = arguments(record, tmp_path / "state", tmp_path, **{"from": origin})
    wait(launch(*command, "--restart"))
    before, after = metrics(undisturbed / "out"), metrics(tmp_path)
    for name in ("step", "learning_rate"):
        assert [line[name] for line in after] == [line[name] for line in before]
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], abs=0.1)
    arguments_used = json.loads((tmp_path / "summary.json").read_text())["provenance"]["arguments"]
    assert arguments_used["from"] == f"{undisturbed / 'state'}@{STEPS}"


def damage(checkpoint, how):
    """Do something to the largest file of a checkpoint."""
    file = max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "gone", "bit"])
def test_damaged_checkpoint_is_named_and_skipped(
    launch, halfway, undisturbed, record, tmp_path, how
):
    shutil.copytree(halfway / "state", tmp_path / "state")
    *_, older, newest = training.checkpoint_steps(tmp_path / "state")
    damage(tmp_path / f"state/checkpoints/{newest}", how)
    (tmp_path / f"state/damaged/{newest}").mkdir(parents=True)  # so it was before
    process = launch(*arguments(record, tmp_path / "state", tmp_path / "out"))
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stdout + stderr
    assert f"checkpoint of step {newest} is damaged" in stdout
    assert (tmp_path / f"state/damaged/{newest}").exists()
    assert same_as(undisturbed, tmp_path)[-1]["first_step"] == older + 1


@pytest.mark.parametrize("spoil", [lambda x: damage(x, "cut"), shutil.rmtree], ids=["cut", "gone"])
def test_training_does_not_start_over_when_all_checkpoints_are_damaged_or_gone(
    launch, halfway, record, tmp_path, spoil
):
    shutil.copytree(halfway / "state", tmp_path / "state")
    for checkpoint in (tmp_path / "state/checkpoints").iterdir():
        spoil(checkpoint)
    left = sorted((tmp_path / "state").rglob("*"))
    for _ in range(2):
        stderr = wait(launch(*arguments(record, tmp_path / "state", tmp_path / "out")), 1)
        assert "no checkpoint in" in stderr and "to start over" in stderr
        assert {*left, tmp_path / "state/error"} <= {*(tmp_path / "state").rglob("*")}


def test_checksum_finds_every_flipped_bit():
    numbers = np.array([1.5, -2.0, 0.0, 3e38], np.float32)
    before = int(checkpoints.checksums(numbers))
    for bit in range(32 * len(numbers)):
        changed = numbers.view(np.uint32).copy()
        changed[bit // 32] ^= np.uint32(1 << bit % 32)
        assert int(checkpoints.checksums(changed.view(np.float32))) != before


def test_checkpoint_counts_as_finished_while_the_next_is_written(tmp_path):
    """Else saves without a pause would never be recorded, nor old ones deleted."""
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    store.manager = Mock(**{"is_saving_in_progress.return_value": True})
    finished = []
    for step in (1, 2):
        store.save(step, {})
        finished.append(store.save_finished())
    assert finished == [False, True] and not store.save_finished()


def test_best_checkpoint_and_every_kth_are_kept_beside_the_newest(tmp_path):
    store = checkpoints.Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        store.save(step, {"numbers": np.full(2, step, np.float32)})
        store.wait()
        store.delete_old(best=3 if step > 2 else 1)
        assert store.newest() == step
    assert training.checkpoint_steps(tmp_path) == [3, 4, 6, 7]
    assert not (tmp_path / "deleted").exists()
    numbers = jax.ShapeDtypeStruct((3,), np.float32)
    difference = checkpoints.misfit(store.folder / "7", {"numbers": numbers})
    assert difference == "numbers is 2 there, and 3 here"
    assert (
        checkpoints.misfit(store.folder / "7", {"more": numbers})
        == "more is none there, and 3 here"
    )
