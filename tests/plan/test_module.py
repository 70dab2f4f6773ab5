"""Another workflow that has this one as a module: the example in docs/usage.md."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import pytest
from plan import ROOT, Plan, blocks

TRAINING = {"steps": 100, "global_batch": 8}
STEP = "$JAXWAY_STATE/last_checkpoint_step"
COMMAND = f"sh -c 'test -e {STEP} || {{ echo 10 > {STEP}; exit 75; }}'"


class Foreign(Plan):
    """A folder with a Snakefile of its own and, beside it, this workflow."""

    def configure(self, **config) -> None:
        super().configure(jaxway=config)

    def change(self, old: str, new: str) -> None:
        """Change the Snakefile."""
        self.snakefile.write_text(self.snakefile.read_text().replace(old, new))


@pytest.fixture
def foreign(tmp_path) -> Foreign:
    foreign = Foreign(tmp_path)
    (tmp_path / "jaxway").symlink_to(ROOT)
    foreign.snakefile = tmp_path / "Snakefile"
    (text,) = blocks("In your own workflow")
    foreign.snakefile.write_text(text)
    return foreign


@pytest.mark.parametrize("profile", ["local", "jureca"])
def test_plans_the_same_chain(plan, foreign, profile):
    config = {"train": {"one": TRAINING}, "benchmark": {"memory": {}}}
    plan.configure(**config)
    ours = plan.planned(profile=profile)
    foreign.configure(**config)
    foreign.change("rules.jaxway_train.input", "rules.jaxway_all.input")
    assert foreign.planned(profile=profile) == ["evaluate", *(f"jaxway_{job}" for job in ours)]


def test_training_is_resumed_in_its_next_job(foreign):
    foreign.configure(train={"mine": {"program": "command", "command": COMMAND}})
    (foreign.folder / "results").mkdir()
    for name in ("smoke_test.json", ".smoke_test_passed"):
        (foreign.folder / "results" / name).touch()
    done = foreign.snakemake(profile="local")
    assert "Training mine: resuming from step 10." in done.stderr
    assert "mine" in (foreign.folder / "evaluation.txt").read_text()


def test_module_can_be_followed(foreign):
    """By the configuration below its key."""
    foreign.configure(train={"mine": TRAINING | {"stps": 1}})
    foreign.use_stubs()
    command = [sys.executable, "jaxway/workflow/jaxway", "follow", "--configfile=config.yaml"]
    command += ["--profile", foreign.profiles / "jureca"]

    def error():
        here: Any = {"cwd": foreign.folder, "env": foreign.environment}
        return subprocess.run(command, text=True, stdout=PIPE, stderr=STDOUT, **here).stdout

    assert "train.mine.stps: unknown key" in error()
    foreign.configure(train={"mine": TRAINING})
    assert "no run in" in error()


def test_executor_and_hooks_work_in_a_module(foreign):
    """Where rules have other names and folders."""
    foreign.change("config: ", 'prefix: "below"\n    config: ')
    foreign.configure(platform="cpu", train={"mine": TRAINING})
    foreign.use_stubs()
    foreign.make_container()
    foreign.environment["STUB_CANCELLED"] = "rule_jaxway_train_run"
    done = foreign.snakemake(check=False)
    assert re.search("cost +at most .* node-h = .* core-h in all", done.stderr)
    assert "Training mine stopped: its job was cancelled (job 2 " in done.stderr
    assert "Rerun the same command to resume." in done.stderr
    assert "used: 0.03333 node-h" in done.stderr
    assert (foreign.folder / "below/results/smoke_test.json").exists()
    assert list((foreign.folder / "below/results/data").glob("*.json"))


def test_one_that_is_not_checked_out_is_refused_in_one_sentence(foreign):
    """Snakemake fetches its Snakefiles, here from the clone that it keeps, but no programs."""
    cache = ".cache/snakemake/snakemake/source-cache/snakemake-git-cache"
    clone = Path(foreign.environment["HOME"]) / cache / "github.com/me/jaxway"
    shutil.copytree(ROOT / "rules", clone / "rules")
    shutil.copy(ROOT / "Snakefile", clone)
    git = ["git", "-C", str(clone), "-c", "user.name=me", "-c", "user.email=me@localhost"]
    for command in ("init --quiet", "add .", "commit --quiet --message=1", "tag v1"):
        subprocess.run([*git, *command.split()], check=True)
    foreign.configure()
    foreign.change('"jaxway/Snakefile"', 'github("me/jaxway", path="Snakefile", tag="v1")')
    refused = foreign.snakemake("--dry-run", profile="local", check=False)
    assert refused.returncode == 1
    assert "jaxway must be checked out" in refused.stderr.splitlines()[-1]


def test_where_the_workflow_catalogue_looks_is_the_same_chain(plan):
    plan.configure(train={"one": TRAINING}, benchmark={"memory": {}})
    ours = plan.planned()
    plan.snakefile = ROOT / "workflow/Snakefile"
    assert plan.planned() == sorted(["default", *ours])
