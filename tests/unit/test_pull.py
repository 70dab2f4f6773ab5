"""Pull: names of images, and what it leaves when Apptainer succeeds or fails."""

import json
import sys

import pull
import pytest


@pytest.mark.parametrize(
    ("image", "host", "repository", "reference"),
    [
        ("docker://nvcr.io/nvidia/jax:24.10-py3", "nvcr.io", "nvidia/jax", "24.10-py3"),
        ("docker://localhost:5000/a/b", "localhost:5000", "a/b", "latest"),
        ("docker://h.org/a@sha256:12", "h.org", "a", "sha256:12"),
        ("docker://h.org/a:tag@sha256:12", "h.org", "a", "sha256:12"),
        ("docker://python:3.11", "", "python", "3.11"),
        ("docker://nvidia/cuda", "", "nvidia/cuda", "latest"),
    ],
)
def test_parse(image, host, repository, reference):
    assert pull.parse(image) == (host, repository, reference)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs pull with a stub of apptainer, on a registry that knows one digest."""

    def run(image: str, apptainer: str) -> None:
        stub = tmp_path / "bin/apptainer"
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.4.5 && exit\n{apptainer}\n')
        stub.chmod(0o755)
        monkeypatch.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
        monkeypatch.setattr(pull, "resolve", lambda image: "sha256:there")
        sif = tmp_path / "containers/jax.sif"
        monkeypatch.setattr(sys, "argv", ["pull", "--image", image, "--sif", str(sif)])
        pull.main()

    return run


def test_pulls_by_digest_and_records_it(run, tmp_path):
    run("docker://h.org/a:tag", 'echo "$3" > "$2"')
    folder = tmp_path / "containers"
    assert (folder / "jax.sif").read_text() == "docker://h.org/a@sha256:there\n"
    record = json.loads((folder / "jax.sif.json").read_text())
    assert record["image"] == "docker://h.org/a:tag"
    assert record["digest"] == "sha256:there"
    assert record["bytes"] == len("docker://h.org/a@sha256:there\n")
    assert sorted(p.name for p in folder.iterdir()) == ["jax.sif", "jax.sif.json"]


@pytest.mark.parametrize(
    ("image", "apptainer", "sentence"),
    [
        ("docker://h.org/a:tag", 'echo half > "$2"; exit 3', r"could not pull .* \(exit code 3\)"),
        ("docker://h.org/a@sha256:wanted", "exit", "sent sha256:there where sha256:wanted"),
    ],
)
def test_failed_pull_leaves_nothing(run, tmp_path, image, apptainer, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run(image, apptainer)
    assert not list(tmp_path.glob("containers/*"))
    assert not list(tmp_path.glob("containers/.*"))
