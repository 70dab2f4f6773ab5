"""The report's part about training: loss curves, verdicts, samples and segments."""

import hashlib
import io
import json
import math
import re
import sys
from dataclasses import replace

import pytest
import yaml
from jaxway.report import page, plots, training
from jaxway.report.trace import StepTime
from jaxway_shared.training import ProgramSummary
from report_results import DATA, JOB_PAGES, PROVENANCE, SEGMENT, Results, rows, section
from results import SITE, write
from tokenizers import Tokenizer, models


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "The model beats gzip by 20.0\u202f%: it needs 2.000 bits"),
        ({"gzip_bits_per_byte": 1.6}, "so 25.0\u202f% more. It has seen too little text: 205 kB"),
        ({"validation_bits_per_byte": 5.5}, "worse than the byte frequencies alone"),
        ({"gzip_bits_per_byte": 1.6, "steps": 10000}, "give it more data"),
        (
            {"gzip_bits_per_byte": 1.6, "steps": 10000, "train_bits_per_byte": 1.99},
            "It saw 10 MB 2.0 times on average: raise layers",
        ),
    ],
)
def test_verdict(results, changes, sentence):
    results.add_run(**changes)
    assert sentence in results.report()


LOSSY = {
    "data": replace(DATA, lossless=False, unknown_tokens=48_000, special_tokens=4000),
    "train_bits_per_byte": None,
    "validation_bits_per_byte": None,
    "validation_nats_per_token": 0.01,
}


def test_a_tokenizer_that_loses_text_is_not_compared_with_gzip(results):
    results.add_run(**LOSSY)
    text = results.report()
    assert "0.010 nats for each token of unseen text. The tokenizer does not give that text" in text
    assert "(50.0\u202f% of the tokens are unknown)" in text
    assert ["Validation", "0.01000 nats per token"] in rows(text)
    assert ["Training, last tenth", "1.300 nats per token"] in rows(text)
    assert ["Unknown tokens", "48\u202f000 of 100\u202f000"] in rows(text)
    assert "bits per byte:" not in text and "beats gzip" not in text and "Dashed" not in text


def test_a_tokenizer_that_loses_text_is_not_the_best(results):
    results.add_run("lossy", **LOSSY)
    results.add_run("good")
    text = results.report()
    assert "model 2.000" in text and "good; gzip" in text
    table = rows(section(text, '<div class="wide">', "</div>"))
    assert [row[:3] for row in table] == [
        ["run", "validation", "nats per token"],
        ["good", "2.000", "1.400"],
        ["lossy", "\N{EM DASH}", "0.01000"],
    ]


def test_tokens_between_documents_are_said_to_count(results):
    results.add_run(data=replace(DATA, special_tokens=80))
    text = " ".join(results.report().split())
    assert "where documents begin and end, of which the validation text has 80." in text


