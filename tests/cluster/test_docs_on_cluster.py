"""Commands of the documents that need real Slurm, Apptainer or a registry, as they are written.

tests/plan/test_docs.py finds them in the documents and, word for word, in this file.
"""

import subprocess
from pathlib import Path

import pytest
from nodes import COMMAND, Checkout, Cluster

pytestmark = pytest.mark.docs
CONTAINERS = "$SCRATCH/jureca_containers"


@pytest.mark.parametrize(
    "command",
    [
        "apptainer --version",
        "df -i",
        "sacctmgr show associations user=$USER",
        "sinfo -s",
        "export SBATCH_ACCOUNT=training",
        "export SBATCH_MEM_PER_NODE=0",
    ],
)
def test_on_a_login_node(cluster: Cluster, command: str) -> None:
    """What is exported may not keep Slurm from taking a job."""
    assert cluster.run(f"{command}; sbatch --test-only --wrap true").returncode == 0


@pytest.mark.usefixtures("repaired")
def test_about_a_job(cluster: Cluster) -> None:
    line = "sbatch --hold --parsable --output=/dev/null --wrap true"
    job = cluster.run(line).stdout.strip()
    for command in (
        "squeue --me --start",
        "scontrol show job <job>",
        "scontrol release <job>",
        "sacct -j <job> --format=JobID,State,ExitCode,Elapsed,NodeList",
    ):
        output = cluster.run(command.replace("<job>", job)).stdout
        assert job in output or "release" in command


def test_containers(cluster: Cluster, pull: object) -> None:
    checkout = Checkout(cluster, name="docs")
    command = "snakemake --profile profiles/jureca pull"
    settings = "PATH=$PWD/.venv/bin:$PATH; export SBATCH_ACCOUNT=training"
    cluster.run(f"cd {checkout.folder}; {settings}; {command}", timeout=400)
    cluster.run(f"rm -r {checkout.folder}")
    for before, command, after in (
        ("", "export PYTHONNOUSERSITE=1", "apptainer exec jax.sif python3 -c 'import jax'"),
        ("", "apptainer shell jax.sif", ""),
        ("", "export APPTAINER_CACHEDIR=$SCRATCH/...", "apptainer cache list"),
        ("export APPTAINER_CACHEDIR=$SCRATCH/cache; ", "apptainer cache clean", ""),
    ):
        line = f"set -e; cd {CONTAINERS}; {before}{command.replace('...', 'cache')}; {after}"
        cluster.run(line, input="y\n" if "clean" in command else "exit\n")


@pytest.mark.parametrize(
    ("command", "after"),
    [
        ("tests/cluster/cluster status", ""),
        ("tests/cluster/cluster exec", ""),
        ("tests/cluster/cluster exec -- sinfo", ""),
        ("tests/cluster/cluster exec jrc0101 --user bob -- hostname", ""),
        ("tests/cluster/cluster exec -- env -u SCRATCH A=B env", ""),
        ("tests/cluster/cluster stop slurmd jrc0101", "start slurmd jrc0101"),
        (
            "git archive --prefix=jaxway/ HEAD | tests/cluster/cluster exec -- tar -x -C /p/project1/training",  # noqa: E501
            "exec -- rm -r /p/project1/training/jaxway",
        ),
    ],
)
def test_of_the_cluster_itself(cluster: Cluster, command: str, after: str) -> None:
    line = f"set -eo pipefail; {command}" + (f"; {COMMAND} {after}" if after else "")
    root: Path = COMMAND.parents[2]
    subprocess.run(["bash", "-c", line], cwd=root, input="exit\n", text=True, check=True)
