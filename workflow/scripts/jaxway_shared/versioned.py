"""JSON files that pass between programs: dataclasses, written with the version of their format."""

import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxway_shared.errors import UserError

T = TypeVar("T")
REMEDY = "delete it and make it again"
SCALARS: dict[Any, Any] = {
    float: (int, float),
    int: int,
    str: str,
    bool: bool,
    type(None): type(None),
}


def read(path: Path, kind: str, version: int, remedy: str = REMEDY) -> dict[str, Any]:
    """Content of a file that is a ``kind``, such as "smoke test's result".

    Raises UserError where it is not one of this version, with what to do about it; OSError where
    there is none. A file without a version is older than versions, so it counts as the first.
    """
    try:
        content = json.loads(path.read_bytes())
        found = content.get("schema_version", 1)
    except (ValueError, AttributeError):
        raise UserError("JW001", f"{path} is not a {kind}: {remedy}") from None
    if found != version:
        raise UserError(
            "JW001",
            f"{path} is a {kind} of schema version {found}, and this checkout reads version "
            f"{version}: {remedy}",
        )
    return dict(content)


def read_as(cls: type[T], path: Path, kind: str, version: int, remedy: str = REMEDY) -> T:
    """Content of a file as a dataclass. Raises UserError also where a field is missing or wrong."""
    content = read(path, kind, version, remedy)
    try:
        return decode(cls, content)
    except ValueError as error:
        raise UserError("JW001", f"{path} is a damaged {kind} ({error}): {remedy}") from None


def encode(value: Any, version: int) -> dict[str, Any]:
    """A dataclass as an object of JSON."""
    return {"schema_version": version, **dataclasses.asdict(value)}


def decode(cls: type[T], content: Any) -> T:
    """A dataclass from an object of JSON. Raises ValueError where a field is missing or wrong."""
    result: T = convert(cls, content, "it")
    return result


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields."""
    return get_type_hints(cls)


def convert(hint: Any, value: Any, name: str) -> Any:
    """A JSON value, converted to the type that a hint names."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        expect(isinstance(value, dict), name, "an object")
        return hint(**fields_of(hint, value))  # type: ignore[operator]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        if value is None and len(kinds) < len(arguments):
            return None
        if len(kinds) == 1:
            return convert(kinds[0], value, name)
        expect(any(isinstance(value, SCALARS[kind]) for kind in kinds), name, "a number or text")
        return value
    if origin is dict:
        expect(isinstance(value, dict), name, "an object")
        return {key: convert(arguments[1], each, name) for key, each in value.items()}
    if origin in (list, tuple):
        expect(isinstance(value, list), name, "a list")
        return origin(convert(arguments[0], each, name) for each in value)
    expect(isinstance(value, SCALARS[hint]), name, f"of type {hint.__name__}")
    return value


def fields_of(cls: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass that an object of JSON has, all that have no default."""
    fields = {}
    for field in dataclasses.fields(cls):
        if field.name in content:
            fields[field.name] = convert(
                field_types(cls)[field.name], content[field.name], field.name
            )
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"no field {field.name}")
    return fields


def expect(holds: bool, name: str, what: str) -> None:
    """Raise a ValueError about a field unless something holds."""
    if not holds:
        raise ValueError(f"{name} is not {what}")
