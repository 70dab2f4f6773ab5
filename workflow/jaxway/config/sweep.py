"""An entry of the configuration is a job, or several: a list is a sweep, one job a combination."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from jaxway.config.schema import Schema, Values, check, with_defaults


def combinations(
    entry: Values, properties: Schema, name: str, path: str
) -> Iterator[tuple[str, Values]]:
    """Yield name and values, with defaults, of each job of an entry: the product of its lists."""
    swept = {key: value for key, value in entry.items() if is_sweep(value, properties.get(key, {}))}
    single = {key: value for key, value in entry.items() if key not in swept}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    check(single, schema, path)
    for key, values in swept.items():
        check(values, {"type": "array", "minItems": 1}, f"{path}.{key}")
        for value in values:
            check({key: value}, schema, path)
    defaults = with_defaults(single, properties)
    for combination in itertools.product(*swept.values()):
        point = dict(zip(swept, combination, strict=True))
        job_name = "-".join([name, *(f"{key}={value}" for key, value in point.items())])
        yield re.sub(r"[^\w.=+-]", "_", job_name), defaults | point


def is_sweep(value: Any, schema: Schema) -> bool:
    """Whether a list stands for several values of a key, since the key itself takes none."""
    return isinstance(value, list) and "array" not in schema.get("type", [])
