"""What a container with further packages is built from, and which of its versions pip keeps."""

import subprocess
from pathlib import Path

import pytest
from jaxway.container.apptainer import pip_conflict
from jaxway.container.packages import definition, write_constraints
from jaxway_shared.container_record import Packages

CONSTRAINTS = Path("/w/constraints.txt")
COPY = "/opt/jaxway-packages/constraints.txt"
PIP = f"python3 -m pip --disable-pip-version-check --no-cache-dir install --constraint={COPY}"
APT = "apt-get install --yes --no-install-recommends"


def post(packages: Packages) -> list[str]:
    """Commands that install packages, in the container."""
    lines = definition(Path("/c/jax.sif"), packages, CONSTRAINTS).splitlines()
    assert lines[:3] == ["Bootstrap: localimage", "From: /c/jax.sif", "%files"]
    first, last = lines.index("%post") + 2, len(lines) - 1
    assert lines[last].startswith("rm -rf /opt/jaxway-packages ")
    return lines[first:last]


def test_each_kind_of_package_is_installed_by_its_own_command() -> None:
    python, debian = ["einops==0.8", "a>1"], ["git", "jq"]
    assert post(Packages(python, [])) == [f"{PIP} einops==0.8 'a>1'"]
    assert post(Packages([], debian)) == ["apt-get update", f"{APT} git jq"]
    assert post(Packages(python, debian)) == [
        *post(Packages([], debian)),
        *post(Packages(python, [])),
    ]


def test_packages_that_are_files_are_copied_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w").mkdir()
    for name in ("w/a.whl", "w/b.deb", "einops"):
        Path(name).touch()
    packages = Packages(["./w/a.whl", "einops"], ["./w/b.deb"])
    a, b = "/opt/jaxway-packages/0/a.whl", "/opt/jaxway-packages/1/b.deb"
    lines = definition(Path("/c/jax.sif"), packages, CONSTRAINTS).splitlines()
    copies = [f"{tmp_path}/w/a.whl {a}", f"{tmp_path}/w/b.deb {b}", f"{CONSTRAINTS} {COPY}"]
    assert lines[3:6] == copies
    assert post(packages) == ["apt-get update", f"{APT} {b}", f"{PIP} {a} einops"]


# What pip 23.2 prints, without blanks at the margin, as it is kept.
CONFLICT = [
    "Processing ./flax-1.0-py3-none-any.whl",
    "The conflict is caused by:",
    "flax 1.0 depends on jax>=0.6",
    "The user requested (constraint) jax==0.4.33.dev20241023+e3c6d6430",
    "To fix this you could try to:",
    "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/",
]


@pytest.mark.parametrize(
    ("wants", "sentence"),
    [
        ("flax 1.0 depends on jax>=0.6", "flax 1.0 depends on jax>=0.6"),
        ("The user requested jax==0.6.0", "packages.python: jax==0.6.0"),
    ],
)
def test_package_that_wants_another_jax_is_named(wants, sentence) -> None:
    lines = [wants if "flax" in line else line for line in CONFLICT]
    assert pip_conflict(lines) == (
        f"{sentence}, but the image has jax==0.4.33.dev20241023+e3c6d6430: choose another version "
        "of it, or another image"
    )


@pytest.mark.parametrize("line", [2, 3])
def test_conflict_without_the_image_is_pips_own_error(line) -> None:
    assert pip_conflict(CONFLICT[:line] + CONFLICT[line + 1 :]) is None


def test_versions_that_are_none_are_no_constraints(tmp_path, monkeypatch) -> None:
    good = ["jax==0.4.33.dev20241023+e3c6d6430", "a.b-c_d==1!2.0rc1.post1", "ufw==0.36"]
    bad = ["distro-info===1.1build1", "x==1.1-unknown", "mine @ file:///opt/mine", ""]
    listed = subprocess.CompletedProcess([], 0, "\n".join(good + bad), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: listed)
    file = write_constraints(Path("base.sif"), [], tmp_path)
    assert file.read_text().splitlines() == good
