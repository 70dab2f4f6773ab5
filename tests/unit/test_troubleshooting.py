"""docs/troubleshooting.md has each sentence with which the workflow refuses, fails or gives up.

The sentences are found in the code, from where they are said back to where they are written. Said
is what is raised (but for Python's own exceptions, which are caught or a bug), given to `sys.exit`,
printed to standard error, or found with the verdict FAULT.
"""

import ast
import builtins
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.parser import parse
from snakemake.sourcecache import LocalSourceFile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
SOURCES = ("Snakefile", "rules/*.smk", "workflow/**/*.py")
HOLE = "<>"
FRAME = 2  # words; with no more than these a text is a frame for another one
NO_ERRORS = ("foretold", "told")  # functions: what a plan costs is no error, and printed as such

Scope = tuple[object, ...]  # a file, then the functions around a node


def tree_of(path: Path) -> ast.Module:
    """Syntax tree of a Python file or, as Snakemake translates it, of one with rules."""
    if path.suffix == ".py":
        return ast.parse(path.read_text())
    lines: dict[int, int] = {}
    workflow: Any = SimpleNamespace(sourcecache=SimpleNamespace(open=lambda _: path.open()))
    source, *_ = parse(LocalSourceFile(str(path)), workflow, lines)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.expr):
            node.lineno = lines[node.lineno]
    return tree


def texts(node: ast.expr) -> list[str]:
    """What an expression may say, with HOLE for what is known only when it runs."""
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.JoinedStr(parts):
            return ["".join(each) for each in itertools.product(*map(texts, parts))]
        case ast.BinOp(left, ast.Add(), right):
            return ["".join(each) for each in itertools.product(texts(left), texts(right))]
        case ast.IfExp(_, one, other) | ast.FormattedValue(ast.IfExp(_, one, other)):
            return texts(one) + texts(other)
    return [HOLE]


def holes(node: ast.expr) -> list[ast.expr]:
    """What fills the holes of texts()."""
    match node:
        case ast.Constant():
            return []
        case ast.JoinedStr(parts):
            return [hole for part in parts for hole in holes(part)]
        case ast.BinOp(one, ast.Add(), other) | ast.IfExp(_, one, other):
            return holes(one) + holes(other)
        case ast.FormattedValue(value):
            return holes(value)
    return [node]


def contents(node: ast.expr) -> list[ast.expr]:
    """Expressions whose text this one passes on."""
    match node:
        case ast.BoolOp(ast.Or(), [first, *_]):  # the rest is for want of it
            return [first]
        case ast.BinOp(left, ast.BitOr(), right):
            return [left, right]
        case ast.List(values) | ast.Tuple(values):
            return values
        case ast.Dict(keys, values):
            return [*filter(None, keys), *values]
        case ast.Starred(value) | ast.Subscript(value) | ast.Lambda(_, value):
            return [value]
        case ast.ListComp(value) | ast.GeneratorExp(value):
            return [value]
        case ast.Call(ast.Attribute(_, "join"), [value]):
            return [value]
        case ast.Call(ast.Name(name), values):
            return values if hasattr(builtins, name) else []
        case ast.Call(ast.Attribute(value)) | ast.Call(value):
            return [value]
    return [hole for hole in holes(node) if hole is not node]


def normal(text: str) -> str:
    """A text as it is compared: without Markdown, and with HOLE for each placeholder."""
    text = re.sub(r"`|\\(?=\|)", "", text)
    return " ".join(re.sub("<[^<>]*>|…", HOLE, text).split())


def words(text: str) -> int:
    """How many words a text has besides its holes, paths and names of keys."""
    return len(re.findall(r"(?<!\S)[(\"']?[A-Za-z][a-z']*[.,:;?)]*(?!\S)", text))


