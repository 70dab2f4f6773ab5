"""How jobs are started."""

import os
import subprocess

from examples import make_site
from jaxway import launch


def test_code_is_dirty_when_it_has_changed_and_not_when_its_configuration_has(
    tmp_path, monkeypatch
):
    for name in ("PATH", "JAXWAY_COMMIT"):
        monkeypatch.setenv(name, os.environ["PATH"])
    (tmp_path / "config").mkdir()
    files = tmp_path / "config/config.yaml", tmp_path / "code.py"
    for file in files:
        file.touch()
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    for file, dirty in zip(files, (False, True), strict=True):
        file.write_text("changed")
        launch.prepare_environment(tmp_path, make_site(), None)
        assert os.environ["JAXWAY_COMMIT"].endswith("-dirty") == dirty
