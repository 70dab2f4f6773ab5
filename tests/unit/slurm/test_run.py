"""Before the first job of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jaxway import interrupt, run
from jaxway.slurm.journal import Journal
from submissions import make_submission


def test_ctrl_c_before_the_first_job_names_those_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr(run.Planned, "of", plan)
    Journal().begin(make_submission(id="5"))
    launch: Any = SimpleNamespace(site=SimpleNamespace(launcher="srun"))
    workflow = SimpleNamespace(executor_plugin=SimpleNamespace(name="jaxway"))
    with pytest.raises(SystemExit):
        run.Run(launch, []).start(workflow, None)
    assert capsys.readouterr().err.splitlines() == [
        "interrupted; nothing was submitted [JW212]",
        "Jobs of an earlier run may still run: 5 (train_run small).",
    ]
