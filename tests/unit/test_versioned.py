"""Result files: dataclasses that come back as they were written, and refusals of anything else."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jaxway_shared import versioned
from jaxway_shared.errors import UserError


@dataclass(frozen=True)
class Inner:
    name: str
    values: list[list[float]]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outer:
    inner: list[Inner]
    labels: dict[str, str | int]
    anything: dict[str, Any]
    count: int | None = None


WHOLE = Outer(
    [Inner("a", [[1.0, 2.0], []], (0.5, 1.5)), Inner("b", [])],
    {"kernel": "triad", "size": 4},
    {"x": [None]},
)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", versioned.encode(WHOLE, 3))
    assert json.loads(path.read_text())["schema_version"] == 3
    assert versioned.read_as(Outer, path, "result", 3) == WHOLE


def test_unknown_field_is_ignored() -> None:
    assert versioned.decode(Inner, {"name": "a", "values": [], "new": 1}) == Inner("a", [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "is not a result"),
        ({}, "is a result of schema version 1, and this checkout reads version 2"),
        ({"schema_version": 1}, "is a result of schema version 1"),
        ({"schema_version": 2, "values": []}, r"is a damaged result \(no field name\)"),
        ({"schema_version": 2, "name": 1, "values": []}, r"\(name is not of type str\)"),
        ({"schema_version": 2, "name": None, "values": []}, r"\(name is not of type str\)"),
        ({"schema_version": 2, "name": "a", "values": [1]}, r"\(values is not a list\)"),
        ({"schema_version": 2, "name": "a", "values": [["1"]]}, r"\(values is not of type float"),
    ],
)
def test_other_file_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    path = write(tmp_path / "file.json", content)
    with pytest.raises(UserError, match=reason) as error:
        versioned.read_as(Inner, path, "result", 2)
    assert error.value.code == "JW001"
    assert str(error.value).startswith(str(path)) and "delete it and make it again" in str(
        error.value
    )


def test_file_older_than_versions_is_of_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", {"name": "a", "values": []})
    assert versioned.read_as(Inner, path, "result", 1) == Inner("a", [])


def test_way_out_may_be_another(tmp_path: Path) -> None:
    path = write(tmp_path / "file.json", {"name": "a"})
    for version in (1, 2):
        with pytest.raises(UserError, match=r": pull again$"):
            versioned.read_as(Inner, path, "record", version, remedy="pull again")


@pytest.mark.parametrize("content", [b'{"schema_version": 2', b"\xff\xfe"])
def test_truncated_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a result"):
        versioned.read(path, "result", 2)
