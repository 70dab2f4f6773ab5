"""Every site of profiles/: it plans the chain, and its profile takes the shared lines."""

import os
import re

import pytest
import yaml
import yte
from jaxway.config.profile import slurm_profile
from plan import ROOT, placed

SITES = {
    file.parent.name: yaml.safe_load(file.read_text())
    for file in sorted(ROOT.glob("profiles/*/site.yaml"))
}
PROFILES = {
    name: (ROOT / f"profiles/{name}/config.yaml").read_text()
    for name, site in SITES.items()
    if site["launcher"]
}
PROFILES["mycluster"] = re.findall(
    r"^```yaml\n# profiles/mycluster/config.yaml\n(.*?)^```$",
    (ROOT / "docs/porting.md").read_text(),
    re.MULTILINE | re.DOTALL,
)[0]
SMALL = {"steps": 100, "global_batch": 8}


@pytest.mark.parametrize("name", SITES)
def test_site_plans_the_whole_chain(plan, name):
    site = SITES[name]
    plan.environment |= dict.fromkeys(site.get("required_variables", {}), str(plan.scratch))
    plan.configure(train={"one": SMALL}, benchmark={"memory": {}})
    chain = {"smoke_test", "train_run one", f"benchmark_run 1x{site['gpus_per_node']}", "report"}
    if site["container"]:
        chain.add("pull")
    assert chain <= {*plan.planned(profile=name)}


@pytest.mark.parametrize("name", PROFILES)
def test_profile_is_the_shared_lines_and_the_sites_name(name, monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "none")
    profile = yte.process_yaml(PROFILES[name], require_use_yte=True)
    assert os.environ["JAXWAY_SITE"] == f"profiles/{name}"
    assert profile["executor"] == "jaxway"
    assert profile == slurm_profile(name)


@pytest.mark.parametrize("name", SITES)
def test_profile_says_for_whom_it_is_and_who_maintains_it(name):
    """As snakemake-cluster-profiles wants of each."""
    readme = (ROOT / f"profiles/{name}/README.md").read_text()
    assert readme.startswith("# ")
    assert f"snakemake --profile profiles/{name}\n" in readme
    assert "\n## Maintainer\n" in readme


def test_key_after_the_shared_lines_replaces_one():
    text = f"{PROFILES['mycluster']}jobs: 3\n"
    assert yte.process_yaml(text, require_use_yte=True)["jobs"] == 3


def test_any_slurm_is_asked_for_one_gpu_in_its_default_partition(plan):
    plan.configure(platform="cpu")
    plan.use_stubs()
    plan.make_container()
    result = plan.snakemake("smoke_test", profile="slurm")
    assert (
        "run ID" not in result.stdout + result.stderr
    )  # the plugin's, which names none of our jobs
    (sbatch,) = [call for call in plan.calls("sbatch") if "rule_smoke_test" in call]
    assert placed(sbatch) == [
        *["-A", "training", "-p", "dc-gpu", "-t", "30"],
        *["--nodes=1", "--cpus-per-task=8", "--ntasks-per-node=1", "--gres=gpu:1"],
    ]