def test_sample_is_text(results):
    results.add_run(sample='<script>alert(1)</script>\x00\x1b[31m\u202e\ud800 & "é\t', seconds=1)
    text = results.report()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;��[31m�� &amp; &#34;é\t</pre>" in text


def test_validations_and_what_the_model_wrote_after_them(results, tmp_path):
    Tokenizer(models.WordLevel({"<a>": 0, "b": 1}, unk_token="b")).save(str(tmp_path / "t.json"))
    sha256 = hashlib.sha256((tmp_path / "t.json").read_bytes()).hexdigest()
    data = replace(DATA, tokenizer=str(tmp_path / "t.json"), tokenizer_sha256=sha256)
    # A token of the held-out text has two bytes, so it costs twice as much as each of them.
    data = replace(data, validation_tokens=DATA.validation_bytes // 2)
    results.add_run(data=data, sample=None, sample_tokens=(1, 1, 0))
    lines = [
        {
            "step": step,
            "loss": 1,
            "validation_loss": 2 * math.log(2) * bits,
            "sample_tokens": tokens,
        }
        for step, bits, tokens in ((20, 4, [1]), (40, 3, [0, 1]), (60, 3.5, [0]))
    ]
    metrics = results.train[0].with_name("metrics.jsonl")
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = results.report()
    assert ["Best while training", "3.000 bits per byte, step 40"] in rows(text)
    assert "Dotted: loss on a sample" in text
    assert re.findall(r"<pre [^>]*>(.*?)</pre>", text) == [
        "b b &lt;a&gt;",
        "&lt;a&gt;",
        "&lt;a&gt; b",
        "b",
    ]
    (tmp_path / "t.json").write_text("{}")  # another one
    assert "<pre" not in results.report()


def test_settings_that_are_objects(results):
    arguments = PROVENANCE.arguments | {"profile": {"first": 20, "steps": 3}}
    results.add_run(provenance=replace(PROVENANCE, arguments=arguments))
    text = results.report()
    assert ["profile", "first 20, steps 3"] in rows(text)
    assert "that were traced" not in text  # its state is gone


def test_traced_steps_are_those_of_the_job_that_had_them(results, monkeypatch):
    segments = [
        replace(
            SEGMENT,
            first_step=first,
            last_step=last,
            provenance=replace(PROVENANCE, arguments={"profile": {"first": 20, "steps": steps}}),
        )
        for first, last, steps in ((1, 30, 3), (31, 60, 5))
    ]
    monkeypatch.setattr(training, "step_time", lambda _, steps: StepTime(steps, 5, 3, 1, 1, []))
    results.add_run(segments=tuple(segments))
    assert "mean of 3 steps that were traced" in results.report()


def test_several_runs_share_a_plot(results):
    for k in range(8):
        results.add_run(f"seed={k}", validation_bits_per_byte=2 + k / 10)
    text = results.report()
    assert text.count("<svg") == 9
    assert text.count("<details") == 8
    assert text.index("seed=0") < text.index("seed=7")
    assert "best 2.000" in text


def test_curve_of_one_step_is_drawn(results):
    results.add_run(losses=[8.0])
    assert "Training loss over" in results.report()


def test_of_many_runs_the_best_are_shown_and_all_are_in_the_table(results, monkeypatch):
    monkeypatch.setattr(page, "MAX_SHOWN", 2)
    for bits in (3, 1, 2):
        results.add_run(f"run-{bits}", validation_bits_per_byte=bits)
    results.train[0].with_name("metrics.jsonl").unlink()  # nobody reads it
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{path}\n" for path in results.train)))
    results.train = ["-"]
    text = results.report()
    assert "Only the best 2 are drawn" in text
    assert text.count("<svg") == 3 and text.count("<details") == 2
    table = rows(section(text, '<div class="wide">', "</div>"))
    assert [row[0] for row in table] == ["run", "run-1", "run-2", "run-3"]


def test_curve_of_many_steps_is_averaged(results):
    results.add_run(losses=[8 - 6 * k / 99999 for k in range(100000)])
    curve, _ = training.load_curves(results.train[0].with_name("metrics.jsonl"), DATA)
    assert curve.shape == (2, plots.MAX_POINTS)
    assert curve[1].mean() == pytest.approx(5)
    # A token of four bytes costs four times as much as each of them.
    tokens = replace(DATA, train_tokens=DATA.train_bytes // 4)
    costly, _ = training.load_curves(results.train[0].with_name("metrics.jsonl"), tokens)
    assert 4 * costly[1].mean() == pytest.approx(5)
    assert len(results.report()) < 50_000


def test_mfu_is_shown_where_it_is_known(results):
    results.add_run()
    assert "42.10 % and 40.00 %" in results.report()
    results.add_run("base", mfu=None, mfu_causal=None)
    assert "MFU" not in results.report()


def test_other_programs_have_a_table(results):
    summary = ProgramSummary(
        program="command",
        steps=77,
        seconds=5.0,
        tokens_per_second=None,
        provenance=PROVENANCE,
        segments=(SEGMENT,),
        command=("python", "mine.py"),
        loss=None,
    )
    results.train.append(write(results.folder / "train/mine/summary.json", summary))
    text = results.report()
    assert "Other programs" in text and "<td>command</td>" in text and ">77<" in text
    results.add_run()
    assert "validation" in results.report()


def test_resumed_run_names_its_segments(results):
    second = replace(SEGMENT, first_step=61, provenance=replace(PROVENANCE, job="15"))
    results.add_run(segments=(replace(SEGMENT, last_step=60), second))
    assert "each resumed from the last checkpoint" in results.report()
    results.site.write_text(yaml.safe_dump(SITE | {"job_page": f"{JOB_PAGES}{{job}}"}))
    assert f'<a href="{JOB_PAGES}15">15</a>' in results.report()
