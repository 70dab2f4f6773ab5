"""Does `compare` tell a version from one that is 5 % slower, and not from itself?

Three benchmarks take turns, as run_benchmarks.py has them do: a, b, which is the same, and c, the
same but that each sample lasts 5 % longer, since it waits. One experiment is one such job; prints
the verdicts of many: on a and b, and on a and c and b and c.

Run from the checkout: .venv/bin/python benchmarks/compare.py [PROGRAM] [EXPERIMENTS] [ROUNDS]
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from jaxway.analysis import history, stats
from jaxway_shared.benchmark import (
    AllocatedNodes,
    AllocationResult,
    BenchmarkPlan,
    PlannedBenchmark,
)

SCRIPTS = Path(__file__).parents[1] / "workflow/scripts"
SLOWER = 0.05
OPTIONS = {  # one case each, or few
    "compute": "--dtypes float32 --shapes 1024x1024x1024",
    "memory": "",
    "train": "",
    "collective": "--operations all_reduce --smallest 4096",
}
SLOW = f"""
import runpy, sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
from jaxway_job import measure

time_calls = measure.time_calls

def slow(call, calls):
    begin = time.perf_counter()
    seconds = time_calls(call, calls)
    while time.perf_counter() < begin + (1 + {SLOWER}) * seconds * calls:
        pass
    return (1 + {SLOWER}) * seconds

measure.time_calls = slow
program = sys.argv[1]
sys.argv = sys.argv[1:]
runpy.run_path(program, run_name="__main__")
"""


def experiment(program: str, rounds: int, folder: Path) -> dict[str, list[list[float]]]:
    """Rounds of a, b and c in each case."""
    (folder / "slow.py").write_text(SLOW)
    line = f"{SCRIPTS}/benchmark_{program}.py --platform=cpu {OPTIONS[program]}"
    commands = {"a": line, "b": line, "c": f"{folder}/slow.py {line}"}
    benchmarks = [
        PlannedBenchmark(name, program, {}, rounds, 2, f"{sys.executable} {command}")
        for name, command in commands.items()
    ]
    plan, out = folder / "plan.json", folder / "out.json"
    plan.write_text(json.dumps(BenchmarkPlan(AllocatedNodes(1, 1, 1), benchmarks).to_json()))
    run = [sys.executable, "-m", "jaxway", "run-benchmarks", f"--plan={plan}", f"--out={out}"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    found = defaultdict(list)
    for benchmark in AllocationResult.read(out).benchmarks:
        for each in benchmark.cases:
            if measured := each.measurement:
                best = stats.best(measured.samples, measured.higher_is_better)
                found[" ".join(map(str, each.case.values()))].append(best)
    return found


program = sys.argv[1] if len(sys.argv) > 1 else "compute"
experiments, rounds = (int(x) for x in [*sys.argv[2:], *("20", "15")[len(sys.argv[2:]) :]])
verdicts_of: dict[str, Counter] = defaultdict(Counter)
spread = defaultdict(list)
with tempfile.TemporaryDirectory() as folder:
    for _ in range(experiments):
        for case, (a, b, c) in experiment(program, rounds, Path(folder)).items():
            spread[case] += list(np.log(np.divide(b, a)))
            for before, after, name in ((a, b, "itself"), (a, c, "slower"), (b, c, "slower")):
                verdict = stats.compare(before, after, True, history.MIN_RATIO_CHANGE).verdict
                verdicts_of[f"{case}, {name}"][verdict] += 1
print(f"{program}: {experiments} experiments of {rounds} rounds")
for case, ratios in spread.items():
    print(f"{case}: ratio of neighbouring rounds: standard deviation {np.std(ratios):.1%}")
for key, verdicts in sorted(verdicts_of.items()):
    print(f"{key:44} {dict(verdicts)}")
