"""Preparing again, at once, after a kill, with a full disk: data are whole and made once."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxway.data import shards
from jaxway_shared import data_record
from jaxway_shared.errors import UserError
from prepared import train_tokens
from tokenizers import Tokenizer


def inodes(folder):
    """Names in a folder, each with what changes when the file is made again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_same_data_are_not_written_again(prepare, tmp_path):
    record = prepare()
    before = inodes(Path(record.folder))
    (tmp_path / "out/data.json").unlink()
    assert prepare() == record
    assert inodes(Path(record.folder)) == before


def test_other_data_are_beside_the_old(prepare, corpus, tokenizer, tmp_path, monkeypatch):
    first = prepare()
    (tmp_path / "new.txt").write_text("new")
    changes: list[dict[str, Any]] = [
        {"sources": [corpus, tmp_path / "new.txt"]}, {"validation_bytes": 4999},
        {"tokenizer": tokenizer}, {"tokenizer": "raw"}, {},
    ]  # fmt: skip
    records = [first, *(prepare(**change) for change in changes)]
    assert len({record.folder for record in records}) == 5 and records[-1] == first
    assert not [record for record in records if record.find_problem()]
    monkeypatch.setattr(shards, "SHARD_TOKENS", 20_000)
    assert prepare().folder != first.folder
    same = Tokenizer.from_file(str(tokenizer))
    same.add_tokens(["ship sails"])
    same.save(str(tmp_path / "tokenizer.json"))
    other = prepare(tokenizer=tmp_path / "tokenizer.json")
    assert other.sha256 != records[3].sha256


def test_two_clones_with_other_files_of_the_same_names(prepare, corpus, tmp_path, monkeypatch):
    records = []
    for clone in ("x", "y"):
        (tmp_path / clone / "mydata").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / clone)
        for file in corpus.iterdir():
            Path("mydata", file.name).write_text(f"{clone} {file.read_text()}")
        records.append(prepare(["mydata/*.txt"]))
    x, y = records
    assert x.folder != y.folder and not x.find_problem() and not y.find_problem()
    assert x.documents == y.documents and x.sha256 != y.sha256


def problem(record):
    """What keeps the data from being those of the record."""
    found = record.find_problem()
    assert found
    assert found.code in ("JW001", "JW186")
    return str(found).replace(";", ":")


@pytest.mark.parametrize("name", ["data.json", "validation.bin", "train-00001.bin"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_damaged_data_are_refused_and_written_again(prepare, tmp_path, monkeypatch, name, damage):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 20_000)
    record = prepare()
    tokens, file = train_tokens(record), Path(record.folder, name)
    if damage == "missing":
        file.unlink()
    elif name == "data.json":
        text = json.dumps({**record.to_json(), "sha256": "0"})
        file.write_text(text[:-1] if damage == "shorter" else text)
    else:
        file.write_bytes((file.read_bytes() + b"x")[: -2 if damage == "shorter" else None])
    cut = (name, damage) == ("data.json", "shorter")
    state = " is not a record of prepared data" if cut else " has changed"
    state = ": No such file or directory" if damage == "missing" else state
    assert problem(record) == f"{file}{state}: {data_record.REMEDY}"
    assert prepare() == record
    np.testing.assert_array_equal(train_tokens(record), tokens)


def test_missing_folder_is_refused(prepare, tmp_path):
    record = prepare()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert problem(record).startswith(f"{record.folder}/data.json: No such file")


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_killed_preparation_leaves_nothing_that_looks_whole(prepare, corpus, tmp_path, signal):
    expected = prepare()
    tokens, store, out = train_tokens(expected), tmp_path / "killed", tmp_path / "killed.json"
    name = Path(expected.folder).name
    lines = [
        "import os, signal",
        "from jaxway import cli",
        "from jaxway.data import shards",  # all shards are written when a baseline is measured
        f"shards.gzip_bits = lambda text: os.kill(os.getpid(), signal.{signal})",
        "cli.main()",
    ]
    words = [f"--data={corpus}", "--validation-bytes=5000", f"--store={store}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), "prepare-data", *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    left = {path.name for path in store.iterdir()} - {f"{name}.lock"}
    if signal == "SIGKILL":
        assert left == {f"{name}.part"}
    else:
        assert not left
        assert done.returncode == 1
        assert done.stderr.startswith("jaxway prepare-data: ended by SIGTERM")
    assert not out.exists()
    record = prepare(store=store)
    assert dataclasses.replace(record, folder=expected.folder) == expected
    assert {path.name for path in store.iterdir()} == {name, f"{name}.lock"}
    np.testing.assert_array_equal(train_tokens(record), tokens)


def test_full_disk_is_one_sentence(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(data_record, "shard", lambda *_: "/dev/full")
    with pytest.raises(UserError, match=f"^{tmp_path}/data is full: free some space"):
        prepare()
    assert {path.suffix for path in (tmp_path / "data").iterdir()} == {".lock"}
    assert not (tmp_path / "out").exists()


def test_full_disk_under_the_result_is_one_sentence(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.data.json.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"^{tmp_path}/out is full: free some space"):
        prepare()
    assert not any((tmp_path / "out").iterdir())


def test_second_preparation_waits_and_reuses(prepare, corpus, tmp_path):
    store = tmp_path / "data"
    folder = Path(prepare().folder)
    shutil.rmtree(folder)
    words = [f"--data={corpus}", "--validation-bytes=5000", f"--store={store}"]
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jaxway",
                    "prepare-data",
                    *words,
                    f"--out={tmp_path}/{i}.json",
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        for process in both:
            assert process.stdout and "locked by another process" in process.stdout.readline()
        assert not folder.exists()
    outputs = sorted(process.communicate(timeout=60)[0] for process in both)
    made = rf"{folder}: [\d,]+ tokens to train on, 5,000 for validation\n"
    assert re.fullmatch(made, outputs[1]) and outputs[0] == f"{folder} holds these data already\n"
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    assert data_record.read_prepared(tmp_path / "0.json")
