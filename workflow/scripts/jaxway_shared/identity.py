"""What a training's result is of: options, data, program and image, each by its content.

A state's folder is named by it, so no result is ever taken for that of another training.
"""

import ast
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any, TypeAlias

from jaxway_shared import versioned

Paths: TypeAlias = tuple[Path, ...]

SCHEMA_VERSION = 1
FILE = "identity.json"  # in a state
DIGITS = 8  # hexadecimal, in a state's name
SCRIPTS = Path(__file__).parents[1]
# Files of a program of ours that determine what it computes. The others save, measure and report,
# and an edit of those undoes no training.
OWN_FILES: dict[str, tuple[str, ...]] = {
    "train": (
        "train.py",
        "jaxway_job/cross_entropy.py",
        "jaxway_job/dataset.py",
        "jaxway_job/evaluation.py",
        "jaxway_job/model.py",
        "jaxway_job/optimization.py",
        "jaxway_job/origin.py",
        "jaxway_job/training_loop.py",
        "jaxway_job/training_setup.py",
        "jaxway_shared/presets.py",
    ),
    "maxtext": ("maxtext.py",),
    "command": (),
}
# In a command: what is code or settings by its name. A log or a result, which changes, is not.
CODE_RE = re.compile(r".*\.(py|sh|bash|ya?ml|toml)")
SCRIPT_RE = re.compile(r".*\.(py|sh|bash)")
SHEBANG_RE = re.compile(r"#!.*\b(ba|da|k|z)?sh\b")
MAX_SCRIPT_LENGTH = 1 << 20  # what is longer carries data
COMMENT_RE = re.compile(r"(?<!\S)#.*")
# In a shell script: what stands for a folder, most often that of the script.
FOLDER_RE = re.compile(r"(\$\w+|\$\{\w+\}|\$\([^()]*\))/")
UNQUOTED = str.maketrans("\\", " ", "\"'")
SEPARATORS_RE = re.compile(r"[\s;&|<>()=]+")
MAX_HASHED_BYTES = 1 << 26  # a larger file, such as a container, is known by size and time


