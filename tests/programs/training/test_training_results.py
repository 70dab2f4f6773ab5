"""What a training learns and writes, and when it refuses to start."""

import ast
import fcntl
import gzip
import json
import re
import shutil

import numpy as np
import pytest
import train
from jaxway.report.trace import step_time
from jaxway_shared import presets, training
from trainings import (
    PROGRAM,
    STEPS,
    arguments,
    in_this_process,
    metrics,
    read_lines,
    wait,
)


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
    rates = [lines[updates]["learning_rate"] for updates in (0, 1, 5, STEPS - 1)]
    assert rates == pytest.approx([0.01 / 6, 0.02 / 6, 0.01, 0], abs=1e-5)
    bits = 1 / np.log(2)
    assert lines[0]["loss"] * bits > 7 > 4 > summary["train_bits_per_byte"]
    assert summary["validation_bits_per_byte"] < summary["unigram_bits_per_byte"]
    # A model that has not memorised scores new text of the same kind much like the old.
    assert summary["validation_bits_per_byte"] == pytest.approx(
        summary["train_bits_per_byte"], abs=0.5
    )
    data = summary["data"]
    nats = np.log(2) * summary["validation_bits_per_byte"] * data["validation_bytes"]
    assert summary["validation_nats_per_token"] == pytest.approx(nats / data["validation_tokens"])
    assert data["special_tokens"] == data["validation_tokens"] - data["validation_bytes"] > 0
    assert summary["sample"].startswith("\n") and len(summary["sample"]) > 20
    assert data["documents"] == 40 and summary["steps"] == STEPS
    assert summary["parameters"] == 2 * 12 * 32**2 + (2 * 256 + 4096) * 32
    (segment,) = summary["segments"]
    assert (segment["first_step"], segment["last_step"]) == (1, STEPS)
    parts = ["imports", "devices", "data", "state", "compile", "first_step"]
    assert list(segment["startup"]) == parts and min(segment["startup"].values()) >= 0
    assert segment["seconds"] > sum(segment["startup"].values())
    assert summary["provenance"]["arguments"]["width"] == 32
    kept = training.checkpoint_steps(undisturbed / "state")
    assert len({*kept} - {40, 80}) == 2 and max(kept) == STEPS  # the last is the best, too
    assert (undisturbed / "state/last_checkpoint_step").read_text() == f"{STEPS}\n"
    lines = read_lines(undisturbed / "out/metrics.jsonl")
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == [25, 50, 75, 100]
    # The sample, of 7 windows, is much like the whole text.
    last = validated[-1]
    assert last["validation_loss"] == pytest.approx(summary["validation_nats_per_token"], abs=0.1)
    assert bytes(last["sample_tokens"]).decode(errors="replace") == summary["sample"]
    assert last["sample_tokens"] == summary["sample_tokens"] != validated[0]["sample_tokens"]
    assert lines[20]["tokens_per_second"] == pytest.approx(16 * 64 / lines[20]["step_seconds"])
    assert lines[20]["peak_memory_bytes"] > 50e6 and lines[20]["mfu"] is None
    seconds = {
        x: sum(line[f"{x}_seconds"] for line in lines) for x in ("step", "data", "checkpoint")
    }
    assert 0 < seconds["data"] + seconds["checkpoint"] < seconds["step"]


def test_trace_has_its_steps_as_perfetto_reads_them(undisturbed):
    """It drops an event that begins in another one of its thread, and ends after that."""
    found = step_time(undisturbed / "state", 2)
    assert found and found.operations and found.compute > 0
    (file,) = (undisturbed / "state/trace/plugins/profile").glob("*/*.trace.json.gz")
    events = [
        x for x in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"] if "dur" in x
    ]
    steps = [event for event in events if event["name"] == "step"]
    assert [step["args"]["step_num"] for step in steps] == ["27", "28"]
    for step in steps:
        for event in events:
            same = event["tid"] == step["tid"]
            begins_in_it = event["ts"] < step["ts"] < span_end(event)
            assert not same or not begins_in_it or span_end(event) >= span_end(step), event


