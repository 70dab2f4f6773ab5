"""Run Apptainer for pulling and building: whether it works here, and its failures as a sentence."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxway_shared.errors import UserError

from jaxway.container.work_folder import disk_full_hint
from jaxway.files import PROGRESS_INTERVAL_S, block_signals, log, unblock_signals

# Smaller than gzip's best, at a tenth of the time; larger blocks make up for the low level.
ZSTD = ("--mksquashfs-args", "-comp zstd -Xcompression-level 3 -b 1M")
# Other variables of this kind stand for options, such as the bind of a folder that is not there.
NEEDED_RE = re.compile("APPTAINER_(DOCKER_.+|TMPDIR|CONFIGDIR)")
LAST_LINES = 20  # of Apptainer's output, shown when it fails
PR_SET_PDEATHSIG = 1


def drop_options() -> None:
    """Drop what this process's environment says about how Apptainer runs a container."""
    for name in [*os.environ]:
        if name.startswith(("APPTAINER", "SINGULARITY")) and not NEEDED_RE.fullmatch(name):
            del os.environ[name]


def apptainer(*arguments: str | Path, work: Path) -> None:
    """Run Apptainer with its temporary files in ``work``; log progress, raise where it fails."""
    with tempfile.TemporaryFile("w+", dir=work) as output:
        block_signals()
        process = subprocess.Popen(
            ["apptainer", *arguments],
            env=os.environ
            | {"APPTAINER_TMPDIR": str(work), "APPTAINER_CACHEDIR": str(work / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            unblock_signals()
            wait(process, work)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    if process.returncode:
        for line in lines[-LAST_LINES:]:
            log(line)
        if conflict := pip_conflict(lines):
            raise UserError("JW114", conflict)
        raise UserError("JW113", f"apptainer {arguments[0]} failed: {failure(lines, work)}")


def wait(process: subprocess.Popen[bytes], work: Path) -> None:
    """Wait for its end; log now and then that it is at work."""
    began = time.monotonic()
    while process.poll() is None:
        try:
            process.wait(PROGRESS_INTERVAL_S)
        except subprocess.TimeoutExpired:
            free = shutil.disk_usage(work).free
            log(f"... {time.monotonic() - began:.0f} s, {free / 1e9:,.1f} GB free in {work}")


def pip_conflict(lines: Sequence[str]) -> str | None:
    """What pip does not install since it wants another version of what the image has."""
    kept = "The user requested (constraint) "
    wants = [x for x in lines if " depends on " in x or x.startswith("The user requested ")]
    names = [x.removeprefix(kept) for x in wants if x.startswith(kept)]
    wants = [x for x in wants if not x.startswith(kept)]
    if not wants or not names:
        return None
    wanted = wants[0].replace("The user requested", "packages.python:")
    return f"{wanted}, but the image has {names[0]}: choose another version of it, or another image"


def failure(lines: list[str], work: Path) -> str:
    """Why Apptainer failed, from its output."""
    fatal = [line for line in lines if line.startswith("FATAL")]
    reason = re.sub(r"^\w+: +", "", (fatal or lines or ["no reason given"])[-1])
    if re.search("no space left|quota exceeded", reason, re.IGNORECASE):
        reason += f"; {disk_full_hint(work)}"
    return reason


def end_with_parent() -> None:
    """In the child: be killed when the parent is, even by SIGKILL."""
    unblock_signals()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def apptainer_version() -> str:
    """Version of Apptainer; raises where this user cannot run it."""
    try:
        done = subprocess.run(["apptainer", "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("JW111", "there is no apptainer in PATH") from None
    except OSError as error:
        raise UserError("JW111", f"apptainer does not run: {error.strerror}") from None
    if "group container" in done.stdout + done.stderr:
        raise UserError(
            "JW112",
            "you may not use Apptainer here yet: in JuDoor, under Software, request access to "
            "restricted software, choose Container Runtime Engine and accept its agreement; it "
            "takes effect within hours",
        )
    found: list[str] = re.findall(r"\d+\.\d+\S*", done.stdout)
    if done.returncode or not found:  # a banner, where the site wants it on compute nodes alone
        reason = " ".join((done.stderr or done.stdout).split())
        raise UserError("JW111", f"apptainer does not run: {reason}")
    return found[-1]


def compression(work: Path) -> tuple[str, ...]:
    """Arguments of `apptainer build` for zstd; none, so gzip, if this host cannot make or mount it.

    Found by running a program in an image that is nothing but links to the host's own /usr.
    """
    trial = work / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "root/usr").mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (trial / "root" / name).symlink_to(f"usr/{name}")
    sif = trial / "trial.sif"
    commands: list[list[str | Path]] = [
        ["build", *ZSTD, sif, trial / "root"],
        ["exec", "--bind", "/usr", sif, "true"],
    ]
    environment = os.environ | dict.fromkeys(("APPTAINER_TMPDIR", "APPTAINER_CACHEDIR"), str(trial))
    for words in commands:
        if subprocess.run(["apptainer", *words], env=environment, capture_output=True).returncode:
            log("zstd images do not work on this host: using gzip, which is slower")
            return ()
    return ZSTD
