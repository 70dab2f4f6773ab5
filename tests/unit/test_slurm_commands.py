"""How Slurm's commands are asked, and what it means when they fail."""

import pytest
from jaxway.slurm.commands import EXIT_NOT_FOUND, EXIT_TIMEOUT, error_message, run_query


def test_settings_of_the_user_change_no_answer(monkeypatch) -> None:
    monkeypatch.setenv("SACCT_FORMAT", "jobid")
    monkeypatch.setenv("SINFO_ALL", "yes")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "%s")
    shown = run_query("sh", "-c", "echo $SACCT_FORMAT-$SINFO_ALL-$SLURM_TIME_FORMAT").stdout
    assert shown == "--standard\n"


def test_timeout_is_a_failure_with_a_sentence() -> None:
    result = run_query("sleep", "9", timeout_s=0.1)
    assert result.returncode == EXIT_TIMEOUT
    assert error_message(result) == "sleep did not answer within 0.1 s"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such", "there is no no-such in PATH"),
        ("/dev/null", "/dev/null cannot be started: Permission denied"),
    ],
)
def test_command_that_cannot_start_is_a_failure_with_a_sentence(command, message) -> None:
    result = run_query(command)
    assert (result.returncode, error_message(result)) == (EXIT_NOT_FOUND, message)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo a; echo b >&2; exit 1", "b"),
        ("echo a; echo b; exit 1", "b"),
        ("exit 1", "no reason given"),
        ("echo; exit 1", "no reason given"),
    ],
)
def test_reason_of_a_failure_is_the_last_line(script, message) -> None:
    assert error_message(run_query("sh", "-c", script)) == message
