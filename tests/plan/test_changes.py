"""What has changed of a training's program or data makes it run again, and going back finds it."""

import pytest
from examples import make_config, make_site
from plan import Plan

SCRIPT = """
import os, pathlib
import settings
pathlib.Path("runs").open("a").write(f"{settings.NAME}\\n")
"""


@pytest.fixture
def mine(plan: Plan) -> Plan:
    """A plan with one training by a script, whose smoke test has passed."""
    (plan.folder / "script.py").write_text(SCRIPT)
    (plan.folder / "results").mkdir()
    for name in ("smoke_test.json", ".smoke_test_passed"):
        (plan.folder / "results" / name).touch()
    plan.configure(train={"mine": {"program": "command", "command": "python3 script.py"}})
    return plan


def train(plan: Plan, name: str) -> tuple[list[str], str]:
    """Train with a module that holds a name; all runs of the script, and what was printed."""
    (plan.folder / "settings.py").write_text(f'NAME = "{name}"\n')
    done = plan.snakemake("train", "--cores=1", profile="local")
    return (plan.folder / "runs").read_text().split(), done.stdout + done.stderr


def test_edited_module_of_a_script_is_trained_anew_and_going_back_is_not(mine):
    runs, output = train(mine, "one")
    assert runs == ["one"] and "nothing is trained again" not in output
    assert mine.planned("train", profile="local") == []
    assert train(mine, "two")[0] == ["one", "two"]
    log = mine.folder / "logs/train/mine.log"
    assert "starting at step 0: settings.py " in log.read_text()
    runs, output = train(mine, "one")
    assert runs == ["one", "two"]
    assert "Training mine: " in output and "; nothing is trained again." in output
    states = {path.name for path in (mine.folder / "scratch/train").iterdir()}
    assert len(states) == 2
    link = mine.folder / "results/train/mine/state"
    assert link.resolve().name in states and (link / "log").exists()


def test_written_file_of_data_is_prepared_again(plan, monkeypatch):
    monkeypatch.chdir(plan.folder)
    (plan.folder / "text").mkdir()
    for number in range(3):
        (plan.folder / f"text/{number}.txt").write_text(f"{number} text\n" * 999)
    data = {"data": ["text/*.txt"], "validation_bytes": 1000}
    plan.configure(train={"a": {**data, "steps": 60, "global_batch": 8}})
    config = make_config(make_site(launcher=None), train={"a": data})
    (record,) = [each.record for each in config.data.values()]
    plan.snakemake(record, "--cores=1", profile="local")
    before = (plan.folder / record).read_text()
    assert plan.planned(record, profile="local") == []
    (plan.folder / "text/1.txt").write_text("another\n" * 1000)
    assert plan.planned(record, profile="local") == ["prepare_data"]
    plan.snakemake(record, "--cores=1", profile="local")
    assert (plan.folder / record).read_text() != before
    assert len([*(plan.folder / "scratch/data").glob("*/data.json")]) == 2
