"""Whether held-out text comes back from its tokens, and what tokens without text there are."""

from typing import Any

import pytest
from prepared import SENTENCES, train_tokens
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel


def made(tmp_path, model, **parts):
    """Path of a tokenizer of this model."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.save(str(tmp_path / "made.json"))
    return tmp_path / "made.json"


WORDS = ["The", "ship", "sails", "##s", "sail", "at", "dawn", ".", "=", "x"]
VOCABULARY = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
PIECES = [("<unk>", 0.0), *((piece, -1.0) for piece in "\N{LOWER ONE EIGHTH BLOCK}abcdefghstw")]
LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}
BYTES = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
FALLBACK = LETTERS | {f"<0x{byte:02X}>": 27 + byte for byte in range(256)}
KNOWN = {word: number for number, word in enumerate(SENTENCES.split(), 1)}
LOSING: dict[str, tuple[models.Model, dict[str, Any], bool]] = {
    "WordPiece of another language": (
        models.WordPiece(VOCABULARY, unk_token="[UNK]"),
        {"pre_tokenizer": pre_tokenizers.Whitespace(), "decoder": decoders.WordPiece()},
        True,
    ),
    "Unigram of another language": (
        models.Unigram(PIECES, unk_id=0),
        {"pre_tokenizer": pre_tokenizers.Metaspace(), "decoder": decoders.Metaspace()},
        True,
    ),
    "lower-casing": (
        models.BPE(BYTES, []),
        {
            "normalizer": normalizers.Lowercase(),
            "pre_tokenizer": ByteLevel(add_prefix_space=False),
            "decoder": decoders.ByteLevel(),
        },
        False,
    ),
    "dropping what it does not know": (
        models.BPE(LETTERS, []),
        {"decoder": decoders.Fuse()},
        False,
    ),
    "normalising characters": (
        models.BPE(BYTES, []),
        {
            "normalizer": normalizers.NFKD(),
            "pre_tokenizer": ByteLevel(add_prefix_space=False),
            "decoder": decoders.ByteLevel(),
        },
        False,
    ),
    "dropping white space": (
        models.WordLevel({"[UNK]": 0} | KNOWN, unk_token="[UNK]"),
        {"pre_tokenizer": pre_tokenizers.WhitespaceSplit()},
        True,  # the number that begins a file
    ),
}
KEEPING: dict[str, tuple[models.Model, dict[str, Any]]] = {
    "bytes": (
        models.BPE(BYTES, []),
        {"pre_tokenizer": ByteLevel(add_prefix_space=False), "decoder": decoders.ByteLevel()},
    ),
    "a space before a text": (
        models.BPE(BYTES, []),
        {"pre_tokenizer": ByteLevel(add_prefix_space=True), "decoder": decoders.ByteLevel()},
    ),
    "bytes for what it does not know": (
        models.BPE(FALLBACK, [], byte_fallback=True),
        {"decoder": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])},
    ),
}


@pytest.mark.parametrize("name", LOSING)
def test_text_that_is_lost_is_told(prepare, tmp_path, capsys, name):
    model, parts, unknown = LOSING[name]
    record = prepare(tokenizer=made(tmp_path, model, **parts))
    assert not record.lossless
    assert (record.unknown_tokens > 0) is unknown
    share = record.unknown_tokens / record.validation_tokens
    told = f"Warning: the tokenizer does not give text back ({share:.1%} of its tokens are unknown)"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("name", KEEPING)
def test_text_that_comes_back_is_not_called_lost(prepare, tmp_path, capsys, name):
    model, parts = KEEPING[name]
    record = prepare(tokenizer=made(tmp_path, model, **parts))
    assert record.lossless and not record.unknown_tokens
    assert "Warning" not in capsys.readouterr().out


def test_special_tokens_in_a_text_come_back(prepare, tokenizer, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"{number}: <s> and </s> are written here")
    record = prepare([f"{tmp_path}/*.txt"], 32, tokenizer=tokenizer)
    assert record.lossless and record.special_tokens == 2


def test_special_tokens_of_held_out_documents_are_counted(prepare, corpus, tokenizer):
    record = prepare(tokenizer=tokenizer)
    documents = 40 - (train_tokens(record) == 0).sum()
    assert record.special_tokens == 2 * documents
    assert record.lossless
    assert prepare().special_tokens == 0


def test_unknown_tokens_are_counted(prepare, tmp_path):
    words = {"[UNK]": 0, "a": 1, "b": 2}
    made_of = models.WordLevel(words, unk_token="[UNK]")
    path = made(tmp_path, made_of, pre_tokenizer=pre_tokenizers.WhitespaceSplit())
    for text in ("a b c d", "b a d c"):
        (tmp_path / f"{text}.txt").write_text(text)
    record = prepare([f"{tmp_path}/*.txt"], 7, tokenizer=path)
    assert (record.validation_tokens, record.unknown_tokens, record.lossless) == (4, 2, False)
