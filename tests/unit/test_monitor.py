"""Following a run: what is said of each job, when it is said again, and when it ends."""

import argparse
import json
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from examples import make_config, make_site
from jaxway import monitor
from jaxway.config.load import add_arguments

ROOT = Path(__file__).parents[2]
SITE = make_site()
LOCAL = make_site(launcher=None)
CONFIG = make_config(
    train={
        "gpt": {"program": "maxtext", "steps": 10000},
        "mine": {"program": "command", "command": "x"},
    }
)
LINE = {"step": 1200, "loss": 1.9312, "tokens_per_second": 152_345.6, "step_seconds": 0.28}
TRAINED = "step 1200 of 10000, loss 1.93, 152k tokens/s, 41 min left"

# Lists what lies in the files, and writes down what it was asked, and when.
STUB = """#!/bin/sh
echo "$(date +%s.%N) $*" >> {folder}/asked
[ ! -e {folder}/fails ] || {{ cat {folder}/fails >&2; exit 1; }}
case "$*" in *--states=PENDING*) cat {folder}/pending ;; *) cat {folder}/queue ;; esac
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which a run goes on, and a squeue that lists what submit() has left."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/squeue"
    stub.write_text(STUB.format(folder=shlex.quote(str(tmp_path))))
    stub.chmod(0o755)
    (tmp_path / "queue").touch()
    (tmp_path / "pending").touch()
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    (tmp_path / ".snakemake/locks/0.output.lock").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def submit(**fields):
    """Leave a job in the queue."""
    job = {
        "id": "17",
        "state": "RUNNING",
        "comment": "rule_train_run_wildcards_gpt",
        "partition": "dc-gpu",
        "elapsed": "41:10",
        "left": "23:18:50",
        "start": "2026-11-23T12:00:00",
        "nodes": "jrc0101",
        "reason": "None",
        "folder": os.getcwd(),
    }
    with open("queue", "a") as queue:
        queue.write("|".join((job | fields).values()) + "\n")


def train(*lines, name="gpt", holder="host jrc0101, process 1, job 17"):
    """Leave the state of a training that this job holds."""
    state = Path(f"scratch/train/{name}-0123abcd")
    state.mkdir(parents=True, exist_ok=True)
    (state / "lock").write_text(holder)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (state / "metrics.jsonl").write_text(text)


def log(name, text, seconds_ago=0.0):
    """Leave a log."""
    file = Path("logs", name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - seconds_ago,) * 2)


def lines(site=SITE):
    """What is said now, by label."""
    queue = monitor.Queue(site, every=0, count=True)
    queue.look()
    if queue.waiting():
        queue.find_places()
    return dict(monitor.lines(monitor.entries(CONFIG, site, queue), queue))


def began(seconds_ago):
    """Have the run begin so long ago."""
    os.utime(".snakemake/locks/0.output.lock", (time.time() - seconds_ago,) * 2)


# ----------------------------------------------------------------------------------------- Slurm


def test_queued_job_says_why_it_waits_and_until_when(folder):
    waiting = {"state": "PENDING", "nodes": "", "reason": "Priority"}
    submit(comment="rule_smoke_test", start="2099-01-02T03:04:00", **waiting)
    (folder / "pending").write_text("dc-gpu 3\ndc-gpu-devel 6\ndc-gpu 17\nother,dc-gpu 4\n")
    assert lines() == {
        "smoke_test": "waits as job 17 (Priority), place 2 of 3 in dc-gpu, "
        "expected to begin at Fri 02 Jan 03:04"
    }


def test_start_today_is_a_time_of_day_and_an_unknown_one_is_left_out():
    assert monitor.clock(time.strftime("%Y-%m-%dT23:59:00")) == "23:59"
    assert monitor.clock("N/A") == ""
    job = monitor.Job("1", "PENDING", "", "p", "0:00", "1:00", "N/A", "", "None", "/")
    assert monitor.waits(job, "") == "waits as job 1"


def test_start_that_becomes_known_is_news_at_once(folder):
    queue, news = monitor.Queue(SITE, every=0, count=False), monitor.News(30)
    told: list[str] = []
    for start in ("N/A", "2099-01-02T03:04:00"):
        (folder / "queue").unlink()
        submit(state="PENDING", start=start)
        queue.look()
        told += news.of(monitor.entries(CONFIG, SITE, queue))
    expected = "train gpt: waits as job 17, expected to begin at Fri 02 Jan 03:04"
    assert told == ["train gpt: waits as job 17", expected]


def test_running_training_says_how_far_it_is(folder):
    submit()
    train(LINE)
    assert lines() == {
        "train gpt": f"{TRAINED}; job 17 runs on jrc0101 for 41:10, limit in 23:18:50"
    }


def test_another_jobs_state_is_not_taken(folder):
    submit(id="18")
    train(LINE)
    log("train/gpt.log", "compiling\n")
    assert lines()["train gpt"].endswith("; compiling")


def test_state_of_a_training_with_a_longer_name_is_not_taken(folder):
    submit(id="17")
    train(LINE, name="gpt-b")
    log("train/gpt.log", "compiling\n")
    assert lines()["train gpt"].endswith("; compiling")


def test_running_job_says_the_last_line_of_its_log_without_control_characters(folder):
    submit(comment="rule_benchmark_run_wildcards_1x4")
    submit(comment="rule_smoke_test", state="COMPLETING")
    log("benchmark/1x4.log", "round 1\n\x1b[31mround\x07 2\x1b[0m\n\n", seconds_ago=180)
    said = lines()
    assert said["benchmark 1x4"].endswith("; round 2 (3 min ago)")
    assert "is completing on jrc0101" in said["smoke_test"]
    assert said["smoke_test"].endswith("; no output yet")


def test_jobs_of_others_and_of_other_folders_are_left_out(folder):
    submit(folder="/elsewhere")
    submit(comment="(null)")
    nothing = "no job goes on at the moment; if Snakemake was killed, it left a lock: --unlock"
    assert lines() == {"": nothing}


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        ("rule_train_run_wildcards_gpt-learning_rate=0.1", ("train", "gpt-learning_rate=0.1")),
        ("rule_theirs_train_run_wildcards_gpt", ("train", "gpt")),  # in a module
        ("rule_smoke_test", ("smoke_test", "")),
        ("rule_own_wildcards_a", ("own", "a")),
    ],
)
def test_name_of_a_job(comment, name):
    assert monitor.name_of(comment) == name


def test_slurm_that_does_not_answer_is_named_and_the_jobs_of_before_stay(folder, monkeypatch):
    submit()
    queue = monitor.Queue(SITE, every=0, count=True)
    queue.look()
    (folder / "fails").write_text("squeue: error: Unable to contact\nslurm controller\n")
    queue.look()
    said = dict(monitor.lines(monitor.entries(CONFIG, SITE, queue), queue))
    assert said["Slurm"] == "does not answer: slurm controller"
    assert "job 17 runs" in said["train gpt"]
    (folder / "fails").unlink()
    queue.look()
    assert not queue.trouble
    monkeypatch.setenv("PATH", "/nowhere")
    queue.look()
    assert "there is no squeue" in queue.trouble


def test_slurm_is_asked_one_thing_at_a_time_and_no_sooner_than_it_may(folder, monkeypatch):
    submit(state="PENDING")
    clock = 1000.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock)
    queue = monitor.Queue(SITE, monitor.ASK, count=True)
    asked = []
    for _ in range(121):
        before = (folder / "asked").read_text() if (folder / "asked").exists() else ""
        queue.look()
        new = (folder / "asked").read_text().removeprefix(before).splitlines()
        asked += [(clock - 1000, "--states=PENDING" in line) for line in new]
        clock += 1
    assert [when for when, _ in asked] == [10.0 * i for i in range(13)]
    assert [when for when, places in asked if places] == [10, 70]


def test_settings_of_this_shell_do_not_change_the_answer(folder, monkeypatch):
    monkeypatch.setenv("SQUEUE_STATES", "FAILED")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    (folder / "bin/squeue").write_text("#!/bin/sh\necho $SQUEUE_STATES-$SLURM_TIME_FORMAT\n")
    assert monitor.squeue() == ["-standard"]


# ----------------------------------------------------------------------------------------- files


def test_jobs_without_slurm_are_told_by_their_logs(folder):
    began(100)
    log("pull.log", "layers: 2 of 9 are here\n")
    log("prepare_data/ab.log", "tokens: 3 of 9 MB\n", seconds_ago=95)
    log("prepare_data/cd.log", "9 tokens to train on\n")
    (folder / "results/data").mkdir(parents=True)
    (folder / "results/data/cd.json").touch()  # done
    log("prepare_data/ef.log", "failed in an earlier run\n", seconds_ago=110)
    log("verify_container.log", "done long ago\n", seconds_ago=90)
    log("train/gpt.log", "a job of Slurm's, which lists it no more\n")
    assert lines() == {
        "prepare_data ab": "tokens: 3 of 9 MB (2 min ago)",
        "pull": "layers: 2 of 9 are here",
    }


def test_without_slurm_a_training_is_followed_while_its_process_lives(folder):
    log("train/gpt.log", "starts\n")
    here = f"host {socket.gethostname()}, process {os.getpid()}, job none"
    train(LINE, holder=here)
    assert lines(LOCAL) == {"train gpt": TRAINED}
    ended = subprocess.Popen(["true"])
    ended.wait()
    train(LINE, holder=here.replace(str(os.getpid()), str(ended.pid)))
    assert lines(LOCAL) == {"train gpt": "starts"}
    train(LINE, holder=here.replace(socket.gethostname(), "elsewhere"))
    assert lines(LOCAL) == {"train gpt": "starts"}


def test_broken_lines_of_metrics_are_skipped(folder):
    broken = ["{'no': json}\n", "[]\n", '{"loss": 3}\n', '{"step": "9"}\n', '{"step": 1300, "lo']
    train(LINE, *broken)
    assert monitor.progress(folder / "scratch/train/gpt-0123abcd", 10000) == TRAINED
    train(*broken)
    assert monitor.progress(folder / "scratch/train/gpt-0123abcd", 10000) == ""


@pytest.mark.parametrize(
    ("line", "steps", "said"),
    [
        ({"step": 7}, None, "step 7"),
        ({"step": 7, "loss": "low", "step_seconds": 1}, None, "step 7"),
        ({"step": 7, "loss": 0.01234}, 70, "step 7 of 70, loss 0.0123"),
        ({"step": 70, "loss": 12.345, "step_seconds": 1}, 70, "step 70 of 70, loss 12.3"),
    ],
)
def test_progress_says_what_a_program_tells(folder, line, steps, said):
    train(line, name="mine")
    assert monitor.progress(folder / "scratch/train/mine-0123abcd", steps) == said


def test_time_left_is_from_the_latest_lines_and_no_single_one(folder):
    slow = [{"step": step, "step_seconds": 100} for step in range(1, 20)]
    now = [{"step": step, "step_seconds": 2} for step in range(20, 30)]
    train(*slow, *now[:-1], {"step": 29, "step_seconds": 60})  # which wrote a checkpoint
    assert monitor.progress(folder / "scratch/train/gpt-0123abcd", 59) == "step 29 of 59, 60 s left"


def test_of_a_long_file_only_the_end_is_read(folder):
    train(*[LINE | {"step": step, "more": "x" * 100} for step in range(1000)])
    state = folder / "scratch/train/gpt-0123abcd"
    assert monitor.progress(state, None) == "step 999, loss 1.93, 152k tokens/s"
    read = monitor.tail(state / "metrics.jsonl")
    assert len(read) < 500 and json.loads(read[0])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(89, "89 s"), (91, "2 min"), (5300, "88 min"), (5400, "1.5 h"), (180000, "2.1 days")],
)
def test_duration(seconds, said):
    assert monitor.duration(seconds) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(3.14159, "3.14"), (999.4, "999"), (999.6, "1k"), (152345, "152k"), (2.5e6, "2.5M")],
)
def test_short(number, said):
    assert monitor.short(number) == said


# ------------------------------------------------------------------------------------------- news


def entry(stage="RUNNING", state="job 17 runs", progress=""):
    return monitor.Entry("17", "train gpt", stage, state, progress, "a line of the log")


def test_news_are_told_once_and_progress_after_a_pause(monkeypatch):
    clock = 1000.0
    monkeypatch.setattr(monitor.time, "monotonic", lambda: clock)
    news = monitor.News(pause=30)

    def told(found, later=0.0):
        nonlocal clock
        clock += later
        return list(news.of([found]))

    assert told(entry("waits", "waits")) == ["train gpt: waits"]
    assert told(entry("waits", "waits"), 9999) == []
    assert told(entry("waits, start known", "waits until 3")) == ["train gpt: waits until 3"]
    assert told(entry("waits, start known", "waits until 4"), 599) == []
    assert told(entry("waits, start known", "waits until 4"), 1) == ["train gpt: waits until 4"]
    assert told(entry(state="runs for 1 s")) == ["train gpt: runs for 1 s"]
    assert told(entry(state="runs for 2 s"), 9999) == []
    assert told(entry(progress="step 1")) == ["train gpt: step 1"]
    assert told(entry(progress="step 2"), 29) == []
    assert told(entry(progress="step 3"), 1) == ["train gpt: step 3"]
    assert told(entry(progress="step 3"), 9999) == []


@pytest.fixture
def quick(monkeypatch):
    """A background that need not be waited for."""
    monkeypatch.setattr(monitor, "LOOK_IN_BACKGROUND", 0.01)
    monkeypatch.setattr(monitor, "ASK_IN_BACKGROUND", 0)


def test_background_tells_until_its_end(folder, quick, capfd):
    submit()
    train(LINE)
    said = ""
    with monitor.watch_in_background(CONFIG, SITE):
        deadline = time.monotonic() + 30
        while "step" not in said and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capfd.readouterr().err
    assert not [x for x in threading.enumerate() if x.name.endswith("(print_news)")]
    begin, step = said.splitlines()
    assert begin[6:] == "train gpt: job 17 runs on jrc0101 for 41:10, limit in 23:18:50"
    assert step[6:] == f"train gpt: {TRAINED}"


def test_whatever_goes_wrong_in_the_background_ends_it_alone(folder, quick, monkeypatch, capfd):
    called = threading.Event()

    def broken(*_):
        called.set()
        raise ValueError("a bug")

    monkeypatch.setattr(monitor, "entries", broken)
    with monitor.watch_in_background(CONFIG, LOCAL):
        assert called.wait(30)
    assert capfd.readouterr() == ("", "")  # and pytest makes a thread's exception an error


def test_too_many_processes_for_a_thread_do_not_harm_the_run(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with monitor.watch_in_background(CONFIG, SITE):
        pass


def test_background_ends_with_a_run_that_fails(folder, quick):
    with pytest.raises(SystemExit), monitor.watch_in_background(CONFIG, LOCAL):
        sys.exit(1)
    assert not [x for x in threading.enumerate() if x.name.endswith("(print_news)")]


# ---------------------------------------------------------------------------------------- program


def command(folder, profile="jureca", configfile="config.yaml"):
    """The command line, and its environment: no account, as in a terminal that submits nothing."""
    (folder / "config.yaml").write_text("train: {gpt: {program: maxtext, steps: 10000}}\n")
    program = [
        sys.executable,
        f"{ROOT}/workflow/jaxway",
        "follow",
        f"--profile={ROOT}/profiles/{profile}",
    ]
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    scratch = {"SCRATCH": str(folder / "work"), "USER": "alice"}
    return [*program, f"--configfile={configfile}"], keep | scratch


def run(folder, **options):
    words, environment = command(folder, **options)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


def test_without_a_terminal_it_prints_once_and_ends(folder):
    submit()
    submit(id="18", comment="rule_smoke_test", state="PENDING", start="N/A")
    (folder / "pending").write_text("dc-gpu 18\n")
    (folder / "work/alice/jaxway").mkdir(parents=True)
    (folder / "scratch").symlink_to("work/alice/jaxway")
    train(LINE)
    done = run(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"train gpt   {TRAINED}; job 17 runs on jrc0101 for 41:10, limit in 23:18:50\n"
        "smoke_test  waits as job 18, place 1 of 1 in dc-gpu\n"
    )


def test_where_no_run_goes_on_it_says_so(folder):
    (folder / ".snakemake/locks/0.output.lock").unlink()
    done = run(folder)
    assert (done.returncode, done.stdout) == (0, f"no run goes on in {folder}\n")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"configfile": "none.yaml"}, "none.yaml cannot be used: [Errno 2] No such file"),
        ({"profile": "none"}, "/profiles/none or config.yaml cannot be used: [Errno 2]"),
    ],
)
def test_missing_configuration_is_one_sentence(folder, options, sentence):
    done = run(folder, **options)
    assert done.returncode == 1
    assert done.stderr.startswith("jaxway follow: ") and sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_missing_squeue_is_one_sentence(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = run(folder)
    assert (done.returncode, done.stderr) == (
        1,
        "jaxway follow: there is no squeue in PATH [JW552]\n",
    )


class Terminal:
    """The program on a terminal."""

    def __init__(self, folder):
        self.reader, writer = pty.openpty()
        words, environment = command(folder)
        environment |= {"TERM": "xterm", "COLUMNS": "80", "LINES": "20"}
        self.process = subprocess.Popen(
            words, env=environment, stdin=writer, stdout=writer, stderr=writer
        )
        os.close(writer)
        self.said = ""

    def read(self, until=None):
        """Read until this is there, or to the end; a minute at most."""
        deadline = time.monotonic() + 60
        while until is None or until not in self.said:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.reader], [], [], left)[0], self.said
            try:
                self.said += os.read(self.reader, 65536).decode()
            except OSError:  # the program has ended
                break
        assert until is None or until in self.said
        return self.said

    def end(self):
        """Exit code, after all has been read."""
        self.read()
        os.close(self.reader)
        return self.process.wait(60)


def test_on_a_terminal_it_goes_on_until_ctrl_c(folder):
    submit(comment="rule_smoke_test")
    log("smoke_test.log", "one\n")
    terminal = Terminal(folder)
    terminal.read(until="one")
    log("smoke_test.log", "two\n")
    terminal.read(until="two")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.said


def test_on_a_terminal_it_ends_with_the_run(folder):
    log("pull.log", "a long line " * 20)
    terminal = Terminal(folder)
    terminal.read(until="a long line")
    (folder / ".snakemake/locks/0.output.lock").unlink()
    assert terminal.end() == 0
    assert terminal.said.rstrip().endswith("the run has ended")
    assert "pull" in terminal.said and "…" in terminal.said  # cut: one line for a job


def test_defaults_are_those_of_this_repository(folder):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([])
    assert args.profile == ROOT / "profiles/local"
    assert args.configfile == ROOT / "config/config.yaml"
