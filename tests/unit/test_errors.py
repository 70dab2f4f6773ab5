"""How an error ends a program."""

import socket

import pytest
from jaxway_shared.errors import fail, from_exit


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
