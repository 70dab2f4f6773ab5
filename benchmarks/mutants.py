"""Which faults would the tests find? Plants some, one at a time, and runs the tests that reach it.

Run in a clean checkout that nobody else uses, since its files change meanwhile, after `make setup`
and `.venv/bin/pip install cosmic-ray pytest-cov`:

    .venv/bin/python benchmarks/mutants.py FOLDER trace             # which test runs which line
    .venv/bin/python benchmarks/mutants.py FOLDER draw NUMBER SEED  # plant mutants of cosmic-ray
    .venv/bin/python benchmarks/mutants.py FOLDER faults            # plant those of faults.yaml
    .venv/bin/python benchmarks/mutants.py FOLDER again RESULTS     # plant survivors of a checkout

FOLDER, outside the checkout, keeps trace and results; the same command resumes.
"""

import contextlib
import difflib
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData
from coverage.parser import PythonParser

TESTS_S = 90  # of tests for one mutant, by their time when traced, fast ones first
ROOT = Path.cwd()
PYTEST = [".venv/bin/pytest", "-p", "no:cacheprovider"]
COVERAGE = """[run]
source = {root}/workflow
parallel = true
data_file = {folder}/coverage
context = ${{PYTEST_CURRENT_TEST}}
disable_warnings = no-data-collected, module-not-measured, module-not-imported, couldnt-parse
"""
PHASE_RE = re.compile(r"(?:\|| \()(setup|run|call|teardown)\)?$")  # `TEST|run` or `TEST (call)`
Mutant = dict[str, Any]  # file, line, old and new text; then its result, by what


def trace(folder: Path) -> None:
    """Run the tests but for the cluster's. Processes that they start are traced, too."""
    (folder / "coveragerc").write_text(COVERAGE.format(root=ROOT, folder=folder))
    command = [*PYTEST, "-vv", "--durations=0", "--cov", f"--cov-config={folder}/coveragerc"]
    command += ["--cov-context=test", "--cov-report=", "--ignore=tests/cluster"]
    environment = os.environ | {"COVERAGE_PROCESS_START": f"{folder}/coveragerc"}
    with (folder / "log").open("w") as log:
        subprocess.run(command, env=environment, stdout=log, check=False)


class Reach:
    """Which tests reach a line, by what `trace` left. Tests that failed then are left out."""

    def __init__(self, folder: Path) -> None:
        self.data = CoverageData(str(folder / "coverage"))
        self.data.read()
        self.seconds: dict[str, float] = defaultdict(float)
        log = (folder / "log").read_text()
        for took, test in re.findall(r"^([\d.]+)s (?:setup|call|teardown) +(\S.*)$", log, re.M):
            if f"\nFAILED {test}" not in log and f"\nERROR {test}" not in log:
                self.seconds[test] += float(took)

    def tests(self, path: Path, line: int) -> list[str]:
        parser = PythonParser(path.read_text())
        parser.parse_source()
        by_line = self.data.contexts_by_lineno(str(path))
        contexts = set(by_line.get(parser.first_line(line), ()))
        if "" in contexts:  # run at import
            contexts.update(*by_line.values())
        names = {PHASE_RE.sub("", x) for x in contexts}
        # The first test that uses a fixture sets it up for all of the file.
        setups = {x.partition("::")[0] for x in contexts if PHASE_RE.findall(x) == ["setup"]}
        names |= {x for x in self.seconds if x.partition("::")[0] in setups}
        found, total = list[str](), 0.0
        for test in sorted(names & self.seconds.keys(), key=lambda x: self.seconds[x]):
            total += self.seconds[test]
            if not found or total < TESTS_S:
                found.append(test)
        return found


