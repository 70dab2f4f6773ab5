"""What a container with further packages is built from."""

from pathlib import Path

import pytest
from jaxway.container.packages import definition
from jaxway_shared.container_record import Packages

PIP = "python3 -m pip --disable-pip-version-check --no-cache-dir install"
APT = "apt-get install --yes --no-install-recommends"


def post(packages: Packages) -> list[str]:
    """Commands that install packages, in the container."""
    lines = definition(Path("/c/jax.sif"), packages).splitlines()
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
    lines = definition(Path("/c/jax.sif"), packages).splitlines()
    assert lines[3:5] == [f"{tmp_path}/w/a.whl {a}", f"{tmp_path}/w/b.deb {b}"]
    assert post(packages) == ["apt-get update", f"{APT} {b}", f"{PIP} {a} einops"]
