"""Texts that a model wrote: its program writes tokens, which become text here."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxway_shared import training
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import RAW
from jaxway.data.tokenizer import load_tokenizer

SAMPLES = 10  # the newest, that are shown
Decode = Callable[[Sequence[int]], str]


def samples_of(metrics: Path, decode: Decode) -> list[tuple[int, str]]:
    """Steps and the texts that a model wrote after them, the newest first."""
    texts = [text for text in training.metrics_text(metrics) if '"sample_tokens"' in text]
    lines = map(json.loads, texts[: -SAMPLES - 1 : -1])
    return [(line["step"], decode(line["sample_tokens"])) for line in lines]


def decoder(data: DataRecord) -> Decode | None:
    """What makes text of tokens; None, if they are no text or the tokenizer is not what it was."""
    if data.tokenizer == RAW:
        return None
    if not data.tokenizer_sha256:
        return lambda tokens: bytes(tokens).decode(errors="replace")
    try:
        encoder = load_tokenizer(data.tokenizer)
    except UserError:
        return None
    return encoder.tokenizer.decode if encoder.sha256 == data.tokenizer_sha256 else None