def draw(number: int, seed: int) -> list[Mutant]:
    """Of each of some random lines, a random mutant."""
    names = [x for x in operator_names() if "BitOr" not in x]  # in types: a | b
    operators = [get_operator(x)() for x in names if not get_operator(x).arguments()]
    found: dict[tuple[Path, int], list[Any]] = defaultdict(list)
    for path in sorted(ROOT.glob("workflow/**/*.py")):
        nodes = list(ast_nodes(get_ast(path.read_text())))
        for operator in operators:
            positions = [start for x in nodes for start, _ in operator.mutation_positions(x)]
            for occurrence, (line, _) in enumerate(positions):
                found[path, line].append((operator, occurrence))
    chance, mutants = random.Random(seed), list[Mutant]()
    places = iter(chance.sample(sorted(found), len(found)))
    while len(mutants) < number:
        path, line = next(places)
        lines = (source := path.read_text()).splitlines()
        mutated = mutate_code(source, *chance.choice(found[path, line]))
        changes = difflib.SequenceMatcher(None, lines, mutated.splitlines(), autojunk=False)
        _, a, b, c, d = next(x for x in changes.get_opcodes() if x[0] != "equal")
        old, new = "\n".join(lines[a:b]), "\n".join(mutated.splitlines()[c:d])
        with contextlib.suppress(SyntaxError):  # some mutants are no Python
            compile(mutated, path, "exec")
            mutants.append({"file": str(path.relative_to(ROOT)), "line": b, "old": old, "new": new})
    return mutants


def plant(mutant: Mutant, reach: Reach) -> tuple[str, str]:
    """Change the file, run tests, and restore it; what becomes of the mutant, and by what."""
    path = ROOT / mutant["file"]
    source = path.read_text() if path.exists() else ""
    places = [x.start() for x in re.finditer(f"^{re.escape(mutant['old'])}$", source, re.M)]
    if not places:
        return "not in this checkout", ""
    line = {x: source.count("\n", 0, x + len(mutant["old"])) + 1 for x in places}
    place = min(places, key=lambda x: abs(line[x] - mutant.get("line", 0)))
    if named := mutant.get("test"):
        tests = [x for x in reach.seconds if re.match(rf"{re.escape(named)}(\[|::|$)", x)]
    else:
        tests = reach.tests(path, line[place])
    if not tests:
        return "survived", "no test runs it"
    limit = 60 + 5 * sum(reach.seconds[x] for x in tests)
    command = ["timeout", "--signal=INT", "--kill-after=30", str(limit), *PYTEST, "-x", "--tb=no"]
    try:
        path.write_text(source[:place] + mutant["new"] + source[place + len(mutant["old"]) :])
        done = subprocess.run([*command, *tests], capture_output=True, text=True, check=False)
    finally:
        path.write_text(source)
    if not done.returncode:
        return "survived", f"{len(tests)} tests"
    if done.returncode in (124, 137):
        return "killed", f"its tests hang: {limit:.0f} s"
    said = re.findall("^(?:FAILED|ERROR) .*", done.stdout + done.stderr, re.M)
    return "killed", said[0] if said else f"exit code {done.returncode}"


def main(folder: Path, command: str, *arguments: str) -> None:
    if command == "trace":
        return trace(folder)
    if command == "draw":
        mutants = draw(*map(int, arguments))
    elif command == "faults":
        mutants = yaml.safe_load(Path(__file__).with_name("faults.yaml").read_text())
    else:
        mutants = json.loads(Path(*arguments).read_text())
        mutants = [x for x in mutants if x.pop("result") == "survived" and x.pop("by")]
    out, reach = folder / f"{command}.json", Reach(folder)
    done = json.loads(out.read_text()) if out.exists() else []
    for mutant in mutants:
        if not any(mutant.items() <= x.items() for x in done):
            result, by = plant(mutant, reach)
            done.append(mutant | {"result": result, "by": by})
            out.write_text(json.dumps(done, indent=1))
            print(*done[-1].values(), sep="\n", end="\n\n", flush=True)
    results = [x["result"] for x in done]
    print({x: results.count(x) for x in sorted(set(results))})


main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
