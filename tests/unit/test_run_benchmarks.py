"""Rounds of benchmarks, with small programs in place of the real ones."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from jaxway import cli, run_benchmarks
from jaxway_shared.benchmark import (
    AllocatedNodes,
    AllocationResult,
    BenchmarkPlan,
    PlannedBenchmark,
)
from results import PROVENANCE, write

# JAX, which other tests have started in this process, warns of forks.
pytestmark = pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning")

# Notes its start in the log, and then does what the round's word says.
PROGRAM = """
import json, os, sys, time
name, *words, out = sys.argv[1:]
log = os.path.dirname(__file__) + "/log"
with open(log, "a+") as file:
    file.write(name + "\\n")
    file.seek(0)
    number = file.read().split().count(name)
out = out.removeprefix("--out=")
word = words[min(number, len(words)) - 1] if words else "ok"
if word == "fail":
    sys.exit("first line\\nwhy")
if word == "coded":
    sys.exit("why [JW452]")
if word == "die":
    os.kill(os.getpid(), 9)
if word == "quiet":
    sys.exit(3)
if word == "nothing":
    sys.exit()
measurement = {"quantity": "q", "unit": "GB/s", "higher_is_better": True, "formula": "f"}
measurement |= {"samples": [number, number + 2.0], "seconds": [1.0, 1.0]}
measurement["check"] = {"error": 1 / number, "tolerance": 1}
cases = [{"case": {"size": 1}, "measurement": measurement}]
cases.append({"case": {"size": 2}, "skipped": "too few devices"})
if word == "wrong":
    cases[0] = {"case": {"size": 1}, "failed": "it is wrong"}
provenance = json.loads(PROVENANCE)
provenance["arguments"] = {"round": number, "launched": os.environ["JAXWAY_LAUNCHED"]}
found = {"schema_version": 2, "provenance": provenance, "cases": cases}
found["transports"] = {"P2P": 3, name: 1}
with open(out, "w") as file:
    json.dump(found, file)
"""
# Hangs with a child, and neither listens to SIGTERM; their numbers are in the file.
HANGS = "trap '' TERM; sleep 1000 & echo $$ $! > {pids}.part; mv {pids}.part {pids}; wait"


class Job:
    """A job in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "results/out.json"
        self.pids, self.plan = folder / "pids", folder / "plan.json"
        self.benchmarks = []
        provenance = json.dumps(dataclasses.asdict(PROVENANCE))
        (folder / "program.py").write_text(f"PROVENANCE = {provenance!r}\n{PROGRAM}")

    def program(self, name, *words, rounds=3, minutes=1.0):
        """Add a benchmark that does in each round what its word says."""
        command = " ".join([sys.executable, "-I", "-S", f"{self.folder}/program.py", name, *words])
        self.add(name, command, rounds, minutes)

    def hang(self, name):
        self.add(name, f'bash -c "{HANGS}"'.replace("$", "\\$").format(pids=self.pids), 3, 0.05)

    def add(self, name, command, rounds, minutes):
        plan = PlannedBenchmark(name, "memory", {"x": 1}, rounds, minutes, command)
        self.benchmarks.append(plan)

    def flags(self):
        write(self.plan, BenchmarkPlan(AllocatedNodes(1, 4, 1), self.benchmarks))
        return [f"--plan={self.plan}", f"--out={self.out}"]

    def found(self):
        """Benchmarks by name, from a result that is strict JSON and alone in its folder."""
        assert [*self.out.parent.iterdir()] == [self.out]
        json.loads(self.out.read_text(), parse_constant=pytest.fail)
        result = AllocationResult.read(self.out)
        assert result.allocation == AllocatedNodes(1, 4, 1)
        return {each.name: each for each in result.benchmarks}

    def log(self):
        return (self.folder / "log").read_text().split()

    def alive(self):
        """Numbers of processes of a program that hangs which still run."""
        return [pid for pid in self.pids.read_text().split() if running(pid)]


