"""Several devices and processes learn what one learns, and a missing process is named."""

import json
import re
import shutil
import signal

import pytest
import quick
from trainings import (
    agree,
    arguments,
    last_checkpoint_step,
    metrics,
    ranks,
    wait,
    wait_for,
)

# Many processes on few cores are slow.
SHORT = {"steps": 20, "checkpoint_minutes": 60, "layers": 1, "ngram": 1, "validate_every": 10}
# To compile is most of the time. What these tests compare agrees but for rounding anyway.
QUICK = quick.ENVIRONMENT


@pytest.fixture(scope="module")
def alone(launch, record, tmp_path_factory):
    """A run of one process with one device; its folder holds ``state`` and ``out``."""
    folder = tmp_path_factory.mktemp("alone")
    wait(launch(*arguments(record, folder / "state", folder / "out", **SHORT), **QUICK))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 4, "remat": "full"},
        {"devices": 8, "fsdp": 2, "tensor": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_every_sharding_learns_the_same(launch, alone, record, tmp_path, options):
    wait(
        launch(*arguments(record, tmp_path / "state", tmp_path / "out", **SHORT | options), **QUICK)
    )
    agree(alone, tmp_path)


def test_several_processes_learn_what_one_learns(launch, alone, record, tmp_path):
    options = SHORT | {"devices": 4, "fsdp": 2, "tensor": 2}
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    for process in ranks(launch, command, 2, **QUICK):
        wait(process)
    agree(alone, tmp_path)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["provenance"]["processes"] == 2


def test_fork_by_two_processes_equals_that_by_one(launch, alone, record, tmp_path):
    """To the bit: both have two devices, and a sum of two is the same in either order."""
    options = SHORT | {"from": alone / "state", "steps": 30, "devices": 2}
    for count in (1, 2):
        folder = tmp_path / str(count)
        command = arguments(record, folder / "state", folder / "out", **options)
        for process in ranks(launch, command, count, **QUICK):
            wait(process)
    lines = metrics(tmp_path / "1/out")
    assert [line["step"] for line in lines] == [*range(21, 31)]
    assert metrics(tmp_path / "2/out") == lines


def test_run_resumes_with_other_processes(launch, halfway, undisturbed, record, tmp_path):
    shutil.copytree(halfway / "state", tmp_path / "state")
    command = arguments(record, tmp_path / "state", tmp_path / "out", devices=2, tensor=2)
    for process in ranks(launch, command, 2, **QUICK):
        wait(process)
    agree(undisturbed, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_missing_process_is_named(launch, record, tmp_path, signum):
    options = {"devices": 2, "steps": 10**6, "hang_minutes": 0.4}  # the first step compiles
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    first, second = ranks(launch, command, 2, **QUICK)
    wait_for(lambda: last_checkpoint_step(tmp_path / "state") > 0, first)
    second.send_signal(signum)
    stderr = wait(first, 1)
    assert re.search("process 1 on .+ is not responding", stderr)
    assert "Traceback" not in stderr
    assert not (tmp_path / "state/error").exists()  # another job may do better
    second.kill()
    second.communicate()
