"""Follow the run that goes on in this folder: a line for each of its jobs.

Refreshed on a terminal until the run ends or Ctrl-C; elsewhere printed once.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxway_shared.errors import UserError
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from jaxway.config.jobs import Config
from jaxway.config.load import add_arguments, load, read
from jaxway.config.site import Site
from jaxway.slurm import commands

ASK = 10  # seconds between two questions to Slurm, at least, while somebody looks
COUNT = 60  # seconds between two looks at all that wait in a partition
LOOK = 2  # seconds between two looks at files
ASK_IN_BACKGROUND, LOOK_IN_BACKGROUND = 30, 5
TELL, TELL_A_FILE = 30, 600  # seconds between two lines of a training, on a terminal and in a file
SILENT = 60  # seconds without a word after which it is said how many
STEPS = {"train_run": "train", "benchmark_run": "benchmark", "smoke_test": "smoke_test"}
RESULTS = {  # by log: what Snakemake deletes before a job, and the job leaves when it is done
    "smoke_test": "results/smoke_test.json",
    "prepare_data": "results/data/{}.json",
    "train": "results/train/{}/summary.json",
    "benchmark": "results/benchmark/{}.json",
    "record": "results/benchmark/.{}.recorded",
    "verdict": "results/.benchmarks_passed",
    "vet": "results/vetting.json",
    "cost": "results/cost.json",
    "report": "results/report.html",
}
HOLDER = re.compile(r"host (.+), process (\d+), job (.+)")  # what state.opened() writes
ID = "[0-9a-f]" * 8  # of a training's settings, in its state's name; `a` is not `a-b`
ESCAPES = re.compile(r"\x1b\[[\d;?]*[a-zA-Z]")


class Job(NamedTuple):
    """A job as Slurm lists it."""

    id: str
    state: str
    comment: str
    partition: str
    elapsed: str
    left: str
    start: str
    nodes: str
    reason: str
    folder: str


FORMAT = "--format=%i|%T|%k|%P|%M|%L|%S|%N|%r|%Z"


class Entry(NamedTuple):
    """What is known of a job. ``stage`` changes when something new begins; empty, without Slurm."""

    key: str
    label: str
    stage: str
    state: str
    progress: str  # of a training
    said: str  # last line of the log


# ----------------------------------------------------------------------------------------- Slurm


def squeue(*options: str) -> list[str]:
    """What squeue answers; OSError, if it does not."""
    said = commands.run_query("squeue", "--noheader", *options, timeout_s=60)
    if said.returncode:
        raise OSError(commands.error_message(said))
    return said.stdout.splitlines()


class Queue:
    """The jobs that were submitted from this folder; those of before while Slurm does not answer.

    ``count``: whether to find out also how many wait before them, for which Slurm lists them all.
    """

    def __init__(self, site: Site, every: float, count: bool) -> None:
        self.there, self.every, self.count = bool(site.launcher), every, count
        self.jobs: list[Job] = []
        self.places: dict[str, str] = {}
        self.trouble = ""
        self.asked = self.counted = -math.inf

    def look(self) -> None:
        """Ask one question, if it is time to."""
        now = time.monotonic()
        if not self.there or now - self.asked < self.every:
            return
        self.asked = now
        if self.count and self.waiting() and now - self.counted >= COUNT:
            self.counted = now
            self.find_places()
        else:
            self.find_jobs()

    def waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "PENDING"]

    def find_jobs(self) -> None:
        with self.noting_trouble():
            jobs = [line.split("|", 9) for line in squeue("--me", FORMAT)]
            ours = [Job(*fields) for fields in jobs if len(fields) == 10]
            here = os.getcwd()
            self.jobs = [j for j in ours if j.comment.startswith("rule_") and j.folder == here]

    def find_places(self) -> None:
        with self.noting_trouble():
            partitions = sorted({job.partition for job in self.waiting()})
            options = ["--states=PENDING", f"--partition={','.join(partitions)}", "--sort=-p"]
            found = [line.split() for line in squeue(*options, "--format=%P %i")]
            self.places = {}
            for partition in partitions:
                ids = [id for names, id in found if partition in names.split(",")]
                for place, id in enumerate(ids, 1):
                    self.places[id] = f"place {place} of {len(ids)} in {partition}"

    @contextlib.contextmanager
    def noting_trouble(self) -> Iterator[None]:
        try:
            yield
            self.trouble = ""
        except OSError as error:
            self.trouble = f"does not answer: {error}"


def name_of(comment: str) -> tuple[str, str]:
    """Step and name of a job from the comment by which it was submitted."""
    rule, _, name = comment.removeprefix("rule_").partition("_wildcards_")
    # In a module of somebody's own workflow, rules may have a prefix.
    return next((step for end, step in STEPS.items() if rule.endswith(end)), rule), name


def clock(time_stamp: str) -> str:
    """A time of Slurm's as one says it; empty, where it is not known."""
    try:
        moment = datetime.fromisoformat(time_stamp)
    except ValueError:
        return ""
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M" if today else "%a %d %b %H:%M")