def running(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"  # of one killed, before it is reaped


def until(condition):
    """Wait until something holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXWAY_DEADLINE", raising=False)
    return Job(tmp_path)


@pytest.fixture
def run(job):
    """Run the job in this process."""

    def go():
        run, args = cli.parse(["run-benchmarks", *job.flags()])
        run(args)
        return job.found()

    return go


def rounds(benchmark):
    """Samples of the case that was measured; the other was skipped."""
    measured, skipped = benchmark.cases
    assert skipped.skipped == "too few devices" and skipped.measurement is None
    return measured.measurement and measured.measurement.samples


def test_rounds_take_turns(job, run):
    for name, number in (("a", 4), ("b", 2), ("c", 3)):
        job.program(name, rounds=number)
    found = run()
    assert job.log() == [*"abc", *"cba", *"ac", *"a"]
    assert rounds(found["a"]) == [[1, 3], [2, 4], [3, 5], [4, 6]]
    assert rounds(found["b"]) == [[1, 3], [2, 4]]


def test_result_has_all_rounds(job, run):
    begin = time.time()
    job.program("a", rounds=6)
    found = run()["a"]
    case = found.cases[0]
    measured = case.measurement
    assert measured.seconds == [[1, 1]] * 6
    assert (measured.median, measured.interval) == (4.5, (2, 7))
    assert (measured.min, measured.max) == (1, 8)
    assert measured.rounds == [2, 3, 4, 5, 6, 7]
    assert measured.check.error == 1
    assert (case.case, measured.unit) == ({"size": 1}, "GB/s")
    assert found.provenance.arguments["round"] == 1
    assert begin <= float(found.provenance.arguments["launched"]) <= time.time()
    assert found.transports == {"P2P": 18, "a": 6}
    assert (found.program, found.options, found.failed) == ("memory", {"x": 1}, None)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("fail", "it ended with exit code 1: why [JW455]"),
        ("coded", "it ended with exit code 1: why [JW452]"),
        ("quiet", "it ended with exit code 3: no output [JW455]"),
        ("die", "it ended with exit code -9: no output [JW455]"),
    ],
)
def test_failed_program_is_not_started_again(job, run, capsys, word, reason):
    job.program("a", word)
    job.program("b")
    found = run()
    assert job.log() == [*"ab", *"bb"]
    assert (found["a"].failed, found["a"].cases) == (reason, [])
    assert found["a"].provenance is None
    assert len(rounds(found["b"])) == 3 and found["b"].failed is None
    stderr = capsys.readouterr().err
    assert f"a: {reason}\n" in stderr and ("first line" in stderr) == (word == "fail")


def test_later_failure_keeps_earlier_rounds(job, run):
    job.program("a", "ok", "fail")
    found = run()["a"]
    assert job.log() == [*"aa"]
    assert found.failed == "it ended with exit code 1: why [JW455]"
    assert rounds(found) == [[1, 3]]
    assert found.cases[0].measurement.median == 2


@pytest.mark.parametrize("words", [("ok", "wrong", "wrong"), ("ok", "wrong", "ok")])
def test_case_wrong_in_one_round_has_failed(job, run, words):
    job.program("a", *words)
    found = run()["a"]
    assert job.log() == [*"aaa"] and found.failed is None
    assert found.cases[0].failed == "it is wrong"


def test_program_without_later_result_has_failed(job, run):
    """What the round before wrote is no result of this one."""
    job.program("a", "ok", "nothing")
    job.program("b")
    found = run()
    assert rounds(found["a"]) == [[1, 3]] and found["a"].failed
    assert len(rounds(found["b"])) == 3


def test_program_without_result_has_failed(job, run):
    job.program("a", "nothing")
    job.program("b")
    found = run()
    assert found["a"].failed and len(rounds(found["b"])) == 3


@pytest.fixture
def impatient(job, monkeypatch):
    """No program gets longer than until it has written its numbers."""

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if "pids" in str(self.args):
                until(job.pids.exists)
                timeout = 0.05
            return super().wait(timeout)

    monkeypatch.setattr(run_benchmarks.subprocess, "Popen", Process)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_timeout_kills_process_group(job, run, impatient):
    job.hang("a")
    job.program("b")
    found = run()
    until(lambda: not job.alive())
    assert len(job.pids.read_text().split()) == 2
    assert found["a"].failed == "it did not end within 0.05 min [JW454]"
    assert job.log() == [*"bbb"] and len(rounds(found["b"])) == 3


def test_stderr_of_hanging_program_is_logged(job, run, impatient, capsys):
    command = f"echo why >&2; touch {job.pids}; exec sleep 1000"
    job.add("a", f"bash -c '{command}'", 1, 0.05)
    job.program("b")
    assert run()["a"].failed
    assert "why\n" in capsys.readouterr().err


@pytest.fixture
def hour(job, monkeypatch):
    """A clock that shows how many programs were started, in hours."""
    clock = SimpleNamespace(time=lambda: 3600 * len(job.log() if job.plan.exists() else []))
    (job.folder / "log").touch()
    monkeypatch.setattr(run_benchmarks, "time", clock)
    return 3600


def test_no_round_begins_after_the_deadline(job, run, hour, monkeypatch):
    monkeypatch.setenv("JAXWAY_DEADLINE", str(3 * hour + run_benchmarks.SHUTDOWN_MARGIN_S))
    for name in "abc":
        job.program(name, rounds=4)
    found = run()
    assert job.log() == [*"abc"]
    assert [each.failed for each in found.values()] == [None] * 3
    assert rounds(found["a"]) == [[1, 3]]


def test_program_without_time_has_failed(job, run, hour, monkeypatch):
    monkeypatch.setenv("JAXWAY_DEADLINE", str(hour + run_benchmarks.SHUTDOWN_MARGIN_S))
    job.program("a")
    job.program("b")
    found = run()
    assert job.log() == ["a"]
    assert (found["a"].failed, found["b"].failed) == (None, "the job's time was over [JW454]")


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_deadline_ends_a_program(job, run, monkeypatch):
    """A program that hangs may do so for 3 s, but the job has 1 s left for it."""
    deadline = time.time() + run_benchmarks.SHUTDOWN_MARGIN_S + 1
    monkeypatch.setenv("JAXWAY_DEADLINE", str(deadline))
    monkeypatch.setattr(run_benchmarks, "KILL_TIMEOUT_S", 0.05)
    job.hang("a")
    found = run()["a"]
    assert time.time() < deadline
    assert found.failed == "the job's time was over [JW454]"
    if job.pids.exists():
        until(lambda: not job.alive())


def test_round_cut_by_deadline_is_no_failure(job, run, monkeypatch):
    """It would have been none either if it had not begun."""
    start, clock = run_benchmarks.start, SimpleNamespace(now=0.0)
    clock.time = lambda: clock.now

    def last(command, seconds, out):
        if not (job.folder / "log").exists():
            return start(command, seconds, out)
        clock.now += seconds
        return f"it did not end within {seconds} s"

    monkeypatch.setenv("JAXWAY_DEADLINE", str(run_benchmarks.SHUTDOWN_MARGIN_S + 20))
    monkeypatch.setattr(run_benchmarks, "start", last)
    monkeypatch.setattr(run_benchmarks, "time", clock)
    job.program("a")
    found = run()["a"]
    assert clock.now == 20
    assert rounds(found) == [[1, 3]] and found.failed is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_all(job, number):
    job.hang("a")
    program = [sys.executable, "-m", "jaxway", "run-benchmarks", *job.flags()]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    until(job.pids.exists)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (
        1,
        f"jaxway run-benchmarks: ended by {number.name} [JW550]\n",
    )
    until(lambda: not job.alive())
    assert not [*job.out.parent.iterdir()]


def test_stderr_may_be_invalid_text(job, run):
    job.add("a", f"bash -c 'printf \\\\377 >&2; exit 5' # {job.folder}", 1, 1.0)
    job.program("b")
    found = run()
    assert found["a"].failed.startswith("it ended with exit code 5: ")
    assert len(rounds(found["b"])) == 3


def test_per_device_is_median_over_rounds(job, run):
    """Not what they had in the last one."""
    description = {"quantity": "q", "unit": "s", "higher_is_better": False, "formula": "t"}
    measurement = {**description, "samples": [1.0], "seconds": [1.0], "per_device": [-1, 2.0]}
    result = {"schema_version": 2, "provenance": dataclasses.asdict(PROVENANCE), "transports": {}}
    result |= {"cases": [{"case": {}, "measurement": measurement}]}
    text = json.dumps(result).replace("[-1,", "[%s,")
    (job.folder / "one.sh").write_text(f"""
        number=$(cat {job.folder}/number 2> /dev/null || echo 1)
        printf '{text}' $number > ${{1#--out=}}
        echo $(( 9 * number )) > {job.folder}/number""")
    job.add("a", f"bash {job.folder}/one.sh", 3, 1.0)
    assert run()["a"].cases[0].measurement.per_device == [9, 2]


def test_malformed_result_fails_its_program_only(job, run):
    """It fails by itself."""
    for name, text in (("a", "{}"), ("b", "no JSON"), ("c", "[]")):
        (job.folder / f"{name}.sh").write_text(f"echo '{text}' > ${{1#--out=}}")
        job.add(name, f"bash {job.folder}/{name}.sh", 1, 1.0)
    job.program("d")
    found = run()
    assert all("not as measure.write() writes it" in found[name].failed for name in "abc")
    assert rounds(found["d"])


def test_folder_names_are_quoted(job, run):
    job.out = job.folder / "bob's results/out.json"
    job.program("a")
    assert len(rounds(run()["a"])) == 3


def test_environment_reaches_a_program(job, run, monkeypatch):
    monkeypatch.setenv("FACT", str(os.getpid()))
    job.add("a", f"bash -c 'echo $FACT >&2; exit 5' # {job.folder}", 1, 1.0)
    assert run()["a"].failed == f"it ended with exit code 5: {os.getpid()} [JW455]"
