"""How an error ends a program."""

import socket

import pytest
from jaxway_shared.errors import fail, from_exit, parse


@pytest.mark.parametrize(("job", "where"), [(None, ""), ("7", f" on {socket.gethostname()}")])
def test_error_names_its_node_in_a_job(monkeypatch, job, where) -> None:
    monkeypatch.setattr("sys.argv", ["/j/train.py"])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with pytest.raises(SystemExit) as stop:
        fail("JW381", "no: device")
    assert stop.value.code == f"train.py{where}: no: device [JW381]"
    error = from_exit(stop.value)
    assert (error.code, str(error)) == ("JW381", "no: device")
    again = parse(str(stop.value.code))
    assert again
    assert (again.code, str(again)) == ("JW381", f"train.py{where}: no: device")


@pytest.mark.parametrize("line", ["", "[JW381]", "killed [9]", "disk full [JW384] or not"])
def test_line_without_a_code_is_no_error(line) -> None:
    assert parse(line) is None
