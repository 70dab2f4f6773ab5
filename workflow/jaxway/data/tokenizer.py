"""From text to tokens, with a Hugging Face tokenizer or as plain bytes."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxway_shared.errors import UserError
from tokenizers import Encoding, Tokenizer

BATCH_SIZE = 2**24  # characters that are tokenised at once, in parallel; takes 1.3 GB of memory

Tokens = np.ndarray[Any, np.dtype[Any]]
Document = Iterable[bytes]  # content of a text, in chunks


class TextChunk(NamedTuple):
    """Part of a document, and whether the document begins and ends with it."""

    first: bool
    text: str
    last: bool


class Encoder(NamedTuple):
    """A tokenizer, the special tokens it puts before and after a text, and its file's sha256.

    ``unknown`` is the token that it puts in place of what it does not know, if there is one.
    """

    tokenizer: Tokenizer
    before: list[int]
    after: list[int]
    unknown: int | None
    sha256: str

    @property
    def vocabulary(self) -> int:
        """One more than the largest token; numbers below it may be left out."""
        return 1 + max(self.tokenizer.get_vocab().values())


def load_tokenizer(path: str) -> Encoder:
    """The tokenizer in a file."""
    try:
        content = Path(path).read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Some word of its own, so that there is text between the special tokens.
        words = map(tokenizer.encode, tokenizer.get_vocab())
        word = next((word for word in words if 0 in word.special_tokens_mask), None)
    except OSError as error:
        raise UserError("JW184", f"tokenizer: cannot read {path}: {error.strerror}") from None
    except Exception as error:  # the library has no type of its own
        raise UserError(
            "JW184", f"tokenizer: {path} is not a valid tokenizer.json: {error}"
        ) from None
    if not word:
        raise UserError("JW184", f"tokenizer: {path} has an empty vocabulary")
    text = [i for i, special in enumerate(word.special_tokens_mask) if not special]
    before, after = word.ids[: text[0]], word.ids[text[-1] + 1 :]
    model = json.loads(content)["model"]
    unknown = model.get("unk_id", tokenizer.token_to_id(model.get("unk_token") or ""))
    return Encoder(tokenizer, before, after, unknown, hashlib.sha256(content).hexdigest())


class RoundTrip(NamedTuple):
    """What became of texts: their tokens, how many are unknown, and whether the texts come back.

    A space that a tokenizer adds before a text does not count.
    """

    tokens: int
    unknown: int
    lossless: bool

    def loss(self) -> str:
        """What it means that texts do not come back."""
        return (
            f"the tokenizer does not give text back ({self.unknown / max(1, self.tokens):.1%} of "
            "its tokens are unknown); where that is held-out text, results are in nats per token, "
            "not in bits per byte"
        )


def round_trip(documents: Iterable[Document], encoder: Encoder) -> RoundTrip:
    """Encode documents, as encode() does, decode them, and compare."""
    tokens, unknown, lossless = 0, 0, True
    for batch in batches(documents):
        encodings = encode_batch([chunk.text for chunk in batch], encoder)
        for chunk, encoding in zip(batch, encodings, strict=True):
            tokens += len(encoding.ids)
            unknown += sum(token == encoder.unknown for token in encoding.ids)
            decoded = encoder.tokenizer.decode(encoding.ids, skip_special_tokens=False)
            lossless = lossless and decoded in (chunk.text, f" {chunk.text}")
    return RoundTrip(tokens, unknown, lossless)


def chunk_text(document: Document) -> Iterator[TextChunk]:
    """Text of a document in chunks.

    A document longer than sources.CHUNK_SIZE is cut, after a newline if there is one: tokens there
    may be others than without the cut.
    """
    # What is no UTF-8 has been refused; if a file has changed since, its digest tells.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    first, text = True, ""
    for chunk in document:
        if end := text.rfind("\n") + 1 or len(text):
            yield TextChunk(first, text[:end], False)
            first = False
        text = text[end:] + decoder.decode(chunk)
    if text:
        yield TextChunk(first, text, True)


def batches(documents: Iterable[Document]) -> Iterator[list[TextChunk]]:
    """Chunks of all documents' text, about BATCH_SIZE characters at once."""
    batch, size = list[TextChunk](), 0
    for chunk in (chunk for document in documents for chunk in chunk_text(document)):
        batch.append(chunk)
        size += len(chunk.text)
        if size >= BATCH_SIZE:
            yield batch
            batch, size = [], 0
    yield batch


def encode_batch(texts: list[str], encoder: Encoder) -> list[Encoding]:
    """Tokens of texts, without those that mark beginning and end of a document."""
    try:
        return list(encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    except Exception as error:  # the library has no type of its own
        raise UserError("JW184", f"tokenizer: {error}") from None


def encode(
    documents: Iterable[Document], encoder: Encoder | None, dtype: np.dtype[Any]
) -> Iterator[Tokens]:
    """Tokens of documents, in flat arrays one after the other; without an encoder their bytes."""
    if encoder is None:
        for document in documents:
            yield from (np.frombuffer(chunk, dtype) for chunk in document)
        return
    for batch in batches(documents):
        encodings = encode_batch([chunk.text for chunk in batch], encoder)
        for chunk, encoding in zip(batch, encodings, strict=True):
            before, after = encoder.before * chunk.first, encoder.after * chunk.last
            yield np.array([*before, *encoding.ids, *after], dtype)
