"""Ask Slurm, or another command of the machine, in a form that no setting of the user changes."""

import os
import subprocess

SETTINGS = ("SACCT_", "SINFO_", "SQUEUE_")  # variables that stand for options
MISSING, SILENT = 127, 124  # exit codes as a shell and `timeout` give them


def ask(*command: str, seconds: float = 10) -> subprocess.CompletedProcess[str]:
    """What a command says; one that is missing or silent has failed, with a sentence for it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    environment["SLURM_TIME_FORMAT"] = "standard"
    try:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except FileNotFoundError:
        code, problem = MISSING, f"there is no {command[0]} in PATH"
    except OSError as error:
        code, problem = MISSING, f"{command[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        code, problem = SILENT, f"{command[0]} has not answered within {seconds:g} s"
    return subprocess.CompletedProcess(command, code, "", problem)


def reason(said: subprocess.CompletedProcess[str]) -> str:
    """Why a command has failed, by its last line."""
    return (said.stderr.strip() or said.stdout.strip() or "no reason given").splitlines()[-1]