class Code:
    """The code of a project, and where what it says comes from."""

    def __init__(self, root: Path) -> None:
        self.scope: dict[ast.AST, Scope] = {}
        self.values: dict[tuple[Scope, str], list[ast.expr]] = defaultdict(list)
        self.functions: dict[str, list[ast.FunctionDef]] = defaultdict(list)
        self.calls: dict[str, list[dict[Any, ast.expr]]] = defaultdict(list)
        self.said: list[ast.expr] = []
        for path in itertools.chain(*map(root.glob, SOURCES)):
            self.visit(tree_of(path), (path.relative_to(root),))

    def visit(self, node: ast.AST, scope: Scope) -> None:
        self.scope[node] = scope
        match node:
            case (
                ast.Assign([target], value)
                | ast.AnnAssign(target, _, ast.expr() as value)
                | ast.AugAssign(target, _, value)
                | ast.NamedExpr(target, value)
                | ast.For(target, value)
                | ast.comprehension(target, value)
            ):
                self.bind(scope, target, value)
            case ast.Raise(ast.Call(error, [sentence, *_])):
                if not issubclass(getattr(builtins, ast.unparse(error), object), Exception):
                    self.said.append(sentence)
            case ast.Call():
                self.note(node, scope)
            case ast.FunctionDef(name):
                if name not in NO_ERRORS:
                    self.functions[name].append(node)
                scope = (*scope, node)
        for child in ast.iter_child_nodes(node):
            self.visit(child, scope)

    def bind(self, scope: Scope, target: ast.expr, value: ast.expr) -> None:
        """Note that names stand for a value, or hold it."""
        for node in ast.walk(target):
            match node:
                case ast.Name(name):
                    self.values[scope, name].append(value)
                case ast.Attribute(ast.Name("self"), name):
                    self.values[scope[:1], f"self.{name}"].append(value)

    def note(self, call: ast.Call, scope: Scope) -> None:
        """Note what is given to a function, put into a list, or said."""
        function, given = ast.unparse(call.func), call.args
        if function == "map":
            function, given = ast.unparse(given[0]), given[1:]
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        name = function.rpartition(".")[2]
        self.calls[name].append({**dict(enumerate(given)), **named})
        if isinstance(call.func, ast.Attribute) and name in ("append", "extend"):
            for depth in range(len(scope)):  # the list may be of a function around this one
                self.bind(scope[: depth + 1], call.func.value, given[0])
        stderr = function == "print" and ast.unparse(named.get("file", call)) == "sys.stderr"
        fault = any(re.search(r"\bFAULT\b", ast.unparse(each)) for each in given)
        if function == "sys.exit" or stderr or fault:
            self.said += given

    def origins(self, node: ast.expr) -> Iterator[ast.expr]:
        """Where the text of an expression comes from, one step back."""
        yield from contents(node)
        scope = self.scope[node]
        match node:
            case ast.Call(function):
                for called in self.functions[ast.unparse(function).rpartition(".")[2]]:
                    if not called.returns or "str" in ast.unparse(called.returns):
                        for each in ast.walk(called):
                            if isinstance(each, (ast.Return, ast.Yield)) and each.value:
                                yield each.value
            case ast.Attribute(ast.Name("self"), name):
                yield from self.values[scope[:1], f"self.{name}"]
            case ast.Name(name):
                while scope:
                    yield from self.values[scope, name]
                    *around, inner = scope
                    if isinstance(inner, ast.FunctionDef):
                        yield from self.arguments(inner, name)
                    scope = tuple(around)

    def arguments(self, function: ast.FunctionDef, name: str) -> Iterator[ast.expr]:
        """What is given for a parameter, if the function has one of this name."""
        names = [each.arg for each in function.args.args if each.arg != "self"]
        if name in names:
            for call in self.calls[function.name]:
                yield from (call[key] for key in (name, names.index(name)) if key in call)

    def sentences(self) -> dict[str, str]:
        """What is said to the user, and where it is written."""
        found: dict[str, str] = {}
        todo, seen = list(self.said), set()
        while todo:
            if (node := todo.pop()) in seen:
                continue
            seen.add(node)
            for text in map(normal, texts(node)):
                # Two words alone name something; with a hole they say something about it.
                if words(text) + (HOLE in text) > FRAME and text[0] not in ",:;":
                    found[text] = f"{self.scope[node][0]}:{node.lineno}"
                if words(text) <= FRAME:
                    todo += self.origins(node)
        return found

    def texts(self) -> set[str]:
        """All that the code could say."""
        return {normal(x) for node in self.scope if isinstance(node, ast.expr) for x in texts(node)}


