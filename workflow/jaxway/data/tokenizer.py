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

BATCH_SIZE = 2**22  # characters that are tokenised at once, in parallel; takes 330 MB of memory

Tokens = np.ndarray[Any, np.dtype[Any]]


class Text(NamedTuple):
    """A text in chunks, and the number of its source."""

    source: int
    chunks: Iterable[bytes]


class TextChunk(NamedTuple):
    """Part of a text, and whether the text begins and ends with it."""

    source: int
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

    def token(self, name: str) -> int:
        """The token of this name. UserError where there is none."""
        found = self.tokenizer.token_to_id(name)
        if found is None:
            tokens = self.tokenizer.get_added_tokens_decoder().values()
            known = ", ".join(token.content for token in tokens if token.special)
            raise UserError(
                "JW184", f"tokenizer: it has no token {name}; special ones: {known or 'none'}"
            )
        return int(found)


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


def round_trip(texts: Iterable[Text], encoder: Encoder) -> RoundTrip:
    """Encode documents, as encode() does, decode them, and compare."""
    tokens, unknown, lossless = 0, 0, True
    for batch in batches(texts):
        encodings = encode_batch([chunk.text for chunk in batch], encoder)
        for chunk, encoding in zip(batch, encodings, strict=True):
            tokens += len(encoding.ids)
            unknown += sum(token == encoder.unknown for token in encoding.ids)
            decoded = encoder.tokenizer.decode(encoding.ids, skip_special_tokens=False)
            lossless = lossless and decoded in (chunk.text, f" {chunk.text}")
    return RoundTrip(tokens, unknown, lossless)


def chunk_text(whole: Text) -> Iterator[TextChunk]:
    """A text in chunks of characters.

    A text longer than sources.CHUNK_SIZE is cut, after a newline if there is one: tokens there
    may be others than without the cut.
    """
    # What is no UTF-8 has been refused; if a file has changed since, its digest tells.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    first, text = True, ""
    for chunk in whole.chunks:
        if end := text.rfind("\n") + 1 or len(text):
            yield TextChunk(whole.source, first, text[:end], False)
            first = False
        text = text[end:] + decoder.decode(chunk)
    if text:
        yield TextChunk(whole.source, first, text, True)


def batches(texts: Iterable[Text]) -> Iterator[list[TextChunk]]:
    """Chunks of all texts, about BATCH_SIZE characters at once."""
    batch, size = list[TextChunk](), 0
    for chunk in (chunk for text in texts for chunk in chunk_text(text)):
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
    texts: Iterable[Text], encoder: Encoder | None, dtype: np.dtype[Any], end: int | None = None
) -> Iterator[tuple[int, Tokens]]:
    """Tokens of texts, one after the other, in flat arrays with the number of the source.

    Without an encoder tokens are bytes. The token ``end`` follows each text that is not empty.
    """
    if encoder is None:
        for text in texts:
            empty = True
            for content in text.chunks:
                yield text.source, np.frombuffer(content, dtype)
                empty = False
            if not empty and end is not None:
                yield text.source, np.array([end], dtype)
        return
    ending = list(encoder.after)
    if end is not None and ending[-1:] != [end]:
        ending.append(end)
    for batch in batches(texts):
        encodings = encode_batch([chunk.text for chunk in batch], encoder)
        for chunk, encoding in zip(batch, encodings, strict=True):
            before, after = encoder.before * chunk.first, ending * chunk.last
            yield chunk.source, np.array([*before, *encoding.ids, *after], dtype)
