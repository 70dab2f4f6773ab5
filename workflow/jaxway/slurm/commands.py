"""Ask Slurm, or another command of the machine, in a form that no setting of the user changes."""

import os
import re
import subprocess

OPTION_VARIABLES = ("SACCT_", "SINFO_", "SQUEUE_")  # they stand for options of these commands
# What a command of Slurm says when the daemons do not answer it: nothing follows about any job.
UNREACHABLE_RE = re.compile(
    "Unable to contact|timed out|Connection (refused|reset)|Communication|Zero Bytes were|"
    "Message (send|receive) failure"
)
EXIT_NOT_FOUND, EXIT_TIMEOUT = 127, 124  # as a shell and `timeout` give them


def run_query(*command: str, timeout_s: float = 10) -> subprocess.CompletedProcess[str]:
    """A command's result; one that is missing or does not end has failed, with a sentence why."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OPTION_VARIABLES)}
    environment["SLURM_TIME_FORMAT"] = "standard"
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,  # Ctrl-C ends the run, but no query of it
        )
    except FileNotFoundError:
        code, message = EXIT_NOT_FOUND, f"there is no {command[0]} in PATH"
    except OSError as error:
        code, message = EXIT_NOT_FOUND, f"{command[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        code, message = EXIT_TIMEOUT, f"{command[0]} did not answer within {timeout_s:g} s"
    return subprocess.CompletedProcess(command, code, "", message)


def error_message(result: subprocess.CompletedProcess[str]) -> str:
    """Why a command has failed, by its last line."""
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return lines[-1] if lines else "no reason given"