def span_end(event):
    return event["ts"] + event["dur"]


def test_there_are_no_bits_per_byte_where_text_is_lost(undisturbed, launch, record, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(json.loads(record.read_text())["folder"], folder)
    lossy = json.loads(record.read_text()) | {"folder": str(folder), "lossless": False}
    (folder / "data.json").write_text(json.dumps(lossy))
    wait(launch(*arguments(folder / "data.json", tmp_path / "state", tmp_path)))
    expected = json.loads((undisturbed / "out/summary.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["validation_bits_per_byte"] is summary["train_bits_per_byte"] is None
    for name in ("validation_nats_per_token", "train_nats_per_token"):
        assert summary[name] == expected[name]


def test_finished_state_gives_its_summary_again(undisturbed, record, tmp_path, monkeypatch):
    in_this_process(monkeypatch, *arguments(record, undisturbed / "state", tmp_path))
    for name in ("summary.json", "metrics.jsonl"):
        assert (tmp_path / name).read_text() == (undisturbed / "out" / name).read_text()


def test_loss_that_is_not_finite_ends_the_run(launch, record, tmp_path):
    options = {"learning_rate": 1e30, "warmup_steps": 0, "ngram": 1}
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    stderr = wait(launch(*command), code=1)
    kept = [path.name for path in (tmp_path / "state/checkpoints").iterdir()]
    assert kept == ["1"]
    assert "at step 2;" in stderr and "last checkpoint: step 1" in stderr
    assert "at step 2;" in (tmp_path / "state/error").read_text()
    assert not (tmp_path / "out").exists()


def test_pandas_reads_metrics_by_the_documented_line(undisturbed, tmp_path, monkeypatch):
    import pandas  # no container has it

    text = (PROGRAM.parents[2] / "docs/output.md").read_text()
    (line,) = re.findall(r"```python\n(.*<run>.*)\n```", text)
    (tmp_path / "results/train").mkdir(parents=True)
    (tmp_path / "results/train/a").symlink_to(undisturbed / "out")
    monkeypatch.chdir(tmp_path)
    variables = {"pandas": pandas}
    exec(line.replace("<run>", "a"), variables)
    table, lines = variables["table"], read_lines(undisturbed / "out/metrics.jsonl")
    assert {*table.columns} == {name for line in lines for name in line}
    assert list(table["step"]) == [*range(1, STEPS + 1)]
    assert list(table["loss"]) == pytest.approx([line["loss"] for line in lines], rel=1e-9)
    assert table["mfu"].isna().all()  # not known on a CPU


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
    with pytest.raises(SystemExit, match="was made with width 32, not 64"):
        in_this_process(monkeypatch, *command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 36, "heads": 4}, "width must be an even multiple of heads, not 36"),
        ({"warmup_steps": STEPS}, f"warmup_steps must be fewer than the {STEPS} steps of the sch"),
        ({"devices": 2, "global_batch": 9}, "global_batch must be a multiple of 2"),
        ({"devices": 4, "fsdp": 3}, "fsdp must be such that fsdp x tensor divides 4 GPUs, not 3"),
        ({"devices": 4, "tensor": 4}, "heads must be a multiple of tensor 4, not 2"),
        ({"heads": 4, "kv_heads": 3}, "heads must be a multiple of kv_heads 3, not 4"),
        ({"devices": 2, "tensor": 2, "kv_heads": 1}, "kv_heads must be a multiple of tensor 2, n"),
        ({"devices": 2, "tensor": 2, "mlp_width": 9}, "mlp_width must be a multiple of tensor 2"),
        ({"gradient_accumulation_steps": 3}, "global_batch must be a multiple of 3"),
        ({"profile": '{"first": 24, "steps": 3}'}, "profile must be of steps between validations"),
    ],
)
def test_options_that_do_not_fit(record, tmp_path, monkeypatch, options, sentence):
    command = arguments(record, tmp_path / "state", tmp_path / "out", **options)
    with pytest.raises(SystemExit, match=sentence):
        in_this_process(monkeypatch, *command)
    assert not (tmp_path / "state").exists()
