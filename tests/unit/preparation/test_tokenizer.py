"""Tokens of a tokenizer.json: those of each file, wherever long files and batches are cut."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from jaxway.data import sources
from jaxway.data import tokenizer as tokenizer_module
from jaxway_shared.errors import UserError
from prepared import SENTENCES, load, ordered, train_tokens
from tokenizers import Tokenizer, models, pre_tokenizers


def test_tokens_are_those_of_each_file(prepare, corpus, tokenizer):
    record = prepare(tokenizer=tokenizer)
    same = Tokenizer.from_file(str(tokenizer))
    same.no_truncation()
    same.no_padding()
    held = 40 - (train_tokens(record) == 0).sum()  # each file has one <s>
    expected = [same.encode(text.decode()).ids for text in ordered(corpus)[held:]]
    np.testing.assert_array_equal(train_tokens(record), np.concatenate(expected))
    assert load(record).shards[0].dtype == record.dtype == "uint16"
    assert record.vocabulary == same.get_vocab_size() > 256
    assert record.tokenizer == str(tokenizer)
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert record.tokenizer_sha256 == digest
    assert record.train_bytes == sum(map(len, ordered(corpus)[held:])) > record.train_tokens


def test_documented_way_to_make_a_tokenizer(prepare, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/training.md").read_text()
    (example,) = [code for code in re.findall("```python\n(.*?)```", page, re.S) if "Bpe" in code]
    monkeypatch.chdir(tmp_path)
    for name, more in (("my", ""), ("others", "\N{SNOWMAN}")):  # which the tokenizer has not seen
        rows = [json.dumps({"text": f"{number} {SENTENCES}{more}"}) for number in range(9)]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
    exec(example, {})
    options = {"tokenizer": "tokenizer.json", "end-of-text": "<|endoftext|>"}
    assert prepare([tmp_path / "others.jsonl"], 200, **options).lossless


def test_validation_is_cut_between_characters(prepare, corpus, tokenizer):
    text = b"".join(ordered(corpus))
    cut = next(i for i in range(5000, 6000) if text[i] & 0xC0 == 0x80)  # amid a character
    record = prepare(validation_bytes=cut, tokenizer=tokenizer)
    tokens = load(record).validation
    same = Tokenizer.from_file(str(tokenizer))
    decoded = same.decode(tokens.tolist(), skip_special_tokens=True).encode()
    assert decoded == text[:cut].decode(errors="ignore").encode()
    assert record.validation_bytes == len(decoded) in (cut - 1, cut - 2)
    assert record.validation_tokens == len(tokens)
    plain = prepare(validation_bytes=cut)
    assert plain.validation_bytes == cut


@pytest.mark.parametrize("batch", [1, 500, 2**24])
def test_long_files_are_cut_at_line_ends(prepare, corpus, tokenizer, monkeypatch, batch):
    whole = train_tokens(prepare(tokenizer=tokenizer)).tolist()
    monkeypatch.setattr(sources, "CHUNK_SIZE", 200)
    monkeypatch.setattr(tokenizer_module, "BATCH_SIZE", batch)
    texts = [
        tokenizer_module.Text(0, sources.read(path, False, sources.NO_PROGRESS))
        for path in corpus.iterdir()
    ]
    pieces = [chunk.text for text in texts for chunk in tokenizer_module.chunk_text(text)]
    assert len(pieces) > 200 and max(map(len, pieces)) <= 400
    assert sum(piece.endswith("\n") for piece in pieces) > 100
    record = prepare(tokenizer=tokenizer, store=corpus.parent / f"cut{batch}")
    tokens = train_tokens(record).tolist()
    same = Tokenizer.from_file(str(tokenizer))
    assert same.decode(tokens, skip_special_tokens=False) == same.decode(
        whole, skip_special_tokens=False
    )
    # Special tokens around files alone: </s> ends what <s> begins.
    assert [t for t in tokens if t < 2] == [0, 1] * (len([t for t in tokens if t < 2]) // 2)


def test_small_files_share_a_batch(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "BATCH_SIZE", 250)
    texts = [tokenizer_module.Text(0, [b"x" * 100]) for _ in range(7)]
    assert [len(batch) for batch in tokenizer_module.batches(texts)] == [3, 3, 1]


def test_vocabulary_may_be_large_and_with_gaps(prepare, tmp_path):
    words = {f"w{i}": i for i in range(65_000)} | {"[UNK]": 65_001, "last": 65_536}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"w7 last\n{number}")
    record = prepare([f"{tmp_path}/*.txt"], 9, tokenizer=tmp_path / "tokenizer.json")
    assert (record.dtype, record.vocabulary) == ("uint32", 65_537)
    assert train_tokens(record).tolist() == [7, 65_536, 65_001]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (None, "cannot read .*/tokenizer.json: No such file or directory"),
        ("{}", "tokenizer.json is not a valid tokenizer.json: .*Model missing"),
        ('{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has an empty vocabulary"),
    ],
)
def test_invalid_tokenizer_is_refused(prepare, tmp_path, file, sentence):
    path = tmp_path / "tokenizer.json"
    if file is not None:
        path.write_text(file)
    with pytest.raises(UserError, match=f"^tokenizer: .*{sentence}"):
        prepare(tokenizer=path)
    assert not (tmp_path / "data").exists()


def test_text_that_the_tokenizer_refuses_is_refused(prepare, tmp_path):
    Tokenizer(models.WordLevel({"word": 0}, unk_token="?")).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match=r"tokenizer: .*Missing \[UNK\]"):
        prepare(tokenizer=tmp_path / "t.json")


def test_tokenizer_without_tokens_for_a_text_is_refused(prepare, tmp_path):
    Tokenizer(models.BPE({"q": 0}, [])).save(str(tmp_path / "t.json"))
    for text in ("aaa", "bbb"):
        (tmp_path / f"{text}.txt").write_text(text)
    with pytest.raises(UserError, match="only 0 tokens for training, 0 for validation"):
        prepare([f"{tmp_path}/*.txt"], 3, tokenizer=tmp_path / "t.json")


def test_a_large_file_is_cut_between_characters(prepare, tokenizer, tmp_path):
    text = "日本語\n" * 3000
    (tmp_path / "a.txt").write_text(text)
    record = prepare([tmp_path / "a.txt"], validation_bytes=4999, tokenizer=tokenizer)
    same = Tokenizer.from_file(str(tokenizer))
    learned, held_out = (
        same.decode(tokens.tolist(), skip_special_tokens=True)
        for tokens in (train_tokens(record), load(record).validation)
    )
    assert learned + held_out == text
    assert 4997 <= len(held_out.encode()) == record.validation_bytes < 4999
    assert record.train_bytes == len(learned.encode())
