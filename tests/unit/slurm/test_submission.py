"""A call of sbatch, with a stub of it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxway.slurm.queue import QueryError
from jaxway.slurm.submission import RefusedError, sbatch, wait_for_calls

Stub = Callable[[str], None]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Makes sbatch from a script, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str) -> None:
        file = tmp_path / "sbatch"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return make


@pytest.mark.parametrize("printed", ["12", "12;cluster", "Welcome!\nSubmitted batch job 12"])
def test_id_of_the_job(stub: Stub, printed: str) -> None:
    stub(f"echo '{printed}'")
    assert sbatch("sbatch --parsable", "true") == "12"


def test_command_reaches_slurm_as_it_is(stub: Stub, tmp_path: Path) -> None:
    stub("printf '%s\n' \"$@\" > called; cat >> called; echo 12")
    sbatch("sbatch --comment 'a b'", """echo "$HOME" 'x'""")
    called = (tmp_path / "called").read_text().splitlines()
    assert called == ["--comment", "a b", "#!/bin/sh", """echo "$HOME" 'x'"""]


def test_refusal_is_slurms_reason(stub: Stub) -> None:
    stub(
        "echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2;"
        "echo 'sbatch: error: Batch job submission failed: violates policy' >&2; exit 1"
    )
    with pytest.raises(RefusedError) as caught:
        sbatch("sbatch", "true")
    reason = "AssocMaxSubmitJobLimit; Batch job submission failed: violates policy"
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "script",
    [
        "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1",
        "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'sbatch: error: Zero Bytes were transmitted' >&2; exit 1",
        "echo no id",
        "kill -KILL $$",
    ],
)
def test_outage_is_no_refusal(stub: Stub, script: str) -> None:
    stub(script)
    with pytest.raises(QueryError):
        sbatch("sbatch", "true")


def test_call_of_a_killed_run_is_waited_for(stub: Stub, tmp_path: Path) -> None:
    stub("touch called; sleep 1; touch done; echo 12")
    code = "from jaxway.slurm.submission import sbatch; sbatch('sbatch', 'true')"
    with subprocess.Popen([sys.executable, "-c", code]) as run:
        while not (tmp_path / "called").exists():
            time.sleep(0.01)
        run.kill()
    assert not (tmp_path / "done").exists()
    wait_for_calls(threading.Event())
    assert (tmp_path / "done").exists()


def test_own_calls_do_not_wait_for_each_other(stub: Stub, tmp_path: Path) -> None:
    """Each ends only when the other has begun."""
    stub("touch $2; until [ -e $3 ]; do sleep 0.01; done; echo 12")
    calls = [threading.Thread(target=sbatch, args=(f"sbatch x {w}", "")) for w in ("a b", "b a")]
    for call in calls:
        call.start()
    for call in calls:
        call.join(10)
    assert not any(call.is_alive() for call in calls)


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_wait_has_an_end(stub: Stub, tmp_path: Path, ctrl_c: bool) -> None:
    stub("touch called; until [ -e end ]; do sleep 0.01; done; echo 12")
    call = threading.Thread(target=sbatch, args=("sbatch", ""))
    call.start()
    while not (tmp_path / "called").exists():
        time.sleep(0.01)
    closing = threading.Event()
    if ctrl_c:
        closing.set()
    began = time.monotonic()
    wait_for_calls(closing, timeout_s=60 if ctrl_c else 0.3)
    assert time.monotonic() - began < 30
    assert call.is_alive()
    (tmp_path / "end").touch()
    call.join()
