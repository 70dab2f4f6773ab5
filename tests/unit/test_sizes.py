"""Files and functions stay short enough to be read at once; docs/design.md names the exceptions."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs/design.md").read_text()
FILE_LINES, FUNCTION_LINES = 400, 60
SMK_FUNCTION_LINES, COMMON_LINES = 15, 60
CODE = (
    *("*.py", "*.smk", "Snakefile", "*.c", "*.css", "*.j2", "*.sh", "*.toml", "*.yaml", "Makefile"),
    *("tests/cluster/cluster", "tests/cluster/init"),
)


def files(*patterns: str) -> list[Path]:
    """Files that git knows."""
    words = ["git", "-C", str(ROOT), "ls-files", *patterns]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).exists()]


def excepted() -> set[str]:
    """What docs/design.md lists under a heading about sizes, by `path` or `path: function`."""
    section = re.search(r"^#+ [^\n]*[Ss]ize[^\n]*\n(.*?)(?=^#|\Z)", DESIGN, re.S | re.M)
    return {*re.findall(r"^- `([^`]+)`", section[1], re.MULTILINE)} if section else set()


def is_python(file: Path) -> bool:
    """By its suffix or its first line."""
    return file.suffix == ".py" or file.read_text().startswith("#!/usr/bin/env python3")


def long_functions(file: Path, most: int) -> dict[str, int]:
    """Functions of a Python file that have more lines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, functions)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in nodes}
    return {name: length for name, length in lengths.items() if length > most}


def long_rule_functions(file: Path, most: int) -> dict[str, int]:
    """Functions of a file of rules, which is no Python: until a line begins at the margin again."""
    found = re.findall(r"^def (\w+)(.*?)(?=^[^\s)])", file.read_text() + "\nend", re.S | re.M)
    lengths = {name: len(text.rstrip().splitlines()) for name, text in found}
    return {name: length for name, length in lengths.items() if length > most}


def test_everything_is_short_or_named_as_an_exception() -> None:
    found = {}
    for file in files(*CODE):
        name = str(file.relative_to(ROOT))
        if (lines := len(file.read_text().splitlines())) > FILE_LINES:
            found[name] = lines
        long = {}
        if is_python(file):
            long = long_functions(file, FUNCTION_LINES)
        elif file.suffix == ".smk" or file.name == "Snakefile":
            long = long_rule_functions(file, SMK_FUNCTION_LINES)
        found |= {f"{name}: {function}": lines for function, lines in long.items()}
    exceptions = excepted()
    too_long = [f"{name}: {lines} lines" for name, lines in found.items() if name not in exceptions]
    assert not too_long, "\n".join(too_long)
    short = exceptions - found.keys()
    assert not short, f"no exceptions any more: {short}"


def test_what_all_rules_share_is_short() -> None:
    assert len((ROOT / "rules/common.smk").read_text().splitlines()) < COMMON_LINES


def test_function_of_a_file_of_rules_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "a.smk"
    long = "def f(\n    x,\n):\n" + "    pass\n" * 3
    file.write_text(f"{long}\n\ndef g():\n    pass\n\n\nrule a:\n    b\n")
    assert long_rule_functions(file, 5) == {"f": 6}
    assert long_rule_functions(file, 6) == {}
