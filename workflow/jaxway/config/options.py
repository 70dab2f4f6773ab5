"""The options of programs, read from their ``OPTIONS`` without importing them.

What a program imports may exist only in the container.
"""

import ast
import functools

from jaxway.config.schema import WORKFLOW, ConfigurationError, Schema, Values


@functools.cache
def options_of(file: str) -> Schema:
    """The JSON-schema properties that workflow/<file> declares in ``OPTIONS``."""
    options = literal_options(file)
    for name, schema in options.items():
        for key in ("type", "default", "description"):
            if key not in schema:
                raise ConfigurationError("JW025", f"workflow/{file}: OPTIONS.{name} has no {key}")
    return options


def literal_options(file: str) -> Values:
    for statement in ast.parse((WORKFLOW / file).read_text()).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name("OPTIONS")], value=value)
                | ast.AnnAssign(target=ast.Name("OPTIONS"), value=ast.expr() as value)
            ):
                try:
                    options: Values = ast.literal_eval(value)
                except ValueError as error:
                    raise ConfigurationError(
                        "JW025",
                        f"workflow/{file}: OPTIONS must be literal, with no expression in it: "
                        f"{error}",
                    ) from None
                return options
    raise ConfigurationError("JW025", f"workflow/{file}: declares no OPTIONS")


def benchmark_programs() -> list[str]:
    """Names of the benchmark programs."""
    files = (WORKFLOW / "scripts").glob("benchmark_*.py")
    return sorted(file.stem.removeprefix("benchmark_") for file in files)


def program_options(section: str, program: str) -> Schema:
    """Properties of the options of the program that runs an entry of ``section``."""
    if section == "benchmark":
        own = options_of(f"scripts/benchmark_{program}.py")
        return {**options_of("scripts/jaxway_job/measure.py"), **own}
    return options_of(f"scripts/{program}.py")


def data_options(program: str) -> Schema:
    """Properties of a training's data preparation; none, if its program brings its own data."""
    return options_of("jaxway/data/prepare.py") if program == "train" else {}
