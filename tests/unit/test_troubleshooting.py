"""Each error that a user can cause has a code, and each code a row in docs/troubleshooting.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jaxway_shared.errors import CODES
from snakemake.parser import parse
from snakemake.sourcecache import LocalSourceFile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
TABLE = ROOT / "workflow/scripts/jaxway_shared/errors.py"
SOURCES = ("Snakefile", "rules/*.smk", "workflow/**/*.py")
CODE = re.compile(r"JW\d{3}")


def syntax_tree(path: Path) -> ast.Module:
    """Syntax tree of a Python file or, as Snakemake translates it, of one with rules."""
    if path.suffix == ".py":
        return ast.parse(path.read_text())
    workflow: Any = SimpleNamespace(sourcecache=SimpleNamespace(open=lambda _: path.open()))
    source, *_ = parse(LocalSourceFile(str(path)), workflow, {})
    return ast.parse(source)


def explained(page: str) -> set[str]:
    """Codes in the first column of the tables that have one for them."""
    tables = re.findall(r"^\| code \|.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    return {code for cell in cells for code in CODE.findall(cell)}


def used(tree: ast.Module) -> set[str]:
    """Codes that a program names."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and CODE.fullmatch(text)}


def without_code(tree: ast.Module) -> Iterator[str]:
    """Calls that end a program with a sentence that has no code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        argument = node.args[0] if node.args else ast.Constant(0)
        text, function = ast.unparse(argument), ast.unparse(node.func)
        if function in ("sys.exit", "exit", "SystemExit"):
            number = isinstance(argument, ast.Constant) and isinstance(argument.value, int)
            if not (
                number or re.search(r"with_code\(|\.line\(|bool\(|any\(|code$|EXIT_\w+$", text)
            ):
                yield ast.unparse(node)
        elif re.fullmatch(r"((?!self)\w+\.)?fail", function) and not re.search(
            r"JW\d{3}|code$", text
        ):
            yield ast.unparse(node)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    return {path: syntax_tree(path) for path in files}


def test_every_code_is_explained() -> None:
    assert explained(PAGE.read_text()) == {*CODES}


def test_codes_have_different_meanings() -> None:
    assert len({*CODES.values()}) == len(CODES)
    assert [*CODES] == sorted(CODES)


def test_every_code_is_used(trees: dict[Path, ast.Module]) -> None:
    found = {code for path, tree in trees.items() if path != TABLE for code in used(tree)}
    assert found == {*CODES}


def test_every_sentence_that_ends_a_program_has_a_code(trees: dict[Path, ast.Module]) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for path, tree in trees.items()
        for call in without_code(tree)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'sys.exit("gone")',
        'sys.exit(f"{file} is gone")',
        "sys.exit(str(error))",
        "sys.exit(problem)",
        'raise SystemExit("gone")',
        'fail("gone")',
        'files.fail(f"{file} is gone")',
    ],
)
def test_sentence_without_code_is_found(source: str) -> None:
    assert [*without_code(ast.parse(source))] == [source.removeprefix("raise ").replace('"', "'")]


@pytest.mark.parametrize(
    "source",
    [
        "sys.exit()",
        "sys.exit(3)",
        "sys.exit(bool(slower))",
        "sys.exit(process.returncode)",
        "sys.exit(EXIT_RESUBMIT)",
        'sys.exit(f"{program}: {with_code(code, sentence)}")',
        "sys.exit(error.line())",
        'fail("JW001", "gone")',
        "fail(error.code, str(error))",
    ],
)
def test_exit_codes_and_coded_sentences_pass(source: str) -> None:
    assert not [*without_code(ast.parse(source))]


def test_rules_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "a.smk"
    file.write_text('rule a:\n    shell:\n        "b"\n\n\nif gone:\n    sys.exit("gone")\n')
    assert [*without_code(syntax_tree(file))] == ["sys.exit('gone')"]


def test_codes_of_a_page() -> None:
    page = "| code | it says |\n| --- | --- |\n| JW001 | `a [JW009]` |\n| JW002<br>JW003 | b |\n\n"
    assert explained(page + "| it says |\n| --- |\n| JW004 |\n") == {"JW001", "JW002", "JW003"}
