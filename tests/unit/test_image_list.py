"""Containers side by side: links that are never missing, who uses which, and what may go."""

import errno
import os
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from example_records import write_container_record
from examples import make_site
from jaxway.config.containers import record_path
from jaxway.container import images, packages, store
from jaxway_shared.container_record import ContainerRecord, Packages

OLD = 100 * 24 * 3600  # seconds


def make(folder: Path, tag: str, digit: str) -> Path:
    """A container that nobody has used for long."""
    image = f"docker://h.org/jax:{tag}"
    container = store.path_of(folder / "jax.sif", image, f"sha256:{digit * 64}")
    container.write_text(tag)
    write_container_record(container, image)
    for file in (container, record_path(container)):
        os.utime(file, (time.time() - OLD,) * 2)
    return container


def test_link_is_never_missing_and_never_leads_nowhere(tmp_path):
    link, ended, problems = tmp_path / "jax.sif", threading.Event(), list[OSError]()
    names = [make(tmp_path, tag, tag).name for tag in "ab"]
    store.lead(link, names[0])

    def read() -> None:
        while not ended.is_set():
            try:
                assert link.read_text() in "ab"
            except OSError as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(2000):
        store.lead(link, names[number % 2])
    ended.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["jax.sif", *names, *(f"{name}.json" for name in names)]
    )


class Images:
    """Three old containers: one for people, one of a run that started today, one of nobody."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder / "shared", capsys
        self.folder.mkdir()
        self.containers = [make(self.folder, tag, digit) for tag, digit in ("xa", "yb", "zc")]
        store.lead(self.folder / "jax.sif", self.containers[0].name)
        self.link = folder / "run/results/container/jax.sif"
        store.lock(self.link, self.containers[1], "docker://h.org/jax:mine")

    def __call__(self, **options: Any) -> list[str]:
        """Lines that `jaxway images` prints with these options."""
        images.run(Namespace(**{"prune": False, "yes": False, "days": 30} | options))
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def three(tmp_path, monkeypatch, capsys):
    three = Images(tmp_path, capsys)
    site = make_site(sif=str(three.folder / "jax.sif"))
    monkeypatch.setattr(images, "read", lambda args: ({}, {}, site))
    return three


def test_images_are_listed_with_their_runs(three):
    linked, used, unused = three.containers
    assert three() == [
        f"{linked.name}  0.0 GB  used {day(OLD)}  <- jax.sif",
        f"    docker://h.org/jax:x  {identity(linked)}",
        f"{used.name}  0.0 GB  used {day(0)}",
        f"    docker://h.org/jax:y  {identity(used)}",
        f"    run {three.link}",
        f"{unused.name}  0.0 GB  used {day(OLD)}",
        f"    docker://h.org/jax:z  {identity(unused)}",
    ]


def day(ago: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(time.time() - ago))


def identity(container: Path) -> str:
    return ContainerRecord.read(record_path(container)).identity


def test_only_what_nobody_uses_is_pruned_and_only_when_told(three):
    linked, used, unused = three.containers
    assert three(prune=True)[0].startswith(unused.name)
    assert len(three(prune=True)) == 2
    assert all(container.exists() for container in three.containers)
    assert three(prune=True, yes=True) == [f"{unused} is removed"]
    left = {path.name for path in three.folder.iterdir()}
    assert left == {
        *("jax.sif", linked.name, f"{linked.name}.json"),
        *(used.name, f"{used.name}.json", f"{used.name}.runs"),
    }


def test_what_was_read_lately_stays(three):
    unused = three.containers[2]
    os.utime(unused, (time.time(), time.time() - OLD))
    assert three(prune=True, yes=True) == []
    assert unused.exists()


def test_run_that_moved_to_another_image_is_no_user_of_the_first(three):
    unused = three.containers[2]
    store.lock(three.link, unused, "docker://h.org/jax:z")
    (line,) = [n for n, line in enumerate(three()) if line.startswith("    run ")]
    assert three()[line - 2].startswith(unused.name)


def test_what_a_run_or_a_link_by_another_way_leads_to_is_not_pruned(three, tmp_path):
    unused = three.containers[2]
    (tmp_path / "way").symlink_to(three.folder)
    kept = three.folder / "current"
    kept.symlink_to(tmp_path / "way" / unused.name)
    assert three(prune=True) == []
    kept.unlink()
    store.lock(three.link, unused, "docker://h.org/jax:z")
    for note in store.runs_folder(unused).iterdir():
        os.utime(note, (time.time() - OLD,) * 2, follow_symlinks=False)
    assert f"    run {three.link}" in three()[-1]
    assert not [line for line in three(prune=True) if line.startswith(unused.name)]


def test_note_of_a_run_is_optional(three, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(store, "make_shared", full)
    store.lock(three.link, three.containers[2], "docker://h.org/jax:z")
    assert three.link.resolve() == three.containers[2].resolve()


# --------------------------------------------------------------------------------------- packages


class Added:
    """Adds a wheel to what a run has locked, and keeps the names of what was made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.wheel, self.made = folder, folder / "a.whl", list[str]()
        self.wheel.write_text("1")

    def install(self, base: Path, added: Packages, arguments: Any, part: Path, work: Path) -> None:
        self.made.append(part.name)
        part.mkdir()

    def __call__(self, base: Path) -> Path:
        """Where the run's link to its packages leads."""
        link = base.with_name("jax-01234567")
        packages.add(base, link, Packages([str(self.wheel)], []), [], self.folder)
        assert store.is_locked(link)
        return link.resolve()


@pytest.fixture
def added(tmp_path, monkeypatch):
    added = Added(tmp_path)
    monkeypatch.setattr(packages, "install_to_folder", added.install)
    monkeypatch.setattr(packages, "installed", lambda *_: {str(len(added.made))})
    return added


def test_packages_are_named_by_what_they_are_and_lie_on(three, added, tmp_path):
    runs = [tmp_path / f"{user}/results/container/jax.sif" for user in ("alice", "bob", "carol")]
    for run, container in zip(runs, (0, 1, 1), strict=True):
        store.lock(run, three.containers[container], "docker://h.org/jax:tag")
    first, second, third = map(added, runs)
    assert first != second == third  # the second and third have the same image
    assert len(added.made) == 2
    assert second.name.startswith(three.containers[1].name.removesuffix(".sif"))
    added.wheel.write_text("2")
    assert added(runs[0]) not in (first, second)
    assert len(added.made) == 3


def test_packages_on_an_image_that_two_users_call_differently(three, added, tmp_path):
    names = ("docker://h.org/jax:one", "docker://h.org/jax:two")
    for name in names:
        run = tmp_path / name[-3:] / "results/container/jax.sif"
        store.lock(run, three.containers[0], name)
        added(run)
        record = ContainerRecord.read(record_path(run.with_name("jax-01234567")))
        assert record.same_image(name)
    assert len(added.made) == 1


def test_name_without_tag_and_plain_digest():
    sif = Path("/c/jax.sif")
    assert store.path_of(sif, "/a/one.tar", 64 * "a").name == f"jax-{12 * 'a'}.sif"
    pinned = f"docker://h.org/jax@sha256:{64 * 'b'}"
    assert store.path_of(sif, pinned, f"sha256:{64 * 'b'}").name == f"jax-{12 * 'b'}.sif"
