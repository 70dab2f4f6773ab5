"""Which files a training's program is."""

import os
import time
from pathlib import Path

import pytest
from jaxway_shared import identity
from jaxway_shared.identity import OWN_FILES, SCRIPTS, program_content, with_modules

# What train.py imports beside OWN_FILES: it saves, measures, checks and reports. A new module is to
# be here or there.
COMPUTES_NOTHING = {
    *("checkpoints", "flops", "measure", "nccl_log", "nvml", "runtime", "startup_timer"),
    *("training_metrics", "trace", "training_state", "watchdog"),
    *("benchmark", "container_record", "data_record", "environment", "errors", "hostlist"),
    *("identity", "provenance", "training", "training_rules", "versioned", "__init__"),
}


def test_every_module_of_our_program_is_known_to_compute_or_not() -> None:
    imported = {
        str(path.relative_to(SCRIPTS))
        for path in with_modules(SCRIPTS / "train.py", (SCRIPTS,), ())
    }
    assert {*OWN_FILES["train"]} <= imported
    assert {Path(name).stem for name in imported - {*OWN_FILES["train"]}} <= COMPUTES_NOTHING
    assert all((SCRIPTS / name).is_file() for names in OWN_FILES.values() for name in names)


START = """#!/usr/bin/env bash
# don't run package/unused.py
HERE=$(dirname "$0")
source "$(dirname "$0")/env.sh"; echo 'a: 1' > conf.yaml; ./binary
srun "$HERE"/prog.py \\
    --fast; bash jobs/start\\"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a script and modules, each of which imports the next."""
    monkeypatch.chdir(tmp_path)
    files = {
        "script.py": "import jax, below.a\n",
        "below/a.py": "from . import b\n",  # no __init__.py
        "below/b.py": "from package.sub import c\nfrom package import no_module\n",
        "package/__init__.py": "",
        "package/sub/__init__.py": "from .. import d",
        "package/sub/c.py": "from ......... import above",
        "package/d.py": "this is no Python",
        "package/unused.py": "",
        "run.sh": "python3 script.py",
        "jobs/start": START,
        "jobs/env.sh": "python3 ${HERE}/fast.py # it's nothing",
        "jobs/fast.py": "",
        "jobs/prog.py": "",
        "jobs/use.py": "import script",
        "jobs/path.sh": 'export PYTHONPATH="$HERE/..:$PYTHONPATH"; python3 jobs/use.py',
        "installed/lib.py": "",
        "installed/lib-1.dist-info/METADATA": "",
        "folder/__main__.py": "import of",
        "folder/of.py": "",
        "conf.yaml": "a: 1",
        "out.log": "",
        "out.json": "",
        "binary": "",
        "a file.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("binary", "jobs/start"):
        (tmp_path / name).chmod(0o755)
    return tmp_path


MODULES = {
    *("below/a.py", "below/b.py", "package/__init__.py", "package/sub/__init__.py"),
    *("package/sub/c.py", "package/d.py"),
}


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("python3 script.py --steps 10", {"script.py", *MODULES}),
        ("bash -c 'cd . && python3 script.py | tee out.log'", {"script.py", *MODULES}),
        ("./binary --config=conf.yaml --out=out.json", {"binary", "conf.yaml"}),
        ("sh run.sh > out.log", {"run.sh", "script.py", *MODULES}),
        ("bash jobs/start", {"jobs/start", "jobs/env.sh", "jobs/fast.py", "jobs/prog.py"}),
        ("python3 -m below.a", MODULES),
        ("python3 package/sub/c.py", {"package/sub/c.py"}),
        ("env PYTHONPATH=/no:.: python3 jobs/use.py", {"jobs/use.py", "script.py", *MODULES}),
        ("env PYTHONPATH=jobs:below python3 -m b", {"below/b.py"}),
        ("sh jobs/path.sh", {"jobs/path.sh", "jobs/use.py", "script.py", *MODULES}),
        ("env PYTHONPATH=installed python3 -m lib", set()),
        ("python3 folder", {"folder/__main__.py", "folder/of.py"}),
        ("python3 -m package.missing missing.py", {"package/__init__.py"}),
        ("python3 -m missing", set()),
        ("bash -c 'cd below && exec python3 a.py'", {"below/a.py", "below/b.py"}),
        ("python3 'a file.py' /dev/null . package", {"a file.py"}),
        ("python3 'x", set()),
        (None, set()),
        ("x" * 5000 + " \0.py", set()),
        (f"env PYTHONPATH={'x' * 5000} python3 -m missing", set()),
    ],
)
def test_files_of_a_command(folder: Path, command: str | None, files: set[str]) -> None:
    assert {*program_content("command", command)} == files


def test_modules_are_found_by_the_python_path_of_the_job(folder: Path) -> None:
    assert {*program_content("command", "python3 -m b", "jobs:below")} == {"below/b.py"}


@pytest.mark.parametrize("name", ["script.py", *sorted(MODULES)])
def test_content_and_nothing_else_counts(folder: Path, name: str) -> None:
    before = program_content("command", "python3 script.py")
    later = time.time() + 60
    os.utime(name, (later, later))
    assert program_content("command", "python3 script.py") == before
    with Path(name).open("a") as file:
        file.write("# more\n")
    after = program_content("command", "python3 script.py")
    assert {each for each in before if before[each] != after[each]} == {name}


def test_a_large_file_is_known_by_size_and_time(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_HASHED_BYTES", 3)
    before = program_content("command", "sh run.sh")
    assert program_content("command", "sh run.sh") == before
    os.utime("run.sh", (1, 1))
    assert program_content("command", "sh run.sh") != before


def test_a_closed_file_is_no_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", closed)
    content = program_content("command", "python3 script.py")
    assert content == {"script.py": "Permission denied"}