@dataclass(frozen=True)
class Identity:
    """All that determines the result of a training."""

    options: dict[str, Any]
    data: str | None  # sha256 of the prepared data; None, the program brings its own
    program: dict[str, str]  # sha256 of each of its files
    image: str  # digest; outside a container JAX's version

    @classmethod
    def read(cls, state: Path) -> "Identity":
        """That of a state. UserError where it cannot be read; OSError, no file."""
        return versioned.read_as(cls, state / FILE, "training's identity", SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return versioned.encode(self, SCHEMA_VERSION)

    @property
    def digest(self) -> str:
        """Its sha256."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def folder(self, states: Path) -> Path:
        """The state, of those whose names begin as ``states``."""
        return states.with_name(f"{states.name}-{self.digest[:DIGITS]}")

    def same_but_program(self, other: "Identity") -> bool:
        """Whether nothing but the program may be another one."""
        return replace(other, program=self.program) == self

    def differences(self, other: "Identity") -> list[str]:
        """What is another one here: ``steps 120, not 60``."""
        here, there = self._values(), other._values()
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        return [f"{name} {short(here.get(name))}, not {short(there.get(name))}" for name in names]

    def _values(self) -> dict[str, Any]:
        return {**self.options, "data": self.data, **self.program, "image": self.image}


def short(value: Any) -> str:
    """A value in a sentence; of a hash its beginning."""
    text = "none" if value is None else str(value)
    return text[:DIGITS] if re.fullmatch("[0-9a-f]{64}", text) else text


def states_beside(own: Path) -> list[tuple[Path, Identity]]:
    """Other states with the name of a state up to its identity, the newest first."""
    name = own.name.rpartition("-")[0]
    name_re = re.compile(f"{re.escape(name)}-[0-9a-f]{{{DIGITS}}}")
    found = []
    for folder in own.parent.iterdir() if own.parent.is_dir() else ():
        if folder != own and name_re.fullmatch(folder.name):
            with suppress(Exception):  # of another version, or being deleted
                found.append((folder.stat().st_mtime, folder, Identity.read(folder)))
    return [(folder, identity) for _, folder, identity in sorted(found, key=lambda x: -x[0])]


# ------------------------------------------------------------------------------ a program's content


def program_content(program: str, command: str | None, python_path: str = "") -> dict[str, str]:
    """sha256 of each file of a training's program, here and now.

    ``command``: of a user's own program, which finds ``python_path`` as PYTHONPATH.
    """
    files = {name: SCRIPTS / name for name in OWN_FILES[program]}
    if program == "command":
        files = {str(path): path for path in command_files(command or "", python_path)}
    return {name: sha256(path, key(path)) for name, path in sorted(files.items())}


def command_files(command: str, python_path: str) -> Iterable[Path]:
    """Code and settings that a command names, and code that its shell scripts name."""
    try:
        pieces = pieces_of(shlex.split(command))
    except ValueError:
        return ()
    search = search_path(python_path, pieces, (Path(),))
    found = dict.fromkeys(named_files(pieces, (Path(),), search))
    left = [*found]
    while left:
        if (path := left.pop()).suffix != ".py":
            new = [each for each in named_by_script(path, search, key(path)) if each not in found]
            found |= dict.fromkeys(new)
            left += new
    return found


@functools.cache  # a sweep asks for each of its jobs
def named_by_script(path: Path, search: Paths, key: tuple[int, ...]) -> list[Path]:
    """Code that a file names, if it is a shell script; no settings, which that may write."""
    try:
        with path.open(errors="replace") as file:
            text = file.read(MAX_SCRIPT_LENGTH)
    except OSError:
        return []
    if path.suffix not in (".sh", ".bash") and not SHEBANG_RE.match(text):
        return []
    pieces = pieces_of(FOLDER_RE.sub("", COMMENT_RE.sub("", text).translate(UNQUOTED)).split())
    folders = (Path(), path.parent)
    named = named_files(pieces, folders, (*search, *search_path("", pieces, folders)))
    return [each for each in named if SCRIPT_RE.fullmatch(each.name)]


def pieces_of(words: list[str]) -> list[str]:
    """Words, and what may be words of a shell in them."""
    return [*words, *itertools.chain(*map(SEPARATORS_RE.split, words))]


def search_path(python_path: str, pieces: list[str], folders: Paths) -> Paths:
    """Where Python looks for modules beside its script's folder.

    What was installed there is left out: that is no part of the program, and much to read.
    """
    texts = [python_path, *(to for name, to in itertools.pairwise(pieces) if name == "PYTHONPATH")]
    entries = dict.fromkeys(entry for text in texts for entry in text.split(":") if entry)
    found = [Path(os.path.normpath(folder / entry)) for entry in entries for folder in folders]
    return tuple(each for each in found if not glob("*.dist-info", root_dir=each))


def named_files(pieces: list[str], folders: Paths, search: Paths) -> Iterator[Path]:
    """Code and settings that a command names, in folders, and the modules that this imports."""
    modules = [name.replace(".", "/") for flag, name in itertools.pairwise(pieces) if flag == "-m"]
    changes = [Path(to) for word, to in itertools.pairwise(pieces) if word == "cd"]
    for folder in dict.fromkeys([*folders, *changes, *search]):
        for module in (folder / name for name in modules):
            packages = [each for each in (module, *module.parents) if each != Path()]
            files = [package / "__init__.py" for package in packages]  # Python runs them first
            for path in (Path(f"{module}.py"), module / "__main__.py", *files):
                if os.path.isfile(path):  # a name may be too long for one
                    yield from with_modules(path, (folder, *search), key(path))
    for folder in dict.fromkeys([*folders, *changes]):
        for path in (folder / piece for piece in dict.fromkeys(pieces)):
            with suppress(OSError, ValueError):  # a word that names no file, or cannot
                path.stat()
                path = path / "__main__.py" if path.is_dir() else path
                if path.suffix == ".py" and path.is_file():
                    yield from with_modules(path, (path.parent, *search), key(path))
                elif path.is_file() and (CODE_RE.fullmatch(path.name) or os.access(path, os.X_OK)):
                    yield path


def key(path: Path) -> tuple[int, ...]:
    """What changes when a file is written."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.cache  # a sweep asks for each of its jobs
def with_modules(script: Path, search: Paths, key: tuple[int, ...]) -> list[Path]:
    """A script, and what it and those import of the files below folders."""
    found = {script: None}
    left = [script]
    while left:
        new = [path for path in imported(left.pop(), search) if path not in found]
        found |= dict.fromkeys(new)
        left += new
    return list(found)


def imported(file: Path, search: Paths) -> Iterator[Path]:
    """Files below folders that a file of Python imports."""
    # Of a newer Python, or none; it will say so when it runs.
    with suppress(OSError, SyntaxError, ValueError, IndexError, RecursionError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            names, bases = list[str](), search
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{each.name}".strip(".") for each in node.names]
                bases = (file.parents[node.level - 1],) if node.level else search
            for base, parts in itertools.product(bases, [name.split(".") for name in names]):
                for count in range(1, len(parts) + 1):
                    path = base.joinpath(*parts[:count])
                    files = Path(f"{path}.py"), path / "__init__.py"
                    yield from (each for each in files if each.is_file())


@functools.cache
def sha256(path: Path, key: tuple[int, ...]) -> str:
    """Hash of a file's content; of a large one, of its size and time of writing."""
    if path.stat().st_size > MAX_HASHED_BYTES:
        return hashlib.sha256(repr(key[2:]).encode()).hexdigest()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error.strerror)