def waits(job: Job, place: str) -> str:
    """That a job waits, why, and until when."""
    start = clock(job.start)
    reason = "" if job.reason in ("", "None") else f" ({job.reason})"
    words = [f"waits as job {job.id}{reason}", place, start and f"expected to begin at {start}"]
    return ", ".join(filter(None, words))


# ----------------------------------------------------------------------------------------- files


def tail(file: Path) -> list[str]:
    """The last lines of a file; none, where it cannot be read."""
    try:
        with file.open("rb") as opened:
            begin = max(0, opened.seek(0, os.SEEK_END) - 65536)
            opened.seek(begin)
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if begin else lines


def last_line(log: Path) -> str:
    """The last line of a log, and how old it is if it is old."""
    lines = ("".join(filter(str.isprintable, ESCAPES.sub("", x))).strip() for x in tail(log)[::-1])
    lines = (line for line in lines if not line.startswith("INFO: "))  # Apptainer's
    age = time.time() - (changed(log) or time.time())
    said = next(filter(None, lines), "no output yet")
    return said + (f" ({duration(age)} ago)" if age > SILENT else "")


def changed(file: Path) -> float | None:
    """When a file was last changed; None, where there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def run_began() -> float | None:
    """When the run that holds this folder's lock took it; None, when none does."""
    times = map(changed, Path(".snakemake/locks").glob("*.lock"))
    return min((time for time in times if time), default=None)


def state_of(name: str, job: str, site: Site) -> Path | None:
    """The state that a training's job holds now. Without Slurm its process must run here."""
    for lock in Path(site.scratch, "train").glob(f"{name}-{ID}*/lock"):
        if found := HOLDER.fullmatch("\n".join(tail(lock))):
            host, process, holder = found.groups()
            here = host == socket.gethostname() and Path("/proc", process).exists()
            if holder == job if job else here:
                return lock.parent
    return None


def progress(state: Path, steps: int | None) -> str:
    """How far a training is, by its metrics; empty, when there are none yet. Skips broken lines."""
    found: list[dict[str, Any]] = []
    for text in tail(state / "metrics.jsonl"):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append({k: v for k, v in line.items() if isinstance(v, (int, float))})
    if not found:
        return ""
    last = found[-1]
    words = [f"step {last['step']}" + (f" of {steps}" if steps else "")]
    if "loss" in last:
        words.append(f"loss {last['loss']:.3g}")
    if "tokens_per_second" in last:
        words.append(f"{short(last['tokens_per_second'])} tokens/s")
    # A line's figure is a mean over its steps, and a single one may hold a checkpoint.
    paces = [line["step_seconds"] for line in found[-10:] if "step_seconds" in line]
    if steps and last["step"] < steps and paces:
        words.append(f"{duration((steps - last['step']) * statistics.median(paces))} left")
    return ", ".join(words)


def short(number: float) -> str:
    """A number in three digits: 152k."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def duration(seconds: float) -> str:
    """A time in a unit that suits it."""
    for most, length, unit in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < most:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"


# ------------------------------------------------------------------------------------------- jobs


def how_far(step: str, name: str, job: str, config: Config, site: Site) -> str:
    """Progress of a training; empty, if it is none or has not begun."""
    state = state_of(name, job, site) if step == "train" else None
    steps = config.train[name].options.get("steps") if name in config.train else None
    return progress(state, steps) if state else ""


def entries(config: Config, site: Site, queue: Queue) -> Iterator[Entry]:
    """What is known of each job of the run: those without Slurm by their logs, then Slurm's."""
    began, now = run_began() or math.inf, time.time()
    for log in sorted(Path("logs").rglob("*.log")):
        step, name = log.parts[1].removesuffix(".log"), log.stem if len(log.parts) > 2 else ""
        last, result = changed(log) or 0, RESULTS.get(step)
        done = Path(result.format(name)).exists() if result else now - last > SILENT
        if last >= began and not done and not (site.launcher and step in STEPS.values()):
            label = f"{step} {name}".strip()
            far = how_far(step, name, "", config, site)
            yield Entry(label, label, "", "", far, last_line(log))
    for job in queue.jobs:
        step, name = name_of(job.comment)
        label = f"{step} {name}".strip()
        if job.state == "PENDING":
            stage = "waits, start known" if clock(job.start) else "waits"
            yield Entry(job.id, label, stage, waits(job, queue.places.get(job.id, "")), "", "")
        else:
            stage = job.state if job.state == "RUNNING" else ""
            does = "runs" if stage else f"is {job.state.lower()}"
            state = f"job {job.id} {does} on {job.nodes} for {job.elapsed}, limit in {job.left}"
            log = Path("logs", step, f"{name}.log") if name else Path("logs", f"{step}.log")
            far = how_far(step, name, job.id, config, site)
            yield Entry(job.id, label, stage, state, far, last_line(log))