def explained(page: str) -> set[str]:
    """Sentences of the workflow on a page: what is code in the first column of its tables."""
    cells = re.findall(r"^\|((?:[^|\\]|\\.)*)\|", page, re.MULTILINE)
    return {normal(text) for cell in cells for _, text in re.findall(r"(`+)(.+?)\1(?!`)", cell)}


def unexplained(code: Code, page: str) -> list[str]:
    """Where the code says something that the page does not have, and what."""
    rows = explained(page)
    found = code.sentences().items()
    return sorted(f"{place}: {sentence}" for sentence, place in found if sentence not in rows)


@pytest.fixture(scope="module")
def code() -> Code:
    return Code(ROOT)


def test_every_sentence_is_explained(code):
    missing = unexplained(code, PAGE.read_text())
    assert not missing, "not in the first column of a table:\n" + "\n".join(missing)


def test_every_explained_sentence_is_said(code):
    stale = sorted(explained(PAGE.read_text()) - code.texts())
    assert not stale, "said nowhere in the code:\n" + "\n".join(stale)


def said(folder: Path, source: str, file: str = "workflow/program.py") -> list[str]:
    """What a page without a row lacks of a program."""
    (folder / file).parent.mkdir()
    (folder / file).write_text(source)
    return unexplained(Code(folder), "")


@pytest.mark.parametrize(
    "source",
    [
        'raise RegistryError(f"{host} has no {what}")',
        'raise pull.RegistryError(host + " has no " + what)',
        'raise SystemExit(f"{host} has no {what}")',
        'sys.exit(f"{host} has no {what}".strip())',
        'print(f"{host} has no {what}", file=sys.stderr)',
        'Finding(FAULT if what else OK, "image", f"{host} has no {what}" or "all is well here")',
        'def fail(it):\n    sys.exit(f"program: {it}")\nfail(f"{host} has no {what}")',
        'def look():\n    return 0, f"{host} has no {what}"\nfound, said = look()\nfail(said)',
        'faults = []\nfaults.append(f"{host} has no {what}")\nsys.exit("; ".join(faults))',
        'rules = [(f"{host} has no {what}", 0)]\nfor text, n in rules:\n    sys.exit(text)',
        'class A:\n    def f(self):\n        self.why = f"{host} has no {what}"\n'
        "        sys.exit(self.why)",
    ],
)
def test_a_sentence_is_found_however_it_is_said(tmp_path, source):
    source = "def fail(sentence):\n    sys.exit(sentence)\n\n" + source
    (missing,) = said(tmp_path, source)
    assert missing.endswith(": <> has no <>") and missing.startswith("workflow/program.py:")


def test_variants_are_two_sentences(tmp_path):
    source = """sys.exit(f"{host} lets {'this user' if user else 'nobody'} read {what}")"""
    texts = ["<> lets nobody read <>", "<> lets this user read <>"]
    assert said(tmp_path, source) == [f"workflow/program.py:1: {text}" for text in texts]


def test_rules_are_read_too(tmp_path):
    source = 'rule a:\n    shell:\n        "b"\n\n\nif gone:\n    sys.exit("the data are gone")\n'
    assert said(tmp_path, source, "rules/a.smk") == ["rules/a.smk:7: the data are gone"]


def test_bugs_and_progress_are_no_sentences(tmp_path):
    source = 'raise ValueError("the width is odd")\nprint("the width is even")\nsys.exit(code)\n'
    assert said(tmp_path, source) == []


def test_a_row_may_have_several_sentences():
    page = "| `it` says | `no` |\n| --- | --- |\n| `a \\| b`<br>``c `<x>` d`` | `e` |\n"
    assert explained(page) == {"it", "a | b", "c <> d"}
