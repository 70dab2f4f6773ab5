"""Which files the entries of ``data`` name: folders, globs, or Python's standard library.

Links are followed, those to folders once for each entry. Hidden files below a folder are left out,
as globs do.
"""

import glob
import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class File(NamedTuple):
    """A file as it lies on the disk."""

    path: Path
    bytes: int
    mtime_ns: int


class Found(NamedTuple):
    """Files, each once; sentences on what cannot be read; and links that are not followed."""

    files: list[File]
    problems: list[str]
    loops: list[str]


def find_files(entries: Iterable[str]) -> Found:
    """Files that entries of ``data`` name."""
    files: dict[tuple[int, int], File] = {}
    problems, loops = dict[str, None](), dict[str, None]()
    for entry in entries:
        search = Search()
        found = False
        for path, status in search.files(entry):
            file = File(path, status.st_size, status.st_mtime_ns)
            files.setdefault((status.st_dev, status.st_ino), file)
            found = True
        problems |= dict.fromkeys(search.problems)
        if not found and not search.problems:
            problems[f"{entry} matches no file"] = None
        loops |= dict.fromkeys(search.loops)
    return Found([*files.values()], [*problems], [*loops])


def fingerprint(entries: Iterable[str]) -> str:
    """What changes when a file that entries name is added, removed or written; none is read."""
    return hashlib.sha256(repr(sorted(find_files(entries).files)).encode()).hexdigest()[:16]


class Search:
    """A search for the files of one entry."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.loops: list[str] = []

    def files(self, entry: str) -> Iterator[tuple[Path, os.stat_result]]:
        """Files that an entry names, in a fixed order; one of several links may come again."""
        if entry == "python":
            paths = standard_library()
        elif os.path.lexists(entry):  # whatever characters its name has
            paths = iter([Path(entry)])
        else:
            root = Path("/" if entry.startswith("/") else "")
            paths = self.matches(root, [part for part in entry.split("/") if part])
        read: set[tuple[int, int]] = set()
        for path in paths:
            yield from self.below(path, read)

    def matches(self, folder: Path, parts: list[str]) -> Iterator[Path]:
        """Paths below a folder that match the parts of a glob.

        glob.glob() follows links back and forth: with two of them in a folder it does not end.
        """
        if not parts or parts == ["**"]:
            yield folder
        elif parts[0] == "**":
            for each, _ in self.folders(folder, set()):
                yield from self.matches(each, parts[1:])
        else:
            for name in sorted(glob.glob(parts[0], root_dir=folder)):
                yield from self.matches(folder / name, parts[1:])

    def below(
        self, path: Path, read: set[tuple[int, int]]
    ) -> Iterator[tuple[Path, os.stat_result]]:
        """A file, or all in a folder, but for those in folders that have been ``read``."""
        try:
            status = path.stat()
        except OSError as error:
            link = f", a link to {path.readlink()}" if path.is_symlink() else ""
            self.problems.append(f"cannot read {path}{link}: {error.strerror}")
            return
        if stat.S_ISREG(status.st_mode):
            yield path, status
        elif stat.S_ISDIR(status.st_mode):
            for _, entries in self.folders(path, read):
                for entry in entries:
                    if not is_folder(entry):
                        yield from self.below(Path(entry.path), read)
        else:
            self.problems.append(f"{path} is neither a file nor a folder")

    def folders(
        self, folder: Path, read: set[tuple[int, int]], above: tuple[tuple[int, int], ...] = ()
    ) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
        """A folder and those below it, with what they hold; adds each to those ``read``."""
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(f"cannot read {folder}: {error.strerror}")
            return
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self.loops.append(f"{folder} leads back to a folder above it")
        if identity in read:
            return
        read.add(identity)
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        yield folder, entries
        for entry in entries:
            if is_folder(entry):
                yield from self.folders(Path(entry.path), read, (*above, identity))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; is_dir() raises where links go round."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def standard_library() -> Iterator[Path]:
    """Python's own source code, without tests."""
    for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
        below[:] = set(below) - NOT_THE_LIBRARY
        yield from (Path(folder, name) for name in names if name.endswith(".py"))
