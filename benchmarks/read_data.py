"""Speed and memory of preparing a Parquet file: as bytes once, and then in rounds with a tokenizer,
beside `datasets` reading and tokenising the same. A second of CPU time depends little on what else
the machine does.

Run from the checkout, where OTHER is the Python of an environment with `datasets` and `tokenizers`:
.venv/bin/python benchmarks/read_data.py OTHER [GIGABYTES] [ROUNDS] [FOLDER]
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[1]
OTHER, GIGABYTES, ROUNDS, FOLDER = [*sys.argv[1:], *("", "3", "0", None)[len(sys.argv[1:]) :]]
ROWS = 10_000  # in a row group
WITH_DATASETS = """
import sys
from datasets import load_dataset
from tokenizers import Tokenizer

file, tokenizer, cache = sys.argv[1:]
encode = Tokenizer.from_file(tokenizer).encode_batch_fast
rows = load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
rows.map(
    lambda batch: {"ids": [each.ids for each in encode(batch["text"])]},
    batched=True,
    remove_columns=rows.column_names,
)
"""


def documents(size: float) -> Iterator[str]:
    """Pieces of Python's standard library, 1 to 8 kB, each with a number of its own."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text, draw = "".join(file.read_text() for file in files), random.Random(0)
    number = 0
    while size > 0:
        start = draw.randrange(len(text) - 8000)
        piece = f"{number}\n{text[start : start + draw.randrange(1000, 8000)]}"
        size, number = size - len(piece.encode()), number + 1
        yield piece


def write_parquet(path: Path, size: float) -> None:
    schema, rows = pa.schema({"text": pa.string()}), documents(size)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while batch := [text for _, text in zip(range(ROWS), rows, strict=False)]:
            writer.write_table(pa.table({"text": batch}, schema), row_group_size=ROWS)


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=16384, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents(4e6), trainer)
    tokenizer.save(str(path))


class Run(NamedTuple):
    """Seconds of wall and CPU time, and the most memory that the process had, in GB."""

    wall: float
    cpu: float
    memory: float

    def __str__(self) -> str:
        speeds = f"{size / self.wall / 1e6:.2f} MB/s, {size / self.cpu / 1e6:.2f} MB per CPU second"
        return f"{speeds}, {self.memory:.2f} GB"


def run(*command: str | Path) -> Run:
    """What a command takes."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed")
    wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, usage.ru_maxrss * 1024 / 1e9)


with tempfile.TemporaryDirectory(dir=FOLDER) as name:
    folder = Path(name)
    file, tokenizer = folder / "text.parquet", folder / "tokenizer.json"
    write_parquet(file, float(GIGABYTES) * 1e9)
    write_tokenizer(tokenizer)
    size = file.stat().st_size
    print(f"{size / 1e9:.2f} GB of Parquet, {os.cpu_count()} cores", flush=True)
    runs: dict[str, list[Run]] = {"jaxway, bytes": [], "jaxway": [], "datasets": []}

    def measure(program: str, *command: str | Path) -> None:
        runs[program].append(run(*command))
        print(f"{program}: {runs[program][-1]}", flush=True)

    ours: list[str | Path] = [
        sys.executable,
        ROOT / "workflow/jaxway",
        "prepare-data",
        f"--data={file}",
    ]
    ours += [f"--store={folder}/data", f"--out={folder}/data.json"]
    measure("jaxway, bytes", *ours)
    for _ in range(int(ROUNDS)):
        shutil.rmtree(folder / "data")
        measure("jaxway", *ours, f"--tokenizer={tokenizer}")
        measure("datasets", OTHER, "-c", WITH_DATASETS, file, tokenizer, folder / "cache")
        shutil.rmtree(folder / "cache")
    for program, each in runs.items():
        if each:
            medians = Run(*map(statistics.median, zip(*each, strict=True)))
            print(f"{program}: medians of {len(each)}: {medians}")
