"""Every command in README.md, CONTRIBUTING.md and docs/ is run, as it is written there.

A command is a line of a ```bash block, an indented line, or inline code that begins with a program
and has an argument. Those of this project are run here (RUN_HERE), on stubs of Slurm and Apptainer,
in one checkout for each site; of `make run` the configuration is empty: no training, no benchmark.
What is in SMALLER is run with smaller numbers. DRY_RUN is only planned: what chooses which jobs run
again, installs, or tests all. What stands in test_docs_on_cluster.py is run on the test cluster,
what is in ELSEWHERE by the test named there, and what is in BY_HAND by nothing, for the reason
there. Any other command fails a test, and so does one in these lists that no document has any more.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from jaxway.analysis import history
from jaxway.config.load import load
from jaxway.config.site import load_site
from plan import IMAGE, ROOT, Plan

pytestmark = pytest.mark.docs

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
RUN_IN_ORDER = "docs/porting.md"  # its blocks are run in their order by test_porting.py
PLACEHOLDERS = {
    **{"--profile ...": "--profile profiles/jureca", "<profile>": "profiles/jureca"},
    **{"<account>": "training", "<run>": "small", "<one>": "one", "<other>": "other"},
    **{"<jaxway's address>": str(ROOT), "[WIDTH]": "512"},
}
SLURM = "sacct|sacctmgr|sbatch|scancel|scontrol|sinfo|squeue|srun"
COMMAND_RE = re.compile(
    r"(\w+=\S+ |time )*(\S*/)?(snakemake|(?<=/)jaxway|python3?|pytest|make|cluster|ruff|jutil|"
    rf"git|pip|tensorboard|source|apptainer|{SLURM}|nvidia-smi|export|df|kill|gzip|curl|"
    r"\.\.\.) [^=|]"
)
CLUSTER_TESTS = (ROOT / "tests/cluster/test_docs_on_cluster.py").read_text()
CHAIN = ".venv/bin/snakemake --profile profiles/jureca"
SUBMODULE = f"git submodule add {ROOT} jaxway"
DRY_RUN = {
    "snakemake --profile profiles/jureca --forcerun smoke_test",
    "snakemake --profile profiles/jureca smoke_test --forcerun smoke_test",
    "snakemake --profile profiles/jureca benchmark --forcerun benchmark_run",
    "snakemake --profile profiles/jureca pull --forcerun pull",
    "snakemake --profile profiles/local --sdm=apptainer",
    *("make test", "make test-fast", "make lint", "make lock", "make -C jaxway setup"),
}
UP, FAULTS = "test_nothing_is_left_after_down", "test_dead_node_fails_its_job_and_comes_back"
ELSEWHERE = {
    "TMPDIR=$SCRATCH/jureca_containers apptainer pull $SCRATCH/jureca_containers/jax.sif "
    f"{IMAGE}": "test_jax_processes_on_two_nodes_add_up",
    "jaxway/.venv/bin/snakemake --profile jaxway/profiles/jureca": "test_plans_the_same_chain",
    "jaxway/.venv/bin/jaxway follow --profile jaxway/profiles/jureca "
    "--configfile=config.yaml": "test_module_can_be_followed",
    ".venv/bin/jaxway pull --image=docker://nvcr.io/nvidia/jax:26.06-py3 "
    "--sif=$SCRATCH/other.sif": "test_jax_processes_on_two_nodes_add_up",
    **dict.fromkeys(("tests/cluster/cluster up", "time tests/cluster/cluster up"), UP),
    "tests/cluster/cluster down": UP,
    "tests/cluster/cluster kill-node jrc0102": FAULTS,
    "tests/cluster/cluster start-node jrc0102": FAULTS,
    "tests/cluster/cluster stop slurmctld": "test_job_survives_restarted_controller",
    "python -m pytest tests/cluster": FAULTS,
    ".venv/bin/jaxway plan-memory --profile profiles/jureca": "test_preflight_knows_compiled_steps",
    ".venv/bin/jaxway crate my-results --license=CC-BY-4.0": "test_names_every_file_with_its_hash",
    "pytest tests/plan/test_sites.py": "test_site_plans_the_whole_chain",
    ".venv/bin/jaxway exec --profile profiles/jureca --here python3 workflow/scripts/export.py "
    "--own results/train/small/state FOLDER": "test_export_computes_the_same_without_the_workflow",
}
WAIT_FOR_SERVER = "sh -c 'until grep -q http:// output; do sleep 0.1; done'"
BY_HAND = {
    "takes minutes; run by hand when a figure of the documents is made anew": (
        *("python benchmarks/orchestration.py", ".venv/bin/python benchmarks/agreement.py"),
        *(".venv/bin/python benchmarks/start.py", ".venv/bin/python benchmarks/pull.py 3"),
        ".venv/bin/python benchmarks/step_limit.py A100 124M 32",
    ),
    "needs an NVIDIA GPU": (
        *("nvidia-smi -L", "nvidia-smi topo -m"),
        "python3 benchmarks/gpu.py --minutes 9 --out DIR",
    ),
    "JSC's own; the test cluster only sets the variables that it sets": (
        *("jutil env activate -p <project>", "jutil env activate"),
    ),
    "asks for a password": ("apptainer registry login docker://<host>",),
    "a line of the SIF's own script": ('export X="${X:-"value"}"',),
    "no whole command, but which one is meant": (
        *(
            "apptainer pull",
            "apptainer build",
            "apptainer verify",
            "kill -9",
            "gzip -9",
            "scontrol requeue",
        ),
        *(
            "sbatch --test-only",
            "sbatch --dependency",
            "sbatch --dependency=afterok",
            "scontrol show partition",
            "sacctmgr show qos",
        ),
    ),
}
SMALLER = {  # as the documents have it, it takes minutes
    "benchmarks/compare.py compute 10 15": "benchmarks/compare.py compute 1 1",
    "benchmarks/dry_run.py": "benchmarks/dry_run.py 3 1",
    # Most of what is left is compiling.
    ".venv/bin/python benchmarks/train_speed.py 512": "JAX_DISABLE_MOST_OPTIMIZATIONS=true "
    ".venv/bin/python benchmarks/train_speed.py 64",
}
RUN_HERE_RE = re.compile(
    r"(\.venv/bin/)?(snakemake|jaxway|ruff|make|source|tensorboard|pip|"
    r"python (workflow|benchmarks)/\S*)( |$)"
)


def commands(page: Path) -> list[str]:
    """Commands of a document, with a value for each placeholder."""
    text = page.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [] if page == ROOT / RUN_IN_ORDER else "".join(blocks).replace("\\\n", " ").splitlines()
    lines += [line for line in re.findall(r"^    (\S.*)", text, re.MULTILINE) if " -> " not in line]
    for table in re.findall(r"^\| (?:code \| )?it says \|.*\n(?:\|.*\n?)+", text, re.MULTILINE):
        seen = r"^\|( \| | JW[^|]*\|)?(?:[^|\\]|\\.)*\|"  # no command, but what is seen
        text = text.replace(table, re.sub(seen, "|", table, flags=re.MULTILINE))
    codes = [code for _, code in re.findall(r"(?s)(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text)]
    lines += [code for code in codes if COMMAND_RE.match(" ".join(code.split()))]
    found = (" ".join(re.sub(r"(^|\s)# .*", "", line).split()) for line in lines)
    return [
        re.sub(PLACEHOLDER_RE, lambda match: PLACEHOLDERS[match[0]], line) for line in found if line
    ]


PLACEHOLDER_RE = "|".join(map(re.escape, PLACEHOLDERS))
FOUND = {command: page.name for page in PAGES for command in commands(page)}
NOT_RUN_HERE = {
    CHAIN,
    SUBMODULE,
    *ELSEWHERE,
    *(command for each in BY_HAND.values() for command in each),
}
NOT_RUN_HERE |= {command for command in FOUND if f'"{command}"' in CLUSTER_TESTS}
RUN_HERE = sorted(
    command for command in FOUND if RUN_HERE_RE.match(command) and command not in NOT_RUN_HERE
)


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """A checkout for each site, on stubs; at JURECA, README's chain has run."""
    found = {}
    for site in ("jureca", "local"):
        plan = found[site] = Plan(tmp_path_factory.mktemp(site))
        plan.use_stubs()
        plan.make_container()
        (plan.folder / "bin/nvidia-smi").symlink_to("/bin/true")
        copied = ["Snakefile", "rules", "workflow", "config", "benchmarks"]
        for name in (*copied, "Makefile", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, plan.folder / name)  # type: ignore[operator]
        shutil.copy(ROOT / "profiles/jureca/config.yaml", plan.profiles / "jureca")  # a checkout's
        settings: dict[str, Any] = {"platform": "cpu"}
        if site == "jureca":
            settings |= {"train": {"small": {"steps": 100, "global_batch": 8}}}
            settings |= {
                "benchmark": {"memory": {"rounds": 1}},
                "node_check": {"nodes": ["jrc0101"]},
            }
        (plan.folder / "config/config.yaml").write_text(yaml.safe_dump(settings))
        for name in ("requirements.txt", "requirements-cuda.txt"):
            (plan.folder / name).touch()
        make_environment(plan.folder)
        packages = f"{plan.folder}/workflow:{plan.folder}/workflow/scripts"  # as installed there
        plan.environment["PYTHONPATH"] = packages
    add_history(found["local"].folder)
    home = Path(found["local"].environment["HOME"])
    home.mkdir()
    (home / ".gitconfig").write_text('[safe]\ndirectory = *\n[protocol "file"]\nallow = always\n')
    for site, command in (("jureca", CHAIN), ("local", f"git init -q; {SUBMODULE}")):
        done = run_in_checkout(found[site], command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return found


def make_environment(folder: Path) -> None:
    """What `make setup` leaves: links, which it would not empty; and this folder's `jaxway`."""
    environment, ours = folder / ".venv", Path(sys.prefix)
    (environment / "bin").mkdir(parents=True)
    for path in (*ours.glob("bin/*"), ours / "lib", ours / "pyvenv.cfg"):
        if path.name != "jaxway":
            (environment / path.relative_to(ours)).symlink_to(path)
    command = environment / "bin/jaxway"
    program = f'#!/bin/sh\nexec {sys.executable} {folder}/workflow/jaxway "$@"\n'
    command.write_text(program)
    command.chmod(0o755)
    (environment / ".done").touch()


def add_history(folder: Path) -> None:
    """A history of four runs in each of two months, each month with its own image."""
    for number in range(8):
        month, image = (
            ("10", IMAGE) if number < 4 else ("11", IMAGE.replace("24.10-maxtext", "26.06"))
        )
        provenance = {
            **dict.fromkeys(("commit", "site", "job", "platform", "device_kind")),
            **dict.fromkeys(("backend", "driver")),
            **dict.fromkeys(("nodes", "python", "jax", "jaxlib", "numpy"), ""),
            **{"time": f"2026-{month}-0{number + 1}T00:00:00Z", "devices": 1, "processes": 1},
            **{"container": container(image), "arguments": {}},
        }
        rounds = [100.0 + number % 4 + i % 3 for i in range(8)]
        samples = [[x] for x in rounds]
        value = {"quantity": "q", "unit": "GB/s", "higher_is_better": True, "formula": "f"}
        value |= {"seconds": samples, "samples": samples, "rounds": rounds, "median": 101.0}
        value |= {"interval": None, "min": 100.0, "p95": 105.0, "max": 105.0}
        common: dict[str, Any] = {
            "provenance": provenance,
            "transports": {},
            "program": "memory",
            "options": {},
        }
        common |= {"failed": None, "cases": [{"case": {}, "measurement": value}]}
        named = [common | {"name": name} for name in ("one", "other")]
        nodes = {"nodes": 1, "gpus_per_node": 1, "processes_per_node": 1}
        result = {"schema_version": 2, "allocation": nodes, "benchmarks": named}
        file = folder / f"results/benchmark/{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result))
        history.add(folder / "history", file)


def container(image: str) -> dict[str, Any]:
    """The record of a container."""
    record: dict[str, Any] = {"image": image, "digest": None, "sha256": "", "bytes": 1}
    return record | {"mtime_ns": 0, "apptainer": "", "date": "", "labels": {}, "layers": []}


def run_in_checkout(plan: Plan, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would in a checkout, in its environment."""
    if re.match("snakemake [^;&|]*$", command):  # starts in half the time
        words = shlex.split(command)[1:]
        return forked.snakemake(*words, folder=plan.folder, environment=plan.environment)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=plan.folder,
        env=plan.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", RUN_HERE)
def test_command_of_a_document_runs(checkouts: dict[str, Plan], command: str) -> None:
    plan = checkouts["jureca" if "profiles/jureca" in command else "local"]
    if command == "make config/README.md":
        (plan.folder / "config/README.md").unlink(missing_ok=True)
    if command.startswith("tensorboard "):  # serves until it is ended
        command = (
            f"{command} --port=0 > output 2>&1 & trap 'kill %1' EXIT; timeout 20 {WAIT_FOR_SERVER}"
        )
    for long, short in SMALLER.items():
        command = re.sub(rf"{long}$", short, command)
    done = run_in_checkout(plan, f"{command} --dry-run" if command in DRY_RUN else command)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_command_is_run_or_listed() -> None:
    assert {
        command: page
        for command, page in FOUND.items()
        if command not in {*RUN_HERE, *NOT_RUN_HERE}
    } == {}


def test_every_listed_command_is_in_a_document() -> None:
    """And the tests that they name exist."""
    assert (NOT_RUN_HERE | DRY_RUN) - {*FOUND} == set()
    tests = "".join(file.read_text() for file in ROOT.glob("tests/*/test_*.py"))
    assert [test for test in ELSEWHERE.values() if f"def {test}(" not in tests] == []


SETTINGS = [
    (page.name, block)
    for page in PAGES
    if page != ROOT / RUN_IN_ORDER
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    if "  fft:\n" not in block  # test_own_benchmark.py has it, with its program
]
SECTIONS = "benchmark|environment|packages|smoke_test|node_check|train"
SETTINGS += [
    (page.name, code.replace("<name>", "gpu"))
    for page in PAGES
    for code in re.findall(rf"`((?:{SECTIONS}): {{[^`]*}})`", page.read_text())
]


@pytest.mark.parametrize(("page", "text"), SETTINGS)
def test_configuration_in_a_document_is_valid(
    page: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "text").mkdir()
    (tmp_path / "web").mkdir()
    for name in (
        "text/a.txt",
        "web/a.parquet",
        "news.jsonl.zst",
        "tokenizer.json",
        "mine-1.0-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    site = {
        "SCRATCH": str(tmp_path),
        "SBATCH_ACCOUNT": "training",
        "JAXWAY_SITE": "profiles/jureca",
    }
    for name, value in site.items():
        monkeypatch.setenv(name, value)
    settings = {"benchmark": {"memory": {}}} | yaml.safe_load(text)
    load(settings, load_site(ROOT))
