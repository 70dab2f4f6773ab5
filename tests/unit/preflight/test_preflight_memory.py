"""Whether trainings fit a GPU's memory, and what is advised where one does not."""

import argparse
import json
from dataclasses import asdict, replace

import pytest
from examples import make_config, make_placement, make_site, make_training
from jaxway.preflight import plan, plan_memory
from jaxway.preflight.finding import FAIL, PASS, WARN
from jaxway.preflight.memory import GIB, Need, advise, check_memory, steps_of
from jaxway.steps import compiled
from jaxway.steps.compiled import Compiled
from jaxway.steps.formula import estimate
from jaxway_shared.errors import UserError

A100 = "NVIDIA A100-SXM4-40GB"


@pytest.fixture
def site(tmp_path):
    return make_site(gpu=A100, partitions={"train": "gpu"}, scratch=str(tmp_path))


def check(site, training, **settings):
    """Findings of a training."""
    config = make_config(site, **settings)
    return [*check_memory(config, site, {"train.a": training})]


def one(site, **options):
    (finding,) = check(site, make_training(**options))
    return finding


def test_small_training_fits(site):
    finding = one(site)
    assert finding.status is PASS
    assert "of the 29.6 that XLA takes of an NVIDIA A100-SXM4-40GB" in finding.message


def test_share_of_xla_is_that_of_jobs(site):
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    (finding,) = check(site, make_training(), environment=environment)
    assert "of the 35.5 that" in finding.message
    own = replace(make_training(), environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.8"})
    (finding,) = check(site, own, environment=environment)
    assert "of the 31.5 that" in finding.message


@pytest.mark.parametrize("share", ["90 percent", "90", "0", "nan"])
def test_share_that_is_none_is_refused(site, share):
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": share}
    with pytest.raises(UserError, match=rf"train.a: XLA_.* at most 1, not {share}$"):
        check(site, make_training(), environment=environment)


def test_unified_memory_has_more_than_the_gpu(site):
    environment = {"XLA_CLIENT_MEM_FRACTION": "2", "TF_FORCE_UNIFIED_MEMORY": "1"}
    (finding,) = check(site, make_training(), environment=environment)
    assert "of the 78.8 that" in finding.message


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"preset": "124M", "global_batch": 512}, "gradient_accumulation_steps: 2"),
        ({"preset": "2.7B", "global_batch": 4}, "fsdp: 2"),
        ({"preset": "6.7B", "global_batch": 4, "fsdp": 4}, "remat: full"),
        ({"preset": "6.7B", "global_batch": 4}, "remat: full, fsdp: 4"),
    ],
)
def test_nearest_setting_that_fits_is_advised(site, options, advice):
    finding = one(site, **options)
    assert (finding.status, finding.code) == (FAIL, "JW517")
    assert f"; {advice}" in finding.message


def test_that_nothing_fits_is_said(site):
    where = make_placement(gpus_per_node=1)
    finding = one(site, preset="6.7B", placement=where)
    assert finding.message.endswith("or fsdp fits: use more GPUs")


def test_what_the_compiler_fits_is_advised(site):
    """Where the formula is too low for the setting and the nearest others."""
    ((_, step, _),) = steps_of(
        make_config(site), site, {"train.a": make_training(preset="6.7B", global_batch=8, fsdp=4)}
    )
    limit, asked = 1.1 * estimate(step), []

    def need_of(other):
        asked.append(other)
        return Need(estimate(other) * (2 if len(asked) < 4 else 1), Compiled(**PRINTED))

    found = advise(step, limit, need_of)
    assert "remat: full" in found and "fits" in found
    assert step not in asked and len(asked) == 4
    assert estimate(asked[-1]) == min(map(estimate, asked))


@pytest.mark.parametrize(
    ("share", "status"), [(1.01, PASS), (0.99, WARN), (0.92, WARN), (0.9, FAIL)]
)
def test_formula_refuses_only_what_it_is_sure_of(site, share, status):
    training = make_training(preset="124M", global_batch=64)
    config = make_config(site)
    ((_, step, _),) = steps_of(config, site, {"train.a": training})
    environment = {"XLA_CLIENT_MEM_FRACTION": str(share * estimate(step) / step.kind.memory)}
    (finding,) = check(site, training, environment=environment)
    assert finding.status is status


