"""Check a value against a schema, and say in one sentence what is wrong with it."""

import difflib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from jaxway_shared.errors import UserError

WORKFLOW = Path(__file__).resolve().parents[2]

Values = dict[str, Any]  # as YAML has them
Schema = Mapping[str, Any]


class ConfigurationError(UserError):
    """The configuration or the environment is not usable."""


@functools.cache
def load_schema(name: str) -> Schema:
    """The schema workflow/schemas/<name>.schema.yaml."""
    schema: Schema = yaml.safe_load((WORKFLOW / f"schemas/{name}.schema.yaml").read_text())
    return schema


def nearest(word: str, known: list[str]) -> str:
    """A hint at the known word that was probably meant."""
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


RENAMED = {  # keys of earlier commits, and what they are called now
    "allocations": "max_jobs",
    "microbatches": "gradient_accumulation_steps",
    "minutes": "timeout_minutes",
    "temporary": "tmpdir",
    "vetting": "node_check",
}

IN_YAML = {  # what a user of YAML calls a type
    **{"object": "a mapping", "array": "a list", "string": "text"},
    **{"integer": "an integer", "number": "a number"},
}

# Stricter than JSON Schema, for which 100.0 is an integer, and as strict as a command line.
Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ).redefine("number", lambda _, value: type(value) in (int, float) and math.isfinite(value)),
)


def check(value: Any, schema: Schema, path: str) -> None:
    """Raise a sentence for the first way in which ``value`` breaks ``schema``."""
    errors = Validator(schema).iter_errors(value)
    error = min(errors, key=lambda e: [str(part) for part in e.absolute_path], default=None)
    if error is None:
        return
    key = ".".join([path, *map(str, error.absolute_path)]).lstrip(".")
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        word = next(k for k in error.instance if k not in known)
        name = f"{key}.{word}".lstrip(".")
        if (renamed := RENAMED.get(word)) in known:
            raise ConfigurationError("JW019", f"{name} is called {renamed} now")
        raise ConfigurationError("JW002", f"{name}: unknown key; {nearest(str(word), known)}")
    found = json.dumps(error.instance, ensure_ascii=False, default=str)
    if "propertyNames" in error.absolute_schema_path:
        pattern = error.schema["pattern"]
        raise ConfigurationError(
            "JW004", f"{key}: a name must be text that matches {pattern}, not {found}"
        )
    expectation = EXPECTED.get(str(error.validator))
    expected = expectation(error.validator_value) if expectation else error.message
    raise ConfigurationError("JW003", f"{key}: {expected}, not {found}")


EXPECTED: Mapping[str, Callable[[Any], str]] = {  # by the keyword of JSON Schema that is broken
    "type": lambda v: (
        f"must be {' or '.join(IN_YAML.get(x, x) for x in ([v] if isinstance(v, str) else v))}"
        + (" (write 1.0e-3 for 1e-3)" if "number" in v else "")
    ),
    "enum": lambda v: f"must be one of {', '.join(str(x or 'null') for x in v)}",
    "minimum": lambda v: f"must be at least {v}",
    "exclusiveMinimum": lambda v: f"must be greater than {v}",
    "maximum": lambda v: f"must be at most {v}",
    "exclusiveMaximum": lambda v: f"must be less than {v}",
    "minLength": lambda v: "must not be empty",
    "minItems": lambda v: "must not be empty",
    "minProperties": lambda v: "must not be empty",
    "pattern": lambda v: f"must match {v}",
}


def with_defaults(value: Mapping[str, Any], properties: Schema) -> Values:
    """``value`` with the default of every property that it does not set."""
    return {k: s["default"] for k, s in properties.items() if "default" in s} | dict(value)


def expand(text: str, path: str) -> str:
    """``text`` with its environment variables and ~ replaced."""
    result = os.path.expanduser(os.path.expandvars(text))
    if "$" in result:
        raise ConfigurationError(
            "JW007", f"{path}: names an environment variable that is not set: {result}"
        )
    return result


def simple_path(path: str, key: str) -> str:
    """The path, if Apptainer can bind it."""
    if not re.fullmatch(r"[\w./+@=-]+", path):
        raise ConfigurationError(
            "JW022", f"{key}: Apptainer takes no path with spaces or special characters: {path}"
        )
    return path
