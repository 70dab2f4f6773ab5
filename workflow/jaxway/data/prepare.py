"""Turn text into shards of tokens, once, for all trainings that read it.

In a folder of ``--store`` that their content names: ``train-00000.bin`` and so on;
``validation.bin``; and ``data.json``, the record, of which ``--out`` is a copy. The folder appears
whole, and one that is there is left as it is.
"""

import argparse
import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxway_shared import data_record
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError

from jaxway.config.jobs import BYTE_TOKENIZERS, RAW, DataOptions
from jaxway.data import shards, token_shards
from jaxway.data.corpus import Corpus
from jaxway.data.tokenizer import Encoder, load_tokenizer
from jaxway.files import atomic_replace, exclusive_lock, log, remove

OPTIONS: dict[str, dict[str, Any]] = {
    "data": {
        "type": ["array", "object"],
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "minProperties": 1,
        "propertyNames": {"pattern": r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\Z"},
        "additionalProperties": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[^-]"},
            "minItems": 1,
        },
        "default": ["python"],
        "description": "text to learn: files, folders, globs, or python for Python's standard "
        "library; or several such lists by name, whose shares are in mixture",
    },
    "text_column": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "text",
        "description": "column or key of the text in Parquet, Arrow and JSON lines",
    },
    "validation": {
        "type": ["array", "null"],
        "items": {"type": "string", "pattern": "^[^-]"},
        "minItems": 1,
        "default": None,
        "description": "text to validate on, as data. Null: some of data is held out",
    },
    "validation_bytes": {
        "type": "integer",
        "minimum": 1,
        "default": 131072,
        "description": "text to validate on, in bytes: whole documents, or the end of a larger one",
    },
    "tokenizer": {
        "type": "string",
        "pattern": "^[^-]",
        "default": "bytes",
        "description": "bytes (of text), raw (bytes of any file), or the path of a tokenizer.json",
    },
    "end_of_text": {
        "type": ["string", "integer", "null"],
        "minimum": 0,
        "maximum": 255,
        "pattern": "^[^-]",
        "default": None,
        "description": "what follows each document: the tokenizer's token of this name, or a byte, "
        "0 to 255",
    },
    "token_shards": {
        "type": ["string", "null"],
        "enum": ["uint16", "uint32", None],
        "default": None,
        "description": "data and validation are shards of such tokens of the tokenizer, as nanoGPT "
        "and llm.c write them",
    },
}
FOLDER_DIGITS = 16  # hexadecimal, of the content, in a folder's name


@contextlib.contextmanager
def disk_full_as_error(folder: Path) -> Iterator[None]:
    """Say in one sentence that there is no space left for what is written to a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            "JW185",
            f"{folder} is full: free some space or inodes there (your quota limits both), or "
            "choose another folder",
        ) from None


def text_of(record: DataRecord) -> str:
    return json.dumps(record.to_json(), indent=1) + "\n"


def prepare(store: Path, sha256: str, write: Callable[[Path, Path], DataRecord]) -> DataRecord:
    """Make the folder of data of this hash, unless it holds them already, and return its record.

    ``write`` writes them to a folder, and returns their record, given what this is called at last.
    """
    folder = store / sha256[:FOLDER_DIGITS]
    with exclusive_lock(folder):
        present = data_record.read_prepared(folder / data_record.RECORD)
        if present and present.sha256 == sha256:
            log(f"{folder} holds these data already")
            return present
        part = folder.with_name(f"{folder.name}.part")
        remove(folder, part)  # damaged, or left by a kill
        try:
            part.mkdir()
            record = write(part, folder)
            (part / data_record.RECORD).write_text(text_of(record))
            part.rename(folder)
        except BaseException:
            remove(part)
            raise
    log(
        f"{folder}: {record.train_tokens:,} tokens to train on, "
        f"{record.validation_tokens:,} for validation"
    )
    return record


def prepare_text(options: DataOptions, encoder: Encoder | None, store: Path) -> DataRecord:
    """Data of the files that options name."""
    raw = options.tokenizer == RAW
    with Corpus(store) as corpus, Corpus(store) as other:
        corpus.read([entries for _, entries in options.sources], raw, options.text_column)
        if options.validation:
            other.read([options.validation], raw, options.text_column)
        documents = (other if options.validation else corpus).documents()
        held_out, missing = shards.hold_out(documents, options.validation_bytes)
        kept = {part.document.digest: part.start for part in held_out}
        data = shards.Preparation(options, encoder, corpus, held_out, kept)
        shards.check_rest(data, missing)
        return prepare(store, data.sha256, partial(shards.write, data))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, required=True, help="folder for that of the shards")
    parser.add_argument("--out", type=Path, required=True, help="result file to write (JSON)")
    for name, option in OPTIONS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=int if option["type"] == "integer" else str,
            nargs="+" if "array" in option["type"] else None,
            default=option["default"],
            help=option["description"],
        )
    parser.add_argument(
        "--source",
        nargs="+",
        action="append",
        metavar=("NAME", "ENTRY"),
        help="in place of --data: one of several sources, and its files, folders and globs",
    )


def run(args: argparse.Namespace) -> None:
    encoder = None if args.tokenizer in BYTE_TOKENIZERS else load_tokenizer(args.tokenizer)
    named = [(name, tuple(entries)) for name, *entries in args.source or []]
    options = DataOptions(
        sources=tuple(named or [("", tuple(args.data))]),
        tokenizer=args.tokenizer,
        validation_bytes=args.validation_bytes,
        validation=tuple(args.validation or ()),
        text_column=args.text_column,
        end_of_text=args.end_of_text,
        token_shards=args.token_shards,
    )
    store = args.store.absolute()
    with disk_full_as_error(store):
        if options.token_shards and encoder:
            data = token_shards.read(options, encoder)
            record = prepare(store, data.sha256, partial(token_shards.write, data))
        else:
            record = prepare_text(options, encoder, store)
    with disk_full_as_error(args.out.parent):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_replace({args.out: text_of(record)})
