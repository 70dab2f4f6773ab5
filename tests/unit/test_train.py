import ast
import fcntl
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import train
from jaxway_job import checkpoints, runtime, watchdog
from jaxway_shared import presets, training
from jaxway_shared.training import TrainingState

PROGRAM = Path(train.__file__)
STEPS = 100


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Record of forty files of sentences from a few words: easy to learn, and no two the same."""
    folder = tmp_path_factory.mktemp("record")
    draw = random.Random(0)
    words = "def return import class self print value for in range if else".split()  # noqa: SIM905
    for number in range(40):
        text = "\n".join(" ".join(draw.choices(words, k=6)) for _ in range(40))
        (folder / f"{number}.txt").write_text(text)
    file = tmp_path_factory.mktemp("data") / "data.json"
    command = ["--data", folder, "--validation-bytes=1500", "--tokenizer=bytes"]
    command += [f"--folder={file.parent / 'shards'}", f"--out={file}"]
    subprocess.run([sys.executable, "-m", "jaxway", "prepare-data", *command], check=True)
    return file


def arguments(record, state, out, **options):
    """Command line of a training that takes milliseconds a step."""
    tiny = {
        "data_record": record, "steps": STEPS, "layers": 2, "width": 32, "heads": 2, "ngram": 2,
        "context": 64, "global_batch": 16, "learning_rate": 0.01, "warmup_steps": 5, "log_every": 1,
        "checkpoint_minutes": 0.002,
    }  # fmt: skip
    flags = {"platform": "cpu", "state": state, "out": out / "summary.json", **tiny, **options}
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Function that starts the program, outside any Slurm job but the given one."""
    started = []
    cache = {
        # Compilation is most of the time of a run this small.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(*args, **environment):
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_"))}
        process = subprocess.Popen(
            [sys.executable, PROGRAM, *args],
            env={**outer, **cache, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:  # of a test that failed
        process.kill()
        process.communicate()


def wait(process, code=0):
    """Wait for a program, and return its standard error."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stdout + stderr
    return stderr


def in_this_process(monkeypatch, *args):
    """Run the program here, which is faster; for runs that stop before they train."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    train.main()


def read_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder):
    """Logged lines without their times, which no two runs share."""
    lines = read_lines(folder / "metrics.jsonl")
    return [
        {name: line[name] for name in ("step", "loss", "gradient_norm", "learning_rate")}
        for line in lines
    ]


def state_arrays(state):
    """All arrays of the newest checkpoint, by name."""
    newest = max((state / "checkpoints").iterdir(), key=lambda path: int(path.name))
    tree = ocp.StandardCheckpointer().restore(newest / "default")
    arrays = {}

    def walk(name, node):
        if isinstance(node, dict):
            node = list(node.items())
        elif isinstance(node, list | tuple):
            node = list(enumerate(node))
        elif node is not None:
            arrays[name] = np.asarray(node)
            return
        for key, value in node or []:
            walk(f"{name}/{key}", value)

    walk("", tree)
    return arrays


@pytest.fixture(scope="module")
def undisturbed(launch, record, tmp_path_factory):
    """A run from start to end; its folder holds ``state`` and ``out``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    wait(launch(*arguments(record, folder / "state", folder / "out")))
    return folder


def test_options_can_be_read_without_running_the_program():
    tree = ast.parse(PROGRAM.read_text())
    literal = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "OPTIONS"
    )
    assert literal
    assert ast.literal_eval(literal) == train.OPTIONS
    assert train.OPTIONS["preset"]["enum"] == list(presets.PRESETS)
    assert all(train.OPTIONS[name]["default"] is None for name in presets.Preset._fields)
    for name, schema in train.OPTIONS.items():
        assert set(schema) >= {"type", "default", "description"}, name


def test_training_learns_and_writes_results(undisturbed):
    summary = json.loads((undisturbed / "out/summary.json").read_text())
    lines = metrics(undisturbed / "out")
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    bits = 1 / np.log(2)
    assert lines[0]["loss"] * bits > 7 > 4 > summary["train_bits_per_byte"]
    assert summary["validation_bits_per_byte"] < summary["unigram_bits_per_byte"]
    # A model that has not memorised scores new text of the same kind much like the old.
    assert summary["validation_bits_per_byte"] == pytest.approx(
        summary["train_bits_per_byte"], abs=0.5
    )
    assert summary["sample"].startswith("\n") and len(summary["sample"]) > 20
    assert summary["data"]["files"] == 40 and summary["steps"] == STEPS
    assert summary["parameters"] == 2 * 12 * 32**2 + (2 * 256 + 4096) * 32
    (segment,) = summary["segments"]
    assert (segment["first_step"], segment["last_step"]) == (1, STEPS)
    parts = ["imports", "devices", "data", "state", "compile", "first_step"]
    assert list(segment["startup"]) == parts and min(segment["startup"].values()) >= 0
    assert segment["seconds"] > sum(segment["startup"].values())
    assert summary["provenance"]["arguments"]["width"] == 32
    kept = [int(path.name) for path in (undisturbed / "state/checkpoints").iterdir()]
    assert len(kept) == 2 and max(kept) == STEPS
    assert (undisturbed / "state/last_checkpoint_step").read_text() == f"{STEPS}\n"
    lines = read_lines(undisturbed / "out/metrics.jsonl")
    assert lines[20]["tokens_per_second"] == pytest.approx(16 * 64 / lines[20]["step_seconds"])
    assert lines[20]["peak_memory_bytes"] > 50e6 and lines[20]["mfu"] is None
    seconds = {
        x: sum(line[f"{x}_seconds"] for line in lines) for x in ("step", "data", "checkpoint")
    }
    assert 0 < seconds["data"] + seconds["checkpoint"] < seconds["step"]


def test_finished_state_gives_its_summary_again(undisturbed, record, tmp_path, monkeypatch):
    in_this_process(monkeypatch, *arguments(record, undisturbed / "state", tmp_path))
    for name in ("summary.json", "metrics.jsonl"):
        assert (tmp_path / name).read_text() == (undisturbed / "out" / name).read_text()


def same_as(undisturbed, folder):
    """Assert that a run came to what an undisturbed one came to, to the last bit."""
    assert metrics(folder / "out") == metrics(undisturbed / "out")
    expected, found = (state_arrays(x / "state") for x in (undisturbed, folder))
    assert len(expected) > 12 and found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    one, other = (json.loads((x / "out/summary.json").read_text()) for x in (undisturbed, folder))
    for name in ("validation_bits_per_byte", "train_bits_per_byte", "sample", "data"):
        assert one[name] == other[name], name
    return other["segments"]


def last_checkpoint_step(state):
    """The step from which the next job would resume."""
    return TrainingState.read(state).last_checkpoint_step or 0


def logged(state):
    """Steps whose metrics are written."""
    return len(training.metrics_text(state / "metrics.jsonl"))


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_run_killed_repeatedly_gives_the_same_result(launch, undisturbed, record, tmp_path):
    state = tmp_path / "state"
    command = arguments(record, state, tmp_path / "out")
    draw = random.Random()
    moments = sorted(draw.sample(range(2, STEPS // 2), 2))
    for moment in moments:
        goal = max(moment, logged(state) + 1)
        process = launch(*command)
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
    process = launch(*command)
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
    assert 0 < last_checkpoint_step(state) < STEPS
    process = launch(*command, JAXWAY_DEADLINE=str(time.time() + 1000))
    wait(process)
    same_as(undisturbed, tmp_path)


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


@pytest.fixture(scope="module")
def halfway(launch, record, tmp_path_factory):
    """A state with two checkpoints and many steps to go."""
    folder = tmp_path_factory.mktemp("halfway")
    command = arguments(record, folder / "state", folder / "out", checkpoint_minutes=60)
    process = launch(*command)
    wait_for(lambda: logged(folder / "state") > 5, process)
    process.send_signal(signal.SIGTERM)
    wait(process, 75)
    return folder


@pytest.mark.parametrize("how", ["cut", "gone", "bit"])
def test_damaged_checkpoint_is_named_and_skipped(
    launch, halfway, undisturbed, record, tmp_path, how
):
    shutil.copytree(halfway / "state", tmp_path / "state")
    older, newest = sorted(int(x.name) for x in (tmp_path / "state/checkpoints").iterdir())
    damage(tmp_path / f"state/checkpoints/{newest}", how)
    (tmp_path / f"state/damaged/{newest}").mkdir(parents=True)  # so it was before
    process = launch(*arguments(record, tmp_path / "state", tmp_path / "out"))
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stdout + stderr
    assert f"checkpoint of step {newest} is damaged" in stdout
    assert (tmp_path / f"state/damaged/{newest}").exists()
    assert same_as(undisturbed, tmp_path)[-1]["first_step"] == older + 1


def test_training_does_not_start_over_when_all_checkpoints_are_damaged(
    launch, halfway, record, tmp_path
):
    shutil.copytree(halfway / "state", tmp_path / "state")
    for checkpoint in (tmp_path / "state/checkpoints").iterdir():
        damage(checkpoint, "cut")
    for _ in range(2):
        stderr = wait(launch(*arguments(record, tmp_path / "state", tmp_path / "out")), 1)
        assert "no checkpoint in" in stderr and "to start over" in stderr
        assert (tmp_path / "state/error").exists()
        assert len([*(tmp_path / "state/checkpoints").iterdir()]) == 2


def test_stops_while_there_is_time_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    for left, action in (
        (3 * 5 + 2 * 7 + 30.1, watchdog.CONTINUE),
        (3 * 5 + 2 * 7 + 29.9, watchdog.STOP),
    ):
        monkeypatch.setenv("JAXWAY_DEADLINE", str(1000 + left))
        alone = runtime.ProcessTopology(1, 0, [0], "")
        dog = watchdog.Watchdog(tmp_path, alone, 10, 10)
        assert dog.requested_action(5, 7) == action


def test_checksum_finds_every_flipped_bit():
    numbers = np.array([1.5, -2.0, 0.0, 3e38], np.float32)
    before = int(checkpoints.checksums(numbers))
    for bit in range(32 * len(numbers)):
        changed = numbers.view(np.uint32).copy()
        changed[bit // 32] ^= np.uint32(1 << bit % 32)
        assert int(checkpoints.checksums(changed.view(np.float32))) != before


step_ids = itertools.count()


def ranks(launch, command, count, **environment):
    """Start all processes of a step on this machine."""
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": str(next(step_ids)),  # gives it a port of its own
    }
    return [
        launch(*command, **step, **environment, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
        for i in range(count)
    ]


def agree(one, other):
    """Assert that two runs learned alike.

    The same sums in another order: float32 rounds at 6e-8, and training amplifies that step by
    step, here to some 1e-5. Another batch would change a loss by some per cent.
    """
    a, b = metrics(one / "out"), metrics(other / "out")
    assert [m["step"] for m in a] == [m["step"] for m in b]
    np.testing.assert_allclose([m["loss"] for m in a], [m["loss"] for m in b], rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 4, "remat": "full"},
        {"devices": 8, "fsdp": 2, "tensor": 2},
        {"devices": 2, "fsdp": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_every_sharding_learns_the_same(launch, undisturbed, record, tmp_path, options):
    wait(launch(*arguments(record, tmp_path / "state", tmp_path / "out", **options)))
    agree(undisturbed, tmp_path)


def test_several_processes_learn_what_one_learns(launch, undisturbed, record, tmp_path):
    options = {"devices": 4, "fsdp": 2, "tensor": 2}
    for process in ranks(
        launch, arguments(record, tmp_path / "state", tmp_path / "out", **options), 4
    ):
        wait(process)
    agree(undisturbed, tmp_path)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["provenance"]["processes"] == 4


def test_run_resumes_with_other_processes(launch, halfway, undisturbed, record, tmp_path):
    shutil.copytree(halfway / "state", tmp_path / "state")
    command = arguments(record, tmp_path / "state", tmp_path / "out", devices=2, tensor=2)
    for process in ranks(launch, command, 2):
        wait(process)
    agree(undisturbed, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_missing_process_is_named(launch, record, tmp_path, signum):
    options = {"devices": 2, "steps": 10**6, "hang_minutes": 0.4}  # the first step compiles
    first, second = ranks(
        launch, arguments(record, tmp_path / "state", tmp_path / "out", **options), 2
    )
    wait_for(lambda: last_checkpoint_step(tmp_path / "state") > 0, first)
    second.send_signal(signum)
    stderr = wait(first, 1)
    assert "process 1 is not responding" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "state/error").exists()  # another job may do better
    second.kill()
    second.communicate()


def test_loss_that_is_not_finite_ends_the_run(launch, record, tmp_path):
    options = {"learning_rate": 1e30, "warmup_steps": 0, "ngram": 1}
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    stderr = wait(launch(*command), code=1)
    kept = [path.name for path in (tmp_path / "state/checkpoints").iterdir()]
    assert kept == ["1"]
    assert "at step 2;" in stderr and "last checkpoint: step 1" in stderr
    assert "at step 2;" in (tmp_path / "state/error").read_text()
    assert not (tmp_path / "out").exists()


def test_state_has_one_writer(record, tmp_path, monkeypatch):
    with (tmp_path / "lock").open("w") as file:
        file.write("host jrc0101, process 7, job 42")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="is in use by host jrc0101, process 7, job 42"):
            in_this_process(monkeypatch, *arguments(record, tmp_path, tmp_path / "out"))


def test_state_is_not_resumed_with_other_settings(undisturbed, record, tmp_path, monkeypatch):
    shutil.copytree(undisturbed / "state", tmp_path / "state")
    (tmp_path / "state/summary.json").unlink()
    command = arguments(record, tmp_path / "state", tmp_path / "out", width=64)
    with pytest.raises(SystemExit, match="has width 32, not 64"):
        in_this_process(monkeypatch, *command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 36, "heads": 4}, "width must be an even multiple of heads, not 36"),
        ({"warmup_steps": STEPS}, f"warmup_steps must be fewer than the {STEPS} steps"),
        ({"devices": 2, "global_batch": 9}, "global_batch must be a multiple of 2"),
        ({"devices": 4, "fsdp": 3}, "fsdp must be such that fsdp x tensor divides 4 GPUs, not 3"),
        ({"devices": 4, "tensor": 4}, "heads must be a multiple of tensor 4, not 2"),
        ({"gradient_accumulation_steps": 3}, "global_batch must be a multiple of 3"),
    ],
)
def test_options_that_do_not_fit(record, tmp_path, monkeypatch, options, sentence):
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    with pytest.raises(SystemExit, match=sentence):
        in_this_process(monkeypatch, *command)
    assert not (tmp_path / "state").exists()
