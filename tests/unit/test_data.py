import ast
import fcntl
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxway.data import prepare as prepare_data
from jaxway_job import dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel

PROGRAM = Path(prepare_data.__file__)
SENTENCES = "The ship sails at dawn. Über die Straße ging ein Bär; 日本語も少し。 x = f(y)\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty different files, about 2 kB each, some with characters of several bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for number in range(40):
        words = draw.choices(SENTENCES.split(" "), k=300)
        (folder / f"{number}.txt").write_text(f"{number} " + " ".join(words))
    return folder


def ordered(corpus):
    """Contents of the files, in the order of their sha256."""
    contents = {path.read_bytes() for path in corpus.iterdir()}
    return sorted(contents, key=lambda content: prepare_data.hashlib.sha256(content).digest())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Path of a byte-pair tokenizer that puts <s> before and </s> after a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([SENTENCES] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.enable_truncation(16)  # saved with many a tokenizer, for another use than ours
    made.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def prepare(corpus, tmp_path, monkeypatch):
    """Function that runs the program here and returns the record."""

    def run(sources=(corpus,), validation_bytes=5000, folder=tmp_path / "data", **options):
        out = tmp_path / "out/data.json"
        words = ["--data", *sources, f"--validation-bytes={validation_bytes}"]
        words += [f"--{name}={value}" for name, value in options.items()]
        words += [f"--folder={folder}", f"--out={out}"]
        monkeypatch.setattr(sys, "argv", ["jaxway prepare-data", *map(str, words)])
        prepare_data.main()
        return json.loads(out.read_text())

    return run


def content(folder):
    """Names in a folder, each with what changes when the file is made again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def train_tokens(record):
    """All tokens to train on."""
    return np.concatenate(dataset.load(record).shards)


# ------------------------------------------------------------------------------------ preparing


def test_options_can_be_read_without_running_the_program():
    literal = next(
        node.value
        for node in ast.parse(PROGRAM.read_text()).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "OPTIONS"
    )
    assert literal
    assert ast.literal_eval(literal) == prepare_data.OPTIONS
    for name, schema in prepare_data.OPTIONS.items():
        assert set(schema) >= {"type", "default", "description"}, name


@pytest.mark.parametrize(
    ("module", "foreign"), [("prepare_data", {"jax"}), ("data", {"jax", "tokenizers", "requests"})]
)
def test_what_is_not_imported(module, foreign):
    line = f"import sys, {module}; print(*{foreign} & set(sys.modules))"
    command = [sys.executable, "-c", line]
    done = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_standard_library_is_text_to_learn(prepare):
    record = prepare(["python"], validation_bytes=10_000)
    assert record["files"] > 100 and record["train_bytes"] > 1_000_000
    assert b"def " in dataset.load(record).validation.tobytes()
    names = {part for path in prepare_data.find_files("python") for part in path.parts}
    assert not names & {"site-packages", "test"}


def test_bytes_are_as_in_the_files_and_no_file_is_on_both_sides(prepare, corpus, tmp_path):
    record = prepare()
    contents = ordered(corpus)
    sizes = np.cumsum([len(c) for c in contents])
    held = int(np.searchsorted(sizes, 5000)) + 1
    assert held >= 2 and sizes[held - 1] > 5000
    assert dataset.load(record).validation.tobytes() == b"".join(contents)[:5000]
    assert train_tokens(record).tobytes() == b"".join(contents[held:])
    count = int(sizes[-1] - sizes[held - 1])
    folder = tmp_path / "data"
    text = np.frombuffer(b"".join(contents[held:]), np.uint8)
    measured = {
        name: record.pop(name) for name in ("sha256", "unigram_bits_per_byte", "gzip_bits_per_byte")
    }
    assert record == {
        "files": 40, "tokenizer": "bytes", "tokenizer_sha256": None, "vocabulary": 256,
        "dtype": "uint8", "shards": [count], "train_tokens": count, "train_bytes": count,
        "validation_tokens": 5000, "validation_bytes": 5000, "folder": str(folder),
    }  # fmt: skip
    validation = np.frombuffer(b"".join(contents)[:5000], np.uint8)
    assert measured["unigram_bits_per_byte"] == pytest.approx(
        prepare_data.unigram_bits(np.bincount(text, minlength=256), validation)
    )
    assert 0 < measured["gzip_bits_per_byte"] < measured["unigram_bits_per_byte"] < 8


def test_where_files_lie_and_how_often_makes_no_difference(prepare, corpus, tmp_path):
    first = prepare()
    (tmp_path / "copies").mkdir()
    files = sorted(corpus.iterdir())
    for number, path in enumerate(files + files[:7]):
        (tmp_path / f"copies/{number:03}").write_bytes(path.read_bytes())
    second = prepare([f"{tmp_path}/copies/*"], folder=tmp_path / "other")
    assert {**second, "folder": first["folder"]} == first
    assert (train_tokens(second) == train_tokens(first)).all()


def test_shards(prepare, monkeypatch):
    whole = train_tokens(prepare())
    monkeypatch.setattr(prepare, "SHARD", 1000)
    record = prepare()
    last = len(whole) % 1000
    assert record["shards"] == [1000] * (len(whole) // 1000) + [last] * (last > 0)
    np.testing.assert_array_equal(train_tokens(record), whole)
    monkeypatch.setattr(prepare, "SHARD", len(whole))  # no empty one after the last
    assert prepare()["shards"] == [len(whole)]


@pytest.mark.parametrize(
    ("sources", "needs", "sentence"),
    [
        (["/no/such/place"], 1, "/no/such/place names no file"),
        (["/no/such/*.txt"], 1, r"/no/such/\*.txt names no file"),
        (["{corpus}"], 10**9, "the 40 different files leave 0 bytes for training after [1-9]"),
        (["{corpus}/0.txt"], 1, "the 1 different files leave 0 bytes for training after 1 "),
    ],
)
def test_data_that_will_not_do(prepare, corpus, tmp_path, sources, needs, sentence):
    with pytest.raises(SystemExit, match=f"^jaxway prepare-data: data: .*{sentence}"):
        prepare([source.format(corpus=corpus) for source in sources], needs)
    assert not any(tmp_path.iterdir())


def test_unreadable_data(prepare, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SystemExit, match=r"data: cannot read .*\.txt: Permission denied"):
        prepare()


def test_data_that_change_meanwhile(prepare, corpus, tmp_path, monkeypatch):
    (tmp_path / "changing").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "changing" / path.name).write_bytes(path.read_bytes())
    survey = prepare_data.survey

    def then_change(sources):
        found = survey(sources)
        found[-1].path.write_text("other")
        return found

    monkeypatch.setattr(prepare, "survey", then_change)
    with pytest.raises(SystemExit, match=r"\.txt has changed while it was read"):
        prepare([tmp_path / "changing"])
    assert not [*(tmp_path / "data").iterdir()]


def test_progress(prepare, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "TELL", -1)
    prepare()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reading: 0 of ") and lines[-2].startswith("writing: ")
    assert len(lines) == 81


def test_baselines():
    text, uniform = np.frombuffer(b"ab" * 5000, np.uint8), np.arange(256, dtype=np.uint8)
    once, counts = np.bincount(uniform), np.bincount(text, minlength=256)
    assert prepare_data.unigram_bits(once, text) == pytest.approx(8)
    assert prepare_data.unigram_bits(counts, text) == pytest.approx(1, abs=0.05)
    assert prepare_data.unigram_bits(counts, np.frombuffer(b"c", np.uint8)) > 13
    assert prepare_data.gzip_bits(text.tobytes()) < 0.1
    assert prepare_data.gzip_bits(uniform.tobytes()) > 8


# ------------------------------------------------------------------------------------ tokenizers


def test_tokens_are_those_of_each_file(prepare, corpus, tokenizer):
    record = prepare(tokenizer=tokenizer)
    same = Tokenizer.from_file(str(tokenizer))
    same.no_truncation()
    same.no_padding()
    held = 40 - (train_tokens(record) == 0).sum()  # each file has one <s>
    expected = [same.encode(text.decode()).ids for text in ordered(corpus)[held:]]
    np.testing.assert_array_equal(train_tokens(record), np.concatenate(expected))
    assert dataset.load(record).shards[0].dtype == record["dtype"] == "uint16"
    assert record["vocabulary"] == same.get_vocab_size() > 256
    assert record["tokenizer"] == str(tokenizer)
    digest = prepare_data.hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert record["tokenizer_sha256"] == digest
    assert record["train_bytes"] == sum(map(len, ordered(corpus)[held:])) > record["train_tokens"]


def test_validation_is_cut_between_characters(prepare, corpus, tokenizer):
    text = b"".join(ordered(corpus))
    cut = next(i for i in range(5000, 6000) if text[i] & 0xC0 == 0x80)  # amid a character
    record = prepare(validation_bytes=cut, tokenizer=tokenizer)
    tokens = dataset.load(record).validation
    same = Tokenizer.from_file(str(tokenizer))
    decoded = same.decode(tokens.tolist(), skip_special_tokens=True).encode()
    assert decoded == text[:cut].decode(errors="ignore").encode()
    assert record["validation_bytes"] == len(decoded) in (cut - 1, cut - 2)
    assert record["validation_tokens"] == len(tokens)
    plain = prepare(validation_bytes=cut)
    assert plain["validation_bytes"] == cut


@pytest.mark.parametrize("batch", [1, 500, 2**24])
def test_long_files_are_cut_at_lines(prepare, corpus, tokenizer, monkeypatch, batch):
    whole = train_tokens(prepare(tokenizer=tokenizer)).tolist()
    monkeypatch.setattr(prepare, "PIECE", 200)
    monkeypatch.setattr(prepare, "BATCH", batch)
    pieces = [
        text
        for path in corpus.iterdir()
        for _, text, _ in prepare_data.cut(
            path, prepare_data.read(path, prepare_data.Progress("", 0))
        )
    ]
    assert len(pieces) > 200 and max(map(len, pieces)) <= 400
    assert sum(piece.endswith("\n") for piece in pieces) > 100
    record = prepare(tokenizer=tokenizer, folder=corpus.parent / f"cut{batch}")
    tokens = train_tokens(record).tolist()
    same = Tokenizer.from_file(str(tokenizer))
    assert same.decode(tokens, skip_special_tokens=False) == same.decode(
        whole, skip_special_tokens=False
    )
    # Special tokens around files alone: </s> ends what <s> begins.
    assert [t for t in tokens if t < 2] == [0, 1] * (len([t for t in tokens if t < 2]) // 2)


def test_small_files_are_tokenised_together(corpus, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH", 250)
    documents = [(corpus, [b"x" * 100]) for _ in range(7)]
    assert [len(batch) for batch in prepare_data.batches(documents)] == [3, 3, 1]


def test_a_vocabulary_of_more_than_two_bytes_and_with_holes(prepare, tmp_path):
    words = {f"w{i}": i for i in range(65_000)} | {"[UNK]": 65_001, "last": 65_536}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"w7 last\n{number}")
    record = prepare([f"{tmp_path}/*.txt"], 3, tokenizer=tmp_path / "tokenizer.json")
    assert (record["dtype"], record["vocabulary"]) == ("uint32", 65_537)
    assert train_tokens(record).tolist() == [7, 65_536, 65_001]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (None, "cannot read .*/tokenizer.json: No such file or directory"),
        ("{}", "tokenizer.json is no tokenizer.json: .*Model missing"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "knows no words"),
    ],
)
def test_a_tokenizer_that_will_not_do(prepare, tmp_path, file, sentence):
    path = tmp_path / "tokenizer.json"
    if file is not None:
        path.write_text(file)
    with pytest.raises(SystemExit, match=f"^jaxway prepare-data: tokenizer: .*{sentence}"):
        prepare(tokenizer=path)
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_that_refuses_a_text(prepare, tmp_path):
    Tokenizer(models.WordLevel({"word": 0}, unk_token="?")).save(str(tmp_path / "t.json"))
    with pytest.raises(SystemExit, match=r"tokenizer: .*Missing \[UNK\]"):
        prepare(tokenizer=tmp_path / "t.json")


def test_a_tokenizer_that_makes_nothing_of_a_text(prepare, tmp_path):
    Tokenizer(models.BPE({"q": 0}, [])).save(str(tmp_path / "t.json"))
    for text in ("aaa", "bbb"):
        (tmp_path / f"{text}.txt").write_text(text)
    with pytest.raises(SystemExit, match="only 0 tokens for training, 0 for validation"):
        prepare([f"{tmp_path}/*.txt"], 1, tokenizer=tmp_path / "t.json")


@pytest.mark.parametrize("wrong", [b"\xff\xfe", "ß".encode()[:1]])
def test_text_that_is_not_utf8(prepare, corpus, tokenizer, tmp_path, wrong):
    (tmp_path / "latin").mkdir()
    for path in corpus.iterdir():
        (tmp_path / "latin" / path.name).write_bytes(path.read_bytes())
    last = ordered(corpus)[-1]
    file = next(path for path in (tmp_path / "latin").iterdir() if path.read_bytes() == last)
    for number in range(100):  # until the file is for training
        file.write_bytes(b"%d%s" % (number, last + wrong))
        if ordered(file.parent)[-1] == file.read_bytes():
            break
    with pytest.raises(SystemExit, match=f"{file} is not UTF-8"):
        prepare([tmp_path / "latin"], tokenizer=tokenizer)
    assert not [*(tmp_path / "data").iterdir()]
    prepare([tmp_path / "latin"])  # bytes are bytes


# -------------------------------------------------------------------------------- once, and whole


def test_what_is_there_is_not_made_again(prepare, tmp_path):
    record = prepare()
    before = content(tmp_path / "data")
    (tmp_path / "out/data.json").unlink()
    assert prepare() == record
    assert content(tmp_path / "data") == before


def test_other_data_are_made_again(prepare, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 20_000)
    first = prepare()
    (tmp_path / "new.txt").write_text("new")
    changes: list[dict[str, Any]] = [
        {"sources": [corpus, tmp_path / "new.txt"]}, {"validation_bytes": 4999},
        {"tokenizer": tokenizer}, {},
    ]  # fmt: skip
    records = [first, *(prepare(**change) for change in changes)]
    assert len({record["sha256"] for record in records}) == 4 and records[-1] == first
    assert len(train_tokens(first)) == first["train_tokens"]
    same = Tokenizer.from_file(str(tokenizer))
    same.add_tokens(["ship sails"])
    same.save(str(tmp_path / "tokenizer.json"))
    other = prepare(tokenizer=tmp_path / "tokenizer.json")
    assert other["sha256"] != records[3]["sha256"]
    left = {path.name for path in (tmp_path / "data").iterdir()}
    shards = {f"train-{i:05}.bin" for i in range(len(other["shards"]))}
    assert len(shards) < len(first["shards"])
    assert left == {"data.json", "validation.bin", *shards}


@pytest.mark.parametrize("name", ["data.json", "validation.bin", "train-00001.bin"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_damaged_data_are_refused_and_made_again(prepare, tmp_path, monkeypatch, name, damage):
    monkeypatch.setattr(prepare, "SHARD", 20_000)
    record = prepare()
    tokens, file = train_tokens(record), tmp_path / "data" / name
    if damage == "gone":
        file.unlink()
    elif name == "data.json":
        text = json.dumps({**record, "sha256": "0"})
        file.write_text(text[:-1] if damage == "shorter" else text)
    else:
        file.write_bytes((file.read_bytes() + b"x")[: -2 if damage == "shorter" else None])
    cut = (name, damage) == ("data.json", "shorter")
    state = "is gone .*" if damage == "gone" else "is damaged .*" if cut else "has changed"
    sentence = rf"{file} {state}: run snakemake again, which prepares them$"
    with pytest.raises(SystemExit, match=sentence):
        dataset.load(record)
    assert prepare() == record
    np.testing.assert_array_equal(train_tokens(record), tokens)


def test_a_lost_folder_is_refused(prepare, tmp_path):
    record = prepare()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match=r"is gone .*: run snakemake again, which prepares them"):
        dataset.load(record)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_killed_preparation_leaves_nothing_that_looks_whole(prepare, corpus, tmp_path, signal):
    expected = prepare()
    tokens, folder, out = train_tokens(expected), tmp_path / "killed", tmp_path / "killed.json"
    lines = [
        "import os, signal, prepare_data",  # all shards are written when a baseline is measured
        f"prepare_data.gzip_bits = lambda text: os.kill(os.getpid(), signal.{signal})",
        "prepare_data.run(prepare_data.main)",
    ]
    words = [f"--data={corpus}", "--validation-bytes=5000", f"--folder={folder}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *words],
        cwd=PROGRAM.parent,
        capture_output=True,
        text=True,
    )
    left = {path.name for path in folder.iterdir()}
    if signal == "SIGKILL":
        assert left == {"validation.bin", "train-00000.bin"}
    else:
        assert not left
        assert (done.returncode, done.stderr) == (1, "-c: ended by SIGTERM\n")
    assert not out.exists()
    record = prepare(folder=folder)
    assert {**record, "folder": expected["folder"]} == expected
    np.testing.assert_array_equal(train_tokens(record), tokens)


def test_a_full_disk(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data.records, "shard", lambda number: "/dev/full")
    with pytest.raises(
        SystemExit, match=f"^jaxway prepare-data: {tmp_path}/data is full: make room"
    ):
        prepare()
    assert not [*(tmp_path / "data").iterdir()]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_under_the_result(prepare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.data.json.part").symlink_to("/dev/full")
    with pytest.raises(
        SystemExit, match=f"^jaxway prepare-data: {tmp_path}/out is full: make room"
    ):
        prepare()
    assert not any((tmp_path / "out").iterdir())


def test_two_at_once(corpus, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    words = [f"--data={corpus}", "--validation-bytes=5000", f"--folder={folder}"]
    with (tmp_path / "data.lock").open("w") as lock:
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
            assert process.stdout and "waiting for the end" in process.stdout.readline()
        assert not [*folder.iterdir()]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    made = rf"{folder}: [\d,]+ tokens to train on, 5,000 for validation\n"
    assert re.fullmatch(made, said[1]) and said[0] == f"{folder} holds these data already\n"
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    dataset.load(json.loads((tmp_path / "0.json").read_text()))


# --------------------------------------------------------------------------------------- reading


def numbered(*lengths, dtype="uint16"):
    """Data in memory of which each token is its own place; validation is empty."""
    places: Any = np.split(np.arange(sum(lengths), dtype=dtype), np.cumsum(lengths)[:-1])
    return dataset.Data({"shards": list(lengths)}, places, np.empty(0, dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_windows_lie_in_one_shard_and_each_is_as_likely(dtype):
    made, context = numbered(9, 3, 4, 12, 5, dtype=dtype), 4
    ends = np.cumsum(made.record["shards"])
    valid = [p for p in range(33) if p + context < min(e for e in ends if e > p)]
    assert len(valid) == 5 + 0 + 0 + 8 + 1
    starts = np.concatenate([dataset.starts(made, 0, step, 1000, context) for step in range(14)])
    assert starts.dtype == np.int64
    places, counts = np.unique(starts, return_counts=True)
    assert places.tolist() == valid
    assert abs(counts - 1000).max() < 5 * 1000**0.5  # five standard deviations
    rows = dataset.rows(made, starts, context)
    assert rows.shape == (14_000, 5) and rows.dtype == dtype
    np.testing.assert_array_equal(rows, starts[:, None] + np.arange(5))


def test_starts_depend_on_seed_and_step_only():
    made = numbered(300, 200)
    first = dataset.starts(made, 0, 1, 64, 16)
    np.testing.assert_array_equal(first, dataset.starts(made, 0, 1, 64, 16))
    assert (first != dataset.starts(made, 0, 2, 64, 16)).any()
    assert (first != dataset.starts(made, 1, 1, 64, 16)).any()
    # As the trainings before there were shards.
    drawn = np.random.default_rng((7, 3)).integers(0, 500 - 16, 64)
    np.testing.assert_array_equal(dataset.starts(numbered(500), 7, 3, 64, 16), drawn)


def test_a_process_reads_its_own_rows():
    made = numbered(50, 50)
    starts = dataset.starts(made, 0, 1, 8, 9)
    made.shards[:] = [Watched.of(shard) for shard in made.shards]
    Watched.read = 0
    mine = dataset.rows(made, starts[4:6], 9)
    assert Watched.read == 2 * 10
    np.testing.assert_array_equal(mine, starts[4:6, None] + np.arange(10))
    assert dataset.rows(made, starts[:0], 9).shape == (0, 10)


class Watched(np.ndarray):
    """An array that counts the elements taken from it."""

    read = 0

    @classmethod
    def of(cls, array):
        return array.view(cls)

    def __getitem__(self, index):
        part = np.asarray(self)[index]
        Watched.read += part.size
        return part


def test_shards_shorter_than_the_context():
    with pytest.raises(SystemExit, match="the longest of 2 shards has 16 tokens, too few for"):
        dataset.starts(numbered(16, 9), 0, 1, 4, 16)
    np.testing.assert_array_equal(dataset.starts(numbered(9, 17), 0, 1, 4, 16), [9, 9, 9, 9])


def test_shards_are_mapped_not_read(prepare):
    record = prepare()
    loaded = dataset.load(record)
    assert all(isinstance(shard, np.memmap) and shard.mode == "r" for shard in loaded.shards)
    assert loaded.record == record
    start = np.array([10])
    row = dataset.rows(loaded, start, 20)
    assert type(row) is np.ndarray and row.flags.writeable
    np.testing.assert_array_equal(row[0], loaded.shards[0][10:31])


@pytest.mark.parametrize(("dtype", "before"), [("uint8", 10), ("uint16", 0), ("uint32", 0)])
@pytest.mark.parametrize("context", [8, 9, 32])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 47, 48, 49, 200])
def test_validation_scores_each_token_once_and_in_context(context, length, dtype, before):
    text = np.arange(1, length + 1, dtype=dtype)  # each token is its own position
    windows, weights = dataset.scoring_windows(text, context)
    scored = windows[:, 1:][weights == 1]
    np.testing.assert_array_equal(scored, text)
    assert (windows.dtype, weights.dtype) == (dtype, np.float32)
    assert weights.sum() == length and windows[0, 0] == before
    known = np.nonzero(weights[1:])[1]  # tokens of context that a later window's score has
    assert (known >= context // 2).all()
