"""What JSC's jutil says of budgets and quotas, and answers of it in forms that are not known."""

import json
from pathlib import Path
from typing import Any

import pytest
from examples import make_site
from jaxway.preflight import jutil
from jaxway.preflight.account import check_account
from jaxway.preflight.disk_space import Download, Requirement, check_disk_space, check_quotas
from jaxway.preflight.finding import PASS, WARN, Finding, failure, warning

PROJECTS = [
    {"project": "training", "PI-uid": "a1", "budget-accounts": "training,other"},
    {"project": "data", "PI-uid": "a1", "budget-accounts": "-"},
]
QUOTA = {
    **{"project": "training", "project-dir": "/p/scratch/training"},
    **{"data-usage": "1000KB", "data-soft-limit": "2000KB", "data-hard-limit": "3000KB"},
    **{"inode-usage": "100", "inode-soft-limit": "200", "inode-hard-limit": "300"},
}


@pytest.fixture
def asked(machine, monkeypatch) -> Any:
    """A machine with jutil."""
    monkeypatch.setattr(jutil, "run_query", machine.run_query)
    machine["jutil user projects -o json"] = json.dumps(PROJECTS)
    machine["jutil user cpuquota -Z -A training -o json"] = '[{"budget": "training", "x": 5}]'
    machine["jutil project dataquota --project training -U KB -o json"] = json.dumps([QUOTA])
    return machine


def accounts(name: str = "training") -> list[Finding]:
    return [*check_account(name, 0.5, make_site(jutil=True))][1:]


def quotas(kilobytes: int = 1, inodes: int = 1, folder: str = "/p/scratch/training/a") -> Finding:
    """Of what is written below two folders of one project."""
    half = Requirement(Path(folder), 512 * kilobytes, inodes)
    other = Requirement(Path("/p/scratch/training/b"), 512 * kilobytes, 0)
    (finding,) = check_quotas([half, other])
    return finding


# -------------------------------------------------------------------------------------- accounts


def test_quota_of_an_account_is_shown_as_jutil_has_it(asked) -> None:
    (finding,) = accounts()
    assert finding.status is PASS
    assert "training by `jutil user cpuquota`: budget training, x 5 (jobs that are" in str(finding)


def test_account_that_only_slurm_knows_is_a_warning(asked) -> None:
    asked["jutil user projects -o json"] = json.dumps(PROJECTS[1:])
    message = "`jutil user projects` names none, not training, which Slurm accepts"
    assert accounts() == [warning(message)]


def test_jutil_decides_where_slurm_does_not_answer(asked) -> None:
    asked["sacctmgr --noheader --parsable2 show"] = "!slurmdbd is down"
    advice = "set `account` or $SBATCH_ACCOUNT to one of other, training"
    assert accounts("mine") == [failure("JW501", f"you may not charge account 'mine': {advice}")]
    assert [finding.status for finding in accounts()] == [PASS]


def test_account_that_slurm_refuses_is_not_asked_again(asked) -> None:
    assert accounts("mine") == []


# ----------------------------------------------------------------------------------- data's quotas


@pytest.mark.parametrize(
    ("kilobytes", "inodes", "status"),
    [
        *((1000, 100, PASS), (1001, 1, WARN), (1, 101, WARN)),
        *((2000, 200, WARN), (2001, 1, WARN), (1, 201, WARN)),
    ],
)
def test_quota_is_compared_with_what_is_written(asked, kilobytes, inodes, status) -> None:
    finding = quotas(kilobytes, inodes)
    assert finding.status is status
    assert "/p/scratch/training: 0.0 GB and 100 inodes left of the project's quota" in str(finding)
    assert ("hard limit" in str(finding)) == (kilobytes > 2000 or inodes > 200)
    assert "figures are up to a day old" in str(finding)


@pytest.mark.parametrize(
    ("soft", "hard", "status"), [(0, 3000, PASS), (0, 0, PASS), (0, 1001, WARN), (1001, 0, WARN)]
)
def test_limit_of_nothing_is_none(asked, soft, hard, status) -> None:
    changed = QUOTA | {"data-soft-limit": f"{soft}KB", "data-hard-limit": f"{hard}KB"}
    asked["jutil project dataquota --project training -U KB -o json"] = json.dumps([changed])
    assert quotas(1000).status is status


def test_folder_without_a_quota_is_a_warning(asked) -> None:
    assert quotas(folder="/p/other/a").status is PASS  # that of the other one
    asked["jutil user projects -o json"] = json.dumps(PROJECTS[1:])
    assert quotas() == warning("jutil names no quota of /p/scratch/training/a")


# ----------------------------------------------------------------------------------- other answers


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("project  budgets\ntraining  training", "project budgets training training"),
        ("", "nothing"),
        ("null", "null"),
        ('{"projects": []}', '{"projects": []}'),
        ('["training"]', '["training"]'),
        ('[{"name": "training"}]', '[{"name": "training"}]'),
        (f'[{{"a": "{"x" * 1000}"}}]', f'[{{"a": "{"x" * 192}...'),
        ("!jutil: no connection\n to the database", "failed: to the database"),
        ("!there is no jutil in PATH", "failed: there is no jutil in PATH"),
    ],
)
def test_answer_in_another_form_is_a_warning_that_shows_it(asked, answer, shown) -> None:
    asked["jutil user projects -o json"] = answer
    (finding,) = accounts()
    assert finding.status is WARN
    assert finding.message.startswith("`jutil user projects` ")
    assert finding.message.endswith(shown)


@pytest.mark.parametrize("change", [{"data-usage": "1.5TB"}, {"inode-usage": None}])
def test_figure_in_another_form_is_shown(asked, change) -> None:
    key = "jutil project dataquota --project training -U KB -o json"
    asked[key] = json.dumps([QUOTA | change])
    with pytest.raises(jutil.UnrecognizedError, match="printed in a form that is not known"):
        quotas()


def test_quota_that_is_not_understood_stops_no_other_check(asked, tmp_path) -> None:
    asked["jutil user projects -o json"] = "training"
    download = Download(tmp_path / "jax.sif", 1, None)
    found = [*check_disk_space(make_site(jutil=True), [], None, download)]
    assert [finding.status for finding in found] == [PASS, WARN]
    message = "`jutil user projects` printed in a form that is not known: training"
    assert found[-1] == warning(message)