def lines(found: Iterable[Entry], queue: Queue) -> list[tuple[str, str]]:
    """Label and text of each job; the end of the text may be cut off."""
    said = [
        (e.label, "; ".join(filter(None, [e.progress, e.state, "" if e.progress else e.said])))
        for e in found
    ]
    if queue.trouble:
        said.append(("Slurm", queue.trouble))
    nothing = "no job goes on at the moment; if Snakemake was killed, it left a lock: --unlock"
    return said or [("", nothing)]


class News:
    """What is new since it was told last. ``pause``: seconds between two lines of a training."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.told: dict[tuple[str, str], tuple[str, str, float]] = {}

    def of(self, found: Iterable[Entry]) -> Iterator[str]:
        for e in found:
            # Of a job that runs its beginning is news; of one that waits, when it may begin.
            pause = TELL_A_FILE if e.stage.startswith("waits") else math.inf
            if e.stage and self.is_new((e.key, "state"), e.stage, e.state, pause):
                yield f"{e.label}: {e.state}"
            if e.progress and self.is_new((e.key, "progress"), "", e.progress, self.pause):
                yield f"{e.label}: {e.progress}"

    def is_new(self, key: tuple[str, str], stage: str, text: str, pause: float) -> bool:
        """Whether there is another stage, or after the pause another text; then it is told now."""
        before, said, when = self.told.get(key, (None, "", 0.0))
        now = time.monotonic()
        if stage == before and (text == said or now - when < pause):
            return False
        self.told[key] = stage, text, now
        return True


# ------------------------------------------------------------------------------------------ views


@contextlib.contextmanager
def watch_in_background(config: Config, site: Site) -> Iterator[None]:
    """Print in this terminal, from a thread, what is new of the jobs of the run that goes on."""
    end = threading.Event()
    thread = threading.Thread(target=print_news, args=(config, site, end), daemon=True)
    with contextlib.suppress(RuntimeError):  # this user has too many processes
        thread.start()
    try:
        yield
    finally:
        end.set()
        if thread.is_alive():
            thread.join(2)  # Python aborts if it ends while a thread prints


def print_news(config: Config, site: Site, end: threading.Event) -> None:
    """Print what is new until the end. Whatever goes wrong here is not to harm the run."""
    news = News(TELL if sys.stderr.isatty() else TELL_A_FILE)
    queue = Queue(site, ASK_IN_BACKGROUND, count=False)  # without squeue, it has no jobs
    with contextlib.suppress(Exception):
        while not end.wait(LOOK_IN_BACKGROUND):
            queue.look()
            for line in news.of(entries(config, site, queue)):
                # In one piece: the rich logger puts its own lines and bar around it.
                sys.stderr.write(f"{time.strftime('%H:%M')} {line}\n")
                sys.stderr.flush()


def follow(config: Config, site: Site) -> None:
    """Print a line for each job; on a terminal again and again, as long as the run goes on."""
    queue = Queue(site, ASK, count=True)
    queue.look()
    if not (run_began() or queue.jobs or queue.trouble):
        print(f"no run goes on in {os.getcwd()}")
    elif not sys.stdout.isatty():
        if queue.waiting():
            queue.find_places()
        found = lines(entries(config, site, queue), queue)
        width = max(len(label) for label, _ in found)
        for label, text in found:
            print(f"{label:{width}}  {text}".strip())
    else:
        with Live(auto_refresh=False) as live:
            while run_began() or queue.jobs or queue.trouble:
                table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
                for label, text in lines(entries(config, site, queue), queue):
                    cut = Text(text, no_wrap=True, overflow="ellipsis")
                    table.add_row(Text(label, "bold"), cut)
                live.update(table, refresh=True)
                time.sleep(LOOK)
                queue.look()
        print("the run has ended")


def configure(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    _, settings, site = read(args)
    # Nothing is submitted, so it takes no account.
    config = load(settings, replace(site, account_variables=[]))
    if site.launcher and not shutil.which("squeue"):
        raise UserError("JW552", "there is no squeue in PATH")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # how it is ended on a terminal
        follow(config, site)
