import ast
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import numpy as np
import orbax.checkpoint as ocp
import pytest
import train

PROGRAM = Path(train.__file__)
STEPS = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty files of sentences from a few words: easy to learn, and never the same file twice."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = "def return import class self print value for in range if else".split()  # noqa: SIM905
    for number in range(40):
        text = "\n".join(" ".join(draw.choices(words, k=6)) for _ in range(40))
        (folder / f"{number}.txt").write_text(text)
    return folder


def arguments(corpus, state, out, **options):
    """Command line of a training that takes milliseconds a step."""
    tiny = {
        "data": corpus, "validation_bytes": 1500, "steps": STEPS, "layers": 2, "width": 32,
        "heads": 2, "ngram": 2, "context": 32, "global_batch": 8, "learning_rate": 0.01,
        "warmup_steps": 5, "log_every": 4, "checkpoint_every": 10,
    }  # fmt: skip
    flags = {"platform": "cpu", "state": state, "out": out / "summary.json", **tiny, **options}
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Function that starts the program, outside any Slurm job but the given one."""
    cache = {
        # Compilation is most of the time of a run this small.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(*args, **environment):
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_"))}
        return subprocess.Popen(
            [sys.executable, PROGRAM, *args],
            env={**outer, **cache, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


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


def metrics(folder):
    """Logged lines without their times, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("step_seconds", "tokens_per_second")}
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
def undisturbed(launch, corpus, tmp_path_factory):
    """A run from start to end; its folder holds ``state`` and ``out``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    wait(launch(*arguments(corpus, folder / "state", folder / "out")))
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
    for name, schema in train.OPTIONS.items():
        assert set(schema) >= {"type", "default", "description"}, name


def test_the_standard_library_is_text_to_learn():
    text, validation, record = train.load_data(["python"], 10_000, 128)
    assert record["files"] > 100 and len(text) == record["train_bytes"] > 1_000_000
    assert b"def " in validation.tobytes()
    names = {part for path in train.find_files("python") for part in path.parts}
    assert not names & {"site-packages", "test"}


def test_no_file_is_on_both_sides(corpus, tmp_path):
    text, validation, record = train.load_data([str(corpus)], 1500, 32)
    contents = [path.read_bytes() for path in corpus.iterdir()]
    held_out = [c for c in contents if c[:100] in validation.tobytes()]
    assert len(held_out) >= 2 and len(validation) == 1500
    assert not any(c[:100] in text.tobytes() for c in held_out)
    assert len(text) == sum(map(len, contents)) - sum(map(len, held_out))

    # Where the files lie, what they are called and how often each is there make no difference.
    for number, content in enumerate(contents + contents[:7]):
        (tmp_path / f"copy{number:03}").write_bytes(content)
    assert train.load_data([f"{tmp_path}/copy*"], 1500, 32)[2] == record


@pytest.mark.parametrize(
    ("data", "needs", "sentence"),
    [
        ("/no/such/place", 1, "/no/such/place names no file"),
        ("/no/such/*.txt", 1, r"/no/such/\*.txt names no file"),
        ("{corpus}", 10**9, "{corpus} is too short: its 40 different files leave 0 bytes"),
        ("{corpus}/0.txt", 1, "0.txt is too short: its 1 different files leave 0 bytes"),
    ],
)
def test_data_that_will_not_do(corpus, data, needs, sentence, capsys):
    with pytest.raises(SystemExit, match=sentence.format(corpus=corpus)):
        train.load_data([data.format(corpus=corpus)], needs, 32)


def test_unreadable_data(corpus, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SystemExit, match=r"cannot read .*\.txt: Permission denied"):
        train.load_data([str(corpus)], 1500, 32)


def test_a_batch_depends_on_seed_and_step_only():
    text = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)

    def draw(seed, step):
        args = train.argparse.Namespace(seed=seed, context=16, global_batch=4)
        return train.batch(text, args, step)

    first = draw(0, 1)
    assert first.shape == (4, 17) and first.dtype == np.uint8
    assert all(row.tobytes() in text.tobytes() for row in first)
    np.testing.assert_array_equal(first, draw(0, 1))
    assert (first != draw(0, 2)).any() and (first != draw(1, 1)).any()


@pytest.mark.parametrize("context", [8, 9, 32])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 47, 48, 49, 200])
def test_validation_scores_each_byte_once_and_in_context(context, length):
    text = np.arange(1, length + 1, dtype=np.uint8)  # each byte is its own position
    windows, weights = train.scoring_windows(text, context)
    scored = windows[:, 1:][weights == 1]
    np.testing.assert_array_equal(scored, text)
    assert weights.sum() == length and windows[0, 0] == ord("\n")
    before = np.nonzero(weights[1:])[1]  # bytes of context that a later window's score has
    assert (before >= context // 2).all()


def test_baselines():
    text, uniform = np.frombuffer(b"ab" * 5000, np.uint8), np.arange(256, dtype=np.uint8)
    assert train.unigram_bits(uniform, text) == pytest.approx(8)
    assert train.unigram_bits(text, text) == pytest.approx(1, abs=0.05)
    assert train.unigram_bits(text, np.frombuffer(b"c", np.uint8)) > 13
    assert train.gzip_bits(text) < 0.1
    assert train.gzip_bits(uniform) > 8


def test_training_learns_and_says_so(undisturbed):
    summary = json.loads((undisturbed / "out/summary.json").read_text())
    lines = metrics(undisturbed / "out")
    assert [line["step"] for line in lines][:4] == [4, 8, 10, 12] and lines[-1]["step"] == STEPS
    assert lines[0]["loss"] > 6 > 4 > summary["train_bits_per_byte"]
    assert summary["validation_bits_per_byte"] < summary["unigram_bits_per_byte"]
    # A model that has not memorised scores new text of the same kind much like the old.
    assert summary["validation_bits_per_byte"] == pytest.approx(
        summary["train_bits_per_byte"], abs=0.5
    )
    assert summary["sample"].startswith("\n") and len(summary["sample"]) > 20
    assert summary["data"]["files"] == 40 and summary["steps"] == STEPS
    assert summary["parameters"] == 2 * 12 * 32**2 + (2 * 256 + 4096) * 32
    assert [(s["first_step"], s["last_step"]) for s in summary["segments"]] == [(1, STEPS)]
    assert summary["provenance"]["arguments"]["width"] == 32
    kept = sorted(path.name for path in (undisturbed / "state/checkpoints").iterdir())
    assert kept == [str(STEPS - 10), str(STEPS)]


def test_a_finished_state_gives_its_summary_again(undisturbed, corpus, tmp_path, monkeypatch):
    in_this_process(monkeypatch, *arguments(corpus, undisturbed / "state", tmp_path))
    for name in ("summary.json", "metrics.jsonl"):
        assert (tmp_path / name).read_text() == (undisturbed / "out" / name).read_text()


def test_a_killed_run_goes_on_as_if_nothing_had_happened(launch, undisturbed, corpus, tmp_path):
    state = tmp_path / "state"
    command = arguments(corpus, state, tmp_path / "out")
    process = launch(*command)
    while not (state / "checkpoints/20").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    wait(process, -signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    with (state / "metrics.jsonl").open("a") as file:  # as a kill in mid-write leaves it
        file.write('{"step": 5')
    wait(launch(*command))

    assert metrics(tmp_path / "out") == metrics(undisturbed / "out")
    expected, found = state_arrays(undisturbed / "state"), state_arrays(state)
    assert len(expected) > 12 and found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    summary, other = (
        json.loads((folder / "out/summary.json").read_text()) for folder in (tmp_path, undisturbed)
    )
    for name in ("validation_bits_per_byte", "train_bits_per_byte", "sample", "data"):
        assert summary[name] == other[name], name
    (first, second) = summary["segments"]
    assert (first["first_step"], second["last_step"]) == (1, STEPS)
    assert second["first_step"] == first["last_step"] + 1 > 20


def test_two_processes_learn_what_one_learns(launch, undisturbed, corpus, tmp_path):
    command = arguments(corpus, tmp_path / "state", tmp_path / "out", devices=2)
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
    }
    ranks = [launch(*command, **step, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in (0, 1)]
    for process in ranks:
        wait(process)
    one, two = metrics(undisturbed / "out"), metrics(tmp_path / "out")
    # The same sums in another order: float32 rounds at 6e-8, and training amplifies that step by
    # step. Another batch would change a loss by some per cent.
    np.testing.assert_allclose([m["loss"] for m in two], [m["loss"] for m in one], rtol=1e-3)
    assert [m["step"] for m in two] == [m["step"] for m in one]
    assert json.loads((tmp_path / "out/summary.json").read_text())["provenance"]["processes"] == 2


def test_a_loss_that_is_not_finite_ends_the_run(launch, corpus, tmp_path):
    options = {"learning_rate": 1e30, "warmup_steps": 0, "checkpoint_every": 1, "ngram": 1}
    command = arguments(corpus, tmp_path / "state", tmp_path / "out", **options)
    stderr = wait(launch(*command), code=1)
    kept = [path.name for path in (tmp_path / "state/checkpoints").iterdir()]
    assert kept == ["1"]
    assert "at step 2;" in stderr and "newest checkpoint is of step 1" in stderr
    assert not (tmp_path / "out").exists()


def test_a_state_has_one_writer(corpus, tmp_path, monkeypatch):
    with (tmp_path / "lock").open("w") as file:
        file.write("host jrc0101, process 7, job 42")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="is in use by host jrc0101, process 7, job 42"):
            in_this_process(monkeypatch, *arguments(corpus, tmp_path, tmp_path / "out"))


def test_a_state_is_not_continued_with_other_settings(undisturbed, corpus, tmp_path, monkeypatch):
    command = arguments(corpus, undisturbed / "state", tmp_path, width=64)
    with pytest.raises(SystemExit, match="has width 32, not 64"):
        in_this_process(monkeypatch, *command)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 36, "heads": 4}, "width 36 is not an even multiple of 4 heads"),
        ({"warmup_steps": STEPS}, f"warmup_steps {STEPS} must be fewer than steps {STEPS}"),
    ],
)
def test_options_that_do_not_fit(corpus, tmp_path, monkeypatch, options, sentence):
    command = arguments(corpus, tmp_path / "state", tmp_path / "out", **options)
    with pytest.raises(SystemExit, match=sentence):
        in_this_process(monkeypatch, *command)
    assert not (tmp_path / "state").exists()


def test_a_batch_must_be_shared_equally(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "start", lambda args: None)
    command = arguments(corpus, tmp_path / "state", tmp_path / "out", global_batch=9, devices=2)
    with pytest.raises(SystemExit, match="global_batch 9 is not a multiple of 2 devices"):
        in_this_process(monkeypatch, *command)
