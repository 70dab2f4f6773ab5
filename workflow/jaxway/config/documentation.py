"""config/README.md: every key in a table, from the schema and the programs' OPTIONS."""

import argparse
import json
from typing import Any

from jaxway.config.options import benchmark_programs, data_options, options_of
from jaxway.config.schema import Schema, load_schema


def configure(parser: argparse.ArgumentParser) -> None:
    """It takes no arguments."""


def run(args: argparse.Namespace) -> None:
    """Print config/README.md."""
    print(readme(), end="")


def readme() -> str:
    schema = load_schema("config")
    definitions = {name: each.get("properties", {}) for name, each in schema["$defs"].items()}
    lines = ["# Configuration", ""]
    lines += ["Made from the schema by `make config/README.md`; do not edit.", ""]
    lines += ["`config.yaml` is read unless `--configfile` names others. A list in place of a"]
    lines += ["single value is a sweep: the entry becomes one job for each combination.", ""]
    lines += table(schema["properties"])
    lines += ["## Placement: keys of every job", "", *table(definitions["placement"])]
    lines += ["## smoke_test", "", *table(options_of("scripts/smoke_test.py"))]
    lines += ["## train.&lt;name&gt;", "", *table(definitions["training"])]
    for program in definitions["training"]["program"]["enum"]:
        options = options_of(f"scripts/{program}.py")
        lines += [f"### program: {program}", "", *table({**data_options(program), **options})]
    lines += ["## benchmark.&lt;name&gt;", ""]
    common = options_of("scripts/jaxway_job/measure.py")
    lines += table({**definitions["benchmark"], **common})
    for program in benchmark_programs():
        options = options_of(f"scripts/benchmark_{program}.py")
        lines += [f"### program: {program}", "", *table(options)]
    return "\n".join(lines).rstrip() + "\n"


def table(properties: Schema) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [row(key, schema) for key, schema in properties.items()]
    return [*rows, ""]


def row(key: str, schema: dict[str, Any]) -> str:
    kind = schema.get("type", "object")  # a $ref is to an object
    kind = kind if isinstance(kind, str) else " or ".join(kind)
    if "enum" in schema:
        kind = " or ".join(value or "null" for value in schema["enum"])
    return f"| `{key}` | {kind} | `{json.dumps(schema['default'])}` | {schema['description']} |"