def test_what_was_compiled_is_taken(site):
    training = make_training()
    ((_, step, _),) = steps_of(make_config(site), site, {"train.a": training})
    folder = compiled.folder_of(site.scratch)
    known = Compiled(30 * GIB, 0.1, 0.05, 2000.0, 0.5)
    compiled.keep(step, known, folder)
    finding = one(site)
    assert finding.status is FAIL
    assert finding.message.startswith("train.a: 30.0 GiB, more than the 29.6")
    compiled.keep(step, replace(known, memory=GIB), folder)
    speed = "; at least 100.0 ms a step, so at most 2,000 tokens/s, MFU 50%"
    assert one(site).message.endswith(speed)
    compiled.file_of(step, folder).write_text("{")
    assert "by formula" in one(site).message


PRINTED = asdict(Compiled(GIB, 0.1, 0.05, 2000.0, 0.5))
PROGRAM = f"import json, sys; [print({json.dumps(PRINTED)!r}) for _ in json.load(sys.stdin)]"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts another in place of the one that compiles."""
    file = tmp_path / "program.py"
    monkeypatch.setattr(compiled, "PROGRAM", file)
    monkeypatch.setattr(compiled, "can_compile", lambda: True)
    compiled.compiler.cache_clear()
    yield file.write_text
    compiled.compiler.cache_clear()


def plan_memory_of(monkeypatch, site, **settings):
    monkeypatch.setattr(plan_memory, "read", lambda args: ({}, settings, site))
    plan_memory.run(argparse.Namespace())


def test_plan_compiles_each_step_once(site, program, monkeypatch, capsys):
    program(PROGRAM)
    for _ in range(2):
        plan_memory_of(monkeypatch, site, train={"a": {"partition": "gpu", "data": ["python"]}})
        monkeypatch.setattr(compiled, "compile_steps", None)
        assert capsys.readouterr().out.startswith("PASS memory      train.a: 1.0 GiB of the 29.6")


def test_step_that_cannot_be_compiled_ends_the_plan(site, program, monkeypatch):
    program("raise ValueError('no such GPU')")
    with pytest.raises(UserError, match=r"could not be compiled: ValueError: no such GPU"):
        plan_memory_of(monkeypatch, site, train={"a": {"partition": "gpu", "data": ["python"]}})


def test_plan_without_compiler_takes_the_formula(site, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    large = {"partition": "gpu", "data": ["python"], "preset": "6.7B"}
    with pytest.raises(UserError, match="not all fit"):
        plan_memory_of(monkeypatch, site, train={"a": large})
    assert "FAIL" in (printed := capsys.readouterr().out) and "by formula" in printed


def test_plan_without_a_training_says_so(site, monkeypatch, capsys):
    plan_memory_of(monkeypatch, site, train={})
    assert capsys.readouterr().out == (
        "PASS memory      no training and no training benchmark on GPUs that the site names\n"
    )


def test_plan_needs_a_gpu(monkeypatch):
    with pytest.raises(UserError, match=r"site.yaml names no `gpu`"):
        plan_memory_of(monkeypatch, make_site())


def test_jobs_with_the_same_step_have_one_line(site):
    jobs = {f"train.{rate}": make_training(learning_rate=rate) for rate in (0.1, 0.2)}
    (finding,) = check_memory(make_config(site), site, jobs)
    assert finding.message.startswith("train.0.1 and 1 more: ")


def test_training_benchmark_is_planned_and_has_no_accumulation(site):
    config = make_config(
        site,
        benchmark={
            "memory": {"partition": "gpu"},
            "train": {"partition": "gpu", "presets": ["124M", "350M"], "batch_per_device": 128},
        },
    )
    found = [*check_memory(config, site, plan.all_jobs(config))]
    assert [each.message.split(":")[0] for each in found] == [
        *("benchmark.train 124M", "benchmark.train 350M"),
    ]
    assert all("accumulation" not in each.message and "remat" in each.message for each in found)


@pytest.mark.parametrize(
    ("gpu", "platform", "partition"),
    [(None, None, "gpu"), (A100, "cpu", "gpu"), (A100, None, "another")],
)
def test_what_is_not_known_is_not_checked(site, gpu, platform, partition):
    site = make_site(gpu=gpu, partitions=site.partitions)
    training = make_training(placement=make_placement(partition=partition))
    assert check(site, training, platform=platform) == []
