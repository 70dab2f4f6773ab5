"""The metrics of a training in pandas, by the lines that docs/output.md gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import train

DOCUMENT = Path(__file__).parents[2] / "docs/output.md"
TRAINING = "small-learning_rate=0.01"


def code(part):
    """The document's block of code about the metrics that has this in it."""
    section = DOCUMENT.read_text().split("\n## metrics.jsonl\n")[1].split("\n## ")[0]
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if part in b]
    return block.replace("<run>", TRAINING)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the results of a training of six steps."""
    folder = tmp_path_factory.mktemp("run")
    for number in range(9):
        (folder / f"{number}.txt").write_text(f"{number} is one of nine\n" * 30)
    out = folder / f"results/train/{TRAINING}/summary.json"
    words = ["--data", "*.txt", "--validation-bytes=100", "--tokenizer=bytes", "--store=data"]
    arguments = {
        "steps": 6, "log_every": 2, "layers": 1, "width": 16, "heads": 2, "ngram": 1, "context": 16,
        "global_batch": 2, "warmup_steps": 1, "learning_rate": 0.01, "platform": "cpu",
        "data_record": "data.json", "state": "state", "out": out,
    }  # fmt: skip
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in arguments.items()]
    for command in (
        ["-m", "jaxway", "prepare-data", *words, "--out=data.json"],
        [train.__file__, *flags],
    ):
        subprocess.run([sys.executable, *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def written(results, monkeypatch):
    """The lines that the training wrote, in the folder in which the code is to run."""
    monkeypatch.chdir(results)
    file = results / f"results/train/{TRAINING}/metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pandas_reads_all(written):
    variables = {"pandas": pandas}
    exec(code("pandas"), variables)
    table = variables["table"]
    assert list(table["step"]) == [2, 4, 6]
    assert list(table.columns) == list(written[0])
    assert list(table["loss"]) == pytest.approx([line["loss"] for line in written], rel=1e-9)
    assert table["mfu"].isna().all()  # not known on a CPU
