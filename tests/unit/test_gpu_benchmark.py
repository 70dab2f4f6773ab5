"""benchmarks/gpu.py: whatever a part does, the others run and its results stay."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks/gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # dataclasses look for it
    spec.loader.exec_module(module)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield module
    for number, handler in handlers.items():
        signal.signal(number, handler)


def program(folder: Path, text: str) -> Path:
    """A program that gpu.py can start."""
    file = folder / f"{len(list(folder.iterdir()))}.py"
    file.write_text(f"import json, os, subprocess, sys, time\nout = sys.argv[-1][6:]\n{text}")
    return file


WRITE = "open(out, 'w').write(json.dumps({'rows': [['speed', '7', '']]}))\n"
PARTS = {  # what each does, and what becomes of it
    "good": (WRITE, "ok"),
    "crashes": (WRITE + "print('no luck', flush=True); os.abort()", "failed"),
    "hangs": (f"{WRITE}\nsubprocess.run(['tail', '-f', __file__])", "over its limit"),
    "writes half": ("open(out, 'w').write('{')", "ok"),
    "writes something else": ("open(out, 'w').write('[]')", "ok"),
    "good, too": (WRITE, "ok"),
}


def run(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, out: Path, parts: Any, minutes: float, *more: str
) -> Any:
    """What is in the files after a run of these parts, and its exit code."""
    monkeypatch.setattr(gpu, "parts", lambda *_: parts)
    words = ["gpu.py", "--platform=cpu", f"--minutes={minutes}", f"--out={out}", *more]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        gpu.main()
    found = json.loads((out / "gpu.json").read_text())
    return found["parts"], (out / "gpu.md").read_text(), end.value.code


def test_one_part_does_not_stop_the_rest(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        gpu.Part(name, [program(tmp_path, text)], 0.1, 0.2, gpu.of_rows)
        for name, (text, _) in PARTS.items()
    ]
    found, table, code = run(gpu, monkeypatch, tmp_path / "out", parts, 1)
    assert {x["name"]: x["status"] for x in found} == {k: v[1] for k, v in PARTS.items()}
    assert code == 1
    assert "not measured on a GPU" in table
    for name in ("good", "crashes", "hangs", "good, too"):  # results before an end, too
        assert f"| {name} | speed | 7 |  |" in table
    assert "| **failed** | no luck |" in table
    assert table.count("its result cannot be read") == 1
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout


def test_time_is_kept_for_the_parts_that_fit(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def run_at_once(part: Any, limit_s: float, *_: Any) -> Any:
        limits.append(limit_s)
        return gpu.Outcome(part.name, "ok", 0.0, "", {}, None, [])

    monkeypatch.setattr(gpu, "run", run_at_once)
    needs = (20, 30, 30, 5)  # in 60 seconds two of them fit, and the others get what is left
    parts = [gpu.Part(str(need), [], need, 10, gpu.of_rows) for need in needs]
    run(gpu, monkeypatch, tmp_path / "out", parts, (60 + gpu.END_S) / 60)
    assert limits == pytest.approx([30, 60, 60, 60], abs=5)


def test_part_without_time_does_not_run(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither git nor nvidia-smi
    part = gpu.Part("late", [program(tmp_path, WRITE)], 20, 100, gpu.of_rows)
    found, table, code = run(gpu, monkeypatch, tmp_path / "out", [part], 0.1)
    assert [x["status"] for x in found] == ["no time left"]
    assert code == 1
    assert "| late | after 0 s | **no time left** |  |" in table
    assert "no GPU, " in table and "commit None" in table


def test_only_the_parts_that_are_named_run(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = program(tmp_path, WRITE)
    parts = [gpu.Part(name, [file], 0.1, 100, gpu.of_rows) for name in ("good", "arm: good")]
    found, _, code = run(gpu, monkeypatch, tmp_path / "one", parts, 1, "--only", "good", "base")
    assert ([x["name"] for x in found], code) == (["good"], 0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--out={tmp_path}/none", "--only=x", "--only=y"])
    with pytest.raises(SystemExit, match=r"^gpu.py: no part begins with y$"):
        gpu.main()
    assert not (tmp_path / "none").exists()


def test_stopped_run_keeps_its_results(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, out = tmp_path / "pid", tmp_path / "out"
    stop = f"open('{pid}', 'w').write(str(os.getpid())); os.kill(os.getppid(), 15); time.sleep(99)"
    texts = {"good": WRITE, "stops": stop, "never": WRITE}
    parts = [
        gpu.Part(name, [program(tmp_path, text)], 0.1, 100, gpu.of_rows)
        for name, text in texts.items()
    ]
    found, _, message = run(gpu, monkeypatch, out, parts, 60)
    assert message == f"gpu.py: ended by SIGTERM; {out} has what was found"
    assert [x["name"] for x in found] == ["good"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    again, _, message = run(gpu, monkeypatch, out, parts, 60)
    assert message == f"gpu.py: {out}/gpu.log is there already: choose another folder for --out"
    assert again == found


def test_folder_that_cannot_be_written(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out=/proc/gpu"])
    with pytest.raises(SystemExit, match=r"^gpu.py: /proc/gpu cannot be written: No such file"):
        gpu.main()


def test_arms_are_compared_with_the_bases_around_them(gpu: Any) -> None:
    def outcome(name: str, speed: float | None) -> Any:
        measurement = speed and {"samples": [speed, speed, 2 * speed]}
        result = {"cases": [{"case": {"preset": "124M"}, "measurement": measurement}]}
        return gpu.Outcome(name, "ok", 1.0, "", {}, result, [])

    speeds = (90, 120, 110, None, 110, 220, None, 7, 7, 7)
    names = ("base", "arm: a", "base", "arm: b", "base", "arm: c", "base", *3 * ["arm: d"])
    rows = gpu.ratios([outcome(*x) for x in zip(names, speeds, strict=True)])
    assert rows == [
        ("arm: a", "1.200 of the base's speed", "bases: 2"),
        ("arm: c", "2.000 of the base's speed", "bases: 1"),
    ]


def test_products_and_copies_are_compared_with_pytorch(gpu: Any) -> None:
    def case(value: float, **names: str) -> Any:
        return {"case": names, "measurement": {"samples": [value, value]}}

    results = {
        "compute": {"cases": [case(600, dtype="bfloat16", shape="8x8x8")]},
        "memory": {"cases": [case(2000, kernel="copy"), case(1, kernel="add")]},
        gpu.PYTORCH: {"rows": [["bfloat16 8x8x8", "500 TFLOP/s", ""], ["copy", "2500 GB/s", ""]]},
    }
    outcomes = [gpu.Outcome(k, "ok", 1.0, "", {}, v, []) for k, v in results.items()]
    assert [row[:2] for row in gpu.beside_pytorch(outcomes)] == [
        ("bfloat16 8x8x8", "1.200 of PyTorch's speed"),
        ("copy", "0.800 of PyTorch's speed"),
    ]
    absent = gpu.Outcome(gpu.PYTORCH, "ok", 1.0, "", {}, {"rows": [["PyTorch", "-", "none"]]}, [])
    assert gpu.beside_pytorch([*outcomes[:2], absent]) == []
