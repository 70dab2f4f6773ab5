"""What Apptainer says before anything is pulled, with a stub of it."""

import pytest
from jaxway.container.apptainer import apptainer_version
from jaxway_shared.errors import UserError

UNSIGNED = "User alice is not in group container and hence not authorized to use apptainer"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (f"echo {UNSIGNED} >&2; exit 1", "in JuDoor, .* accept its agreement"),
        ("echo no such option >&2; exit 255", "apptainer does not run: no such option"),
        (
            "echo On compute nodes only. Sorry!",
            "apptainer does not run: On compute nodes only. Sor",
        ),
        (None, "there is no apptainer in PATH"),
    ],
)
def test_apptainer_that_does_not_run(script, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "apptainer").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "apptainer").chmod(0o755)
    with pytest.raises(UserError, match=sentence):
        apptainer_version()
