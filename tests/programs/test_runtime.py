"""The runtime alone. ``launch`` runs a program the way srun does; other tests use it too."""

import argparse
import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import quick
from example_records import DIGEST, container_record
from jaxway_job import runtime

SCRIPTS = Path(runtime.__file__).parents[1]


def launch(program, *flags, processes=1, **env):
    """Run a file of the scripts' folder, or Python code, in processes of a step; wait for all."""
    what = [SCRIPTS / program] if program.endswith(".py") else ["-c", program]
    slurm = {}
    if processes > 1:
        slurm = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
        slurm |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"}
    environment = os.environ | quick.ENVIRONMENT | {"PYTHONPATH": str(SCRIPTS)} | slurm
    running = []
    for rank in range(processes):
        here = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} if processes > 1 else {}
        running.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", *what, *map(str, flags)],
                env=environment | here | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)
        for process, (out, err) in zip(running, outputs, strict=True)
    ]


def programs():
    """Name and options of every program that has options, read as the plan reads them."""
    for path in sorted(SCRIPTS.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if [ast.unparse(target) for target in targets] == ["OPTIONS"]:
                    yield path.name, ast.literal_eval(node.value)


def arguments(devices=1, platform="cpu"):
    return argparse.Namespace(
        devices=devices, platform=platform, host_suffix="", container_record=None, image=None
    )


@pytest.fixture
def step(monkeypatch):
    """Make this process one of four of a step, as far as the environment says so."""
    monkeypatch.setenv("SLURM_STEP_NODELIST", "jrc0101")
    for name, value in {"NTASKS": 4, "PROCID": 1, "LOCALID": 1, "JOB_ID": 3, "STEP_ID": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": "integer", "minimum": 1, "default": 7, "description": "n"},
    "rate": {"type": "number", "exclusiveMinimum": 0, "default": 0.5, "description": "r"},
    "dtype": {"type": "string", "enum": ["float32", "bfloat16"], "default": "float32"}
    | {"description": "d"},
    "mix_it": {"type": "boolean", "default": True, "description": "m"},
    "sizes": {"type": "array", "items": {"type": "integer"}, "default": [1], "description": "s"},
}


def test_memory_that_is_freed_is_there_for_the_next_step():
    (process,) = launch(
        "import resource, numpy\n"
        "from jaxway_job import runtime\n"
        "runtime.keep_memory()\n"
        "def faults():\n"
        "    numpy.ones(2**23)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "faults()\n"
        "print(-faults() + faults())"
    )
    assert int(process.stdout) < 2**4, process.stderr  # of 2**14 pages


def test_parser_defaults():
    found = vars(runtime.parser("text", OPTIONS).parse_args(["--out", "x"]))
    assert {name: found[name] for name in OPTIONS} == {
        name: schema["default"] for name, schema in OPTIONS.items()
    }


def test_parser_types():
    words = "--out x --steps 3 --rate 1e-3 --dtype bfloat16 --no-mix-it --sizes 2 3"
    found = vars(runtime.parser("text", OPTIONS).parse_args(words.split()))
    expected = {"steps": 3, "rate": 1e-3, "dtype": "bfloat16", "mix_it": False, "sizes": [2, 3]}
    assert {name: found[name] for name in OPTIONS} == expected
    assert found["out"] == Path("x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 0", "argument --steps: 0 breaks the minimum of 1"),
        ("--rate 0", "argument --rate: 0 breaks the exclusiveMinimum of 0"),
        ("--steps 1.5", "invalid integer value: '1.5'"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--sizes 1 two", "invalid integer value: 'two'"),
    ],
)
def test_parser_refuses(words, message, capsys):
    with pytest.raises(SystemExit):
        runtime.parser("text", OPTIONS).parse_args(["--out", "x", *words.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("program", "options"), list(programs()))
def test_options_of_programs(program, options):
    """Each default passes its own schema, and the help, where a stray % would fail, prints."""
    for schema in options.values():
        if schema["type"] in ("integer", "number"):
            assert runtime.converter(schema)(str(schema["default"])) == schema["default"]
        assert schema["default"] in schema.get("enum", [schema["default"]])
    assert runtime.parser("text", options).format_help()


@pytest.mark.parametrize("devices", [0, 2, 6])
def test_devices_are_shared_equally(step, devices):
    with pytest.raises(SystemExit, match=f"{devices} devices cannot be shared equally by 4"):
        runtime.start(arguments(devices))


def test_wrong_number_of_devices(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")] * 3)
    with pytest.raises(SystemExit, match="JAX sees 3 gpu devices, but the plan expects 4"):
        runtime.start(arguments(devices=4))


def test_coordinator_and_share_of_devices(monkeypatch, step):
    """Each process takes its share of the node, and the coordinator is on the fast network."""
    seen: dict[str, object] = {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda address, **options: seen.update(options, address=address),
    )
    monkeypatch.setattr(jax, "devices", lambda: list(np.arange(8)))
    mesh = runtime.start(argparse.Namespace(**vars(arguments(8)) | {"host_suffix": "i"}))
    assert mesh.shape == {runtime.AXIS: 8}
    assert seen == {
        "address": f"jrc0101i:{61440 + 3 * 16 + 2}",
        "num_processes": 4,
        "process_id": 1,
        "local_device_ids": [2, 3],
    }
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_cpu_enable_fast_math=false",
        "--xla_force_host_platform_device_count=2",
    ]


JAX = jax.__version__.partition(".dev")[0]
START = """
import dataclasses, json, resource, runpy
run_path = runpy.run_path  # as in NVIDIA's images:
runpy.run_path = lambda file: {**run_path(file), "__version__": "0.4.33.dev20241023"}
_, limit = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
from jaxway_job import runtime
args = runtime.parser("", {}).parse_args()
mesh = runtime.start(args)
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, limit)
print(json.dumps([str(device) for device in mesh.local_devices]))
runtime.write_json(args.out, dataclasses.asdict(runtime.provenance(args)))
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--xla_cpu_enable_fast_math=false --xla_foo=1",
            "Unknown flags? in XLA_FLAGS: --xla_foo=1 ",
        ),
        (
            "--xla_gpu_autotune_level=high",
            "Couldn't interpret value high for flag xla_gpu_a",
        ),
    ],
)
def test_flags_that_would_abort_xla(monkeypatch, flags, message):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(SystemExit, match=message):
        runtime.start(arguments(platform="cuda"))


def test_flags_that_xla_knows(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    runtime.check_xla_flags()


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="needs a machine without GPU")
def test_never_falls_back_to_the_cpu(tmp_path):
    (done,) = launch(START, "--out", tmp_path / "out.json", "--platform", "cuda")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cuda" in done.stderr
    assert not list(tmp_path.iterdir())


def test_two_processes(tmp_path):
    out, record = tmp_path / "new" / "out.json", tmp_path / "record.json"
    record.write_text(json.dumps(container_record().to_json()))
    flags = ("--out", out, "--platform", "cpu", "--devices", 4, "--container-record", record)
    done = launch(START, *flags, processes=2, JAXWAY_COMMIT="abc", XLA_FLAGS="", NCCL_DEBUG="WARN")
    assert [process.returncode for process in done] == [0, 0], done
    local = [json.loads(process.stdout.splitlines()[-1]) for process in done]
    assert [len(devices) for devices in local] == [2, 2]
    assert not set(local[0]) & set(local[1])
    found = json.loads(out.read_text())
    assert found["container"] == dataclasses.asdict(container_record()) | {"layers": []}
    assert (found["processes"], found["devices"], found["platform"]) == (2, 4, "cpu")
    assert (found["commit"], found["nodes"], found["jax"]) == ("abc", "localhost", JAX)
    assert found["arguments"]["out"] == str(out)
    assert found["environment"].items() >= {"XLA_FLAGS": "", "NCCL_DEBUG": "WARN"}.items()


def test_write_json_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    runtime.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        runtime.write_json(path, {"a": float("nan")})
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)  # as if killed before the last step
    with pytest.raises(ZeroDivisionError):
        runtime.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_only_the_first_process_writes(tmp_path, step):
    runtime.write_json(tmp_path / "result.json", {"a": 1})
    assert not list(tmp_path.iterdir())


def test_other_image_is_refused(tmp_path):
    record = tmp_path / "jax.sif.json"
    record.write_text(json.dumps(container_record("docker://h.org/other").to_json()))
    args = arguments()
    args.container_record, args.image = record, "docker://h.org/mine"
    with pytest.raises(SystemExit, match=r"the container is docker://h.org/other, not docker://h"):
        runtime.start(args)
    assert runtime.container_digest(args) == DIGEST.removeprefix("sha256:")
