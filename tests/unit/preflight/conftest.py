"""A machine of which tests say how it answers."""

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from examples import make_site
from jaxway.config.site import Site
from jaxway.preflight import account, data, nodes, partition, qos, queue

UP = "PartitionName=gpu State=UP AllowAccounts=ALL MaxNodes=UNLIMITED MaxTime=1-00:00:00"


class Machine(dict[str, str]):
    """What each command answers, by the words it begins with. An answer after ! is a failure, and
    so is every command that is not here. ``exit_code`` is that of failures."""

    exit_code = 1

    def run_query(self, *words: str, **more: Any) -> CompletedProcess[str]:
        line = " ".join(words)
        answer = next((v for k, v in self.items() if line.startswith(k)), "!no such thing")
        if answer.startswith("!"):
            return CompletedProcess(words, self.exit_code, "", answer.removeprefix("!"))
        return CompletedProcess(words, 0, answer, answer)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A healthy Slurm with a partition `gpu`, which is the default one."""
    answers = Machine(
        {
            "scontrol --all --oneliner show partition gpu": UP,
            "sinfo --noheader --format=%a": "up gpu\nup other\ninact closed",
            "sinfo --noheader --format=%P": "other\ngpu*",
            "sinfo --noheader --partition": "2 gpu:a100:no_consume:4(S:0)\n1 gpu:2\n1 (null)",
            "sacctmgr --noheader --parsable2 show qos": "normal||||",
            "sacctmgr --noheader --parsable2 show": "training\nother",
            "sbatch --test-only": "",
        }
    )
    for module in (account, nodes, partition, qos, queue):
        monkeypatch.setattr(module, "run_query", answers.run_query)
    return answers


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose scratch folder is the test's, in which the test is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for cached in (data.found_files, data.looks_of):
        cached.cache_clear()  # of other tests' folders with the same relative path
    return make_site(
        scratch=str(tmp_path / "alice/jaxway"),
        required_variables={"SCRATCH": ""},
        sif=str(tmp_path / "jax.sif"),
        cores_per_node=128,
    )
