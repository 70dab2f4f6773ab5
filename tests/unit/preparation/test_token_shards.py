"""Shards of tokens that others have made are used where they lie, with their tokenizer."""

import os
from pathlib import Path

import numpy as np
import pytest
from jaxway.data import token_shards
from jaxway_shared.errors import UserError
from prepared import load, ordered, train_tokens
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def texts(corpus: Path) -> list[bytes]:
    return ordered(corpus)


@pytest.fixture
def write(tmp_path, texts, tokenizer):
    """Function that writes tokens of some texts as a shard, by nanoGPT or by llm.c."""
    made = Tokenizer.from_file(str(tokenizer))
    made.no_truncation()
    made.no_padding()

    def write(name: str, begin: int, end: int, dtype="<u2", header=False) -> np.ndarray:
        tokens = np.concatenate(
            [np.array(made.encode(text.decode()).ids, dtype) for text in texts[begin:end]]
        )
        head = np.zeros(256, "<i4")
        head[:3] = 20240520, 1, len(tokens)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((head.tobytes() if header else b"") + tokens.tobytes())
        return tokens

    return write


def options(tmp_path, tokenizer, **others):
    validation = {"validation": tmp_path / "val.bin", "token-shards": "uint16"}
    return {"tokenizer": tokenizer, **validation, **others}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("header", [False, True])
def test_shards_are_used_without_a_copy(prepare, write, tokenizer, tmp_path, texts, dtype, header):
    code = f"<u{np.dtype(dtype).itemsize}"
    tokens = [write(f"a/{n}.bin", 10 * n, 10 * n + 10, code, header) for n in range(3)]
    held_out = write("val.bin", 30, 40, code, header)
    arguments = options(tmp_path, tokenizer) | {"token-shards": dtype, "end-of-text": "</s>"}
    record = prepare([tmp_path / "a"], validation_bytes=10**6, **arguments)
    assert record.header_bytes == 1024 * header and record.dtype == dtype
    assert sorted(record.shards) == sorted(map(len, tokens))
    assert sorted(train_tokens(record)) == sorted(np.concatenate(tokens))
    np.testing.assert_array_equal(load(record).validation, held_out)
    links = {file.stat().st_ino for file in Path(record.folder).glob("train-*")}
    assert links == {file.stat().st_ino for file in (tmp_path / "a").iterdir()}
    assert record.validation_bytes == len(b"".join(texts[30:]))
    assert (record.special_tokens, record.end_of_text, record.lossless) == (20, 1, True)
    # Bytes per token are those of a sample, here of all there is.
    assert record.train_bytes == pytest.approx(len(b"".join(texts[:30])), rel=0.01)
    assert 0 < record.gzip_bits_per_byte < record.unigram_bits_per_byte < 8
    again = prepare([tmp_path / "a"], validation_bytes=10**6, **arguments)
    assert again == record


def test_shards_on_another_file_system_are_copied(prepare, write, tokenizer, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    tokens = write("a.bin", 0, 30)
    write("val.bin", 30, 40)
    record = prepare([tmp_path / "a.bin"], **options(tmp_path, tokenizer))
    np.testing.assert_array_equal(train_tokens(record), tokens)


def test_tokens_that_would_be_a_large_number_are_no_header(tmp_path):
    tokens = np.full(600, 0x7FFF, "<u2")  # as int32 twice as many bytes as int32 can say
    tokens.tofile(tmp_path / "a.bin")
    header, found = token_shards.open_tokens(tmp_path / "a.bin", np.dtype("<u2"))
    assert header == 0 and len(found) == 600


def test_no_more_is_validated_on_than_asked_for(prepare, write, tokenizer, tmp_path):
    write("a.bin", 0, 30)
    held_out = write("val.bin", 30, 40)
    record = prepare([tmp_path / "a.bin"], 3000, **options(tmp_path, tokenizer))
    found = load(record).validation
    np.testing.assert_array_equal(found, held_out[: len(found)])
    assert 3000 <= record.validation_bytes < 3000 + 16 * token_shards.PIECE_TOKENS


def test_sources_of_shards_have_names(prepare, write, tokenizer, tmp_path):
    code = write("code.bin", 0, 10)
    write("web.bin", 10, 30)
    write("val.bin", 30, 40)
    words = ["--source", "web", tmp_path / "web.bin", "--source", "code", tmp_path / "code.bin"]
    record = prepare([], words=words, **options(tmp_path, tokenizer))
    assert record.sources == {"web": 1, "code": 1}
    np.testing.assert_array_equal(load(record).shards[1], code)


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (
            lambda f: (f / "a.bin").write_bytes(b"odd"),
            "JW188",
            "a.bin is no shard of uint16: it has 3",
        ),
        (
            lambda f: (f / "a.bin").write_bytes(b""),
            "JW188",
            "a.bin is no shard of uint16: it has 0",
        ),
        (
            lambda f: (f / "a.bin").write_bytes(b"\xff" * 8),
            "JW188",
            "a.bin has token 65535, but the tok",
        ),
        (
            lambda f: (f / "a.bin").write_bytes((f / "val.bin").read_bytes()),
            "JW188",
            "val.bin is to be trained on, too",
        ),
        (lambda f: (f / "val.bin").unlink(), "JW180", "val.bin matches no file"),
    ],
    ids=["odd", "empty", "another tokenizer", "both", "gone"],
)
def test_what_is_no_shard_is_refused(prepare, write, tokenizer, tmp_path, change, code, sentence):
    write("a.bin", 0, 30)
    write("val.bin", 30, 40)
    change(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        prepare([tmp_path / "a.bin"], **options(tmp_path, tokenizer))
    assert caught.value.code == code


def test_shards_with_and_without_header_are_not_mixed(prepare, write, tokenizer, tmp_path):
    write("a/1.bin", 0, 10, header=True)
    write("a/2.bin", 10, 30)
    write("val.bin", 30, 40)
    with pytest.raises(UserError, match="some shards have a header and others have none"):
        prepare([tmp_path / "a"], **options(tmp_path, tokenizer))
