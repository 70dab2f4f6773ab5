"""What is asked of our executor: refused in a sentence where it is not done."""

import pytest
from plan import Plan


@pytest.fixture
def ready(plan: Plan) -> Plan:
    """A plan whose smoke test can run."""
    plan.configure(platform="cpu")
    plan.use_stubs()
    plan.make_container()
    return plan


def refused(plan: Plan, *arguments: str) -> str:
    """What a run says that fails before it has submitted a job."""
    done = plan.snakemake("smoke_test", *arguments, check=False)
    assert done.returncode != 0
    assert not (plan.folder / "jobs").exists()
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("executor", ["local", "slurm", "jaxway-local"])
def test_another_executor_with_a_site_of_slurm(ready, executor):
    output = refused(ready, f"--executor={executor}", "--cores=1", "--jobs=1")
    assert f"jobs of jureca need the executor jaxway, not {executor} [JW214]" in output


def test_group_of_jobs(ready):
    output = refused(ready, "--groups", "smoke_test=g")
    assert "a group of jobs is not submitted as one job [JW215]" in output


def test_other_cluster(ready):
    output = refused(ready, "--set-resources", "smoke_test:clusters=other")
    assert "smoke_test: clusters: jobs go to this machine's cluster only [JW215]" in output


def test_option_of_the_slurm_plugin_that_we_do_not_follow(ready):
    profile = ready.profiles / "jureca/config.yaml"
    profile.write_text(f"{profile.read_text()}jaxway-pass-command-as-script: true\n")
    assert "unrecognized arguments: --jaxway-pass-command-as-script" in refused(ready)
