"""Text to prepare, a tokenizer, and the command that prepares, run here."""

import argparse
import random

import pytest
from jaxway.data import prepare as prepare_data
from jaxway_shared.data_record import DataRecord
from prepared import SENTENCES
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty different files, about 2 kB each, some with characters of several bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for number in range(40):
        words = draw.choices(SENTENCES.split(" "), k=300)
        (folder / f"{number}.txt").write_text(f"{number} " + " ".join(words))
    return folder


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
def prepare(corpus, tmp_path):
    """Function that runs the command here and returns the record."""

    def run(sources=(corpus,), validation_bytes=5000, store=tmp_path / "data", words=(), **options):
        out = tmp_path / "out/data.json"
        words = [*words, *(["--data", *sources] if sources else [])]
        words += [f"--validation-bytes={validation_bytes}"]
        words += [f"--{name}={value}" for name, value in options.items()]
        words += [f"--store={store}", f"--out={out}"]
        parser = argparse.ArgumentParser()
        prepare_data.configure(parser)
        prepare_data.run(parser.parse_args([*map(str, words)]))
        return DataRecord.read(out)

    return run
