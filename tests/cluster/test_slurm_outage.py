"""Slurm does not answer for a minute: the run waits, says so, and finishes."""

import time

import pytest
from chain import STEPS_PER_JOB, Chain

OUTAGE_S = 60
SILENCE = "Slurm did not answer"

pytestmark = pytest.mark.usefixtures("repaired")


def test_services_that_are_down(chain: Chain) -> None:
    """The training's first job ends meanwhile, and its second one is submitted afterwards."""
    chain.skip_smoke_test()
    config = chain.configure(2 * STEPS_PER_JOB, 4)
    with chain.start(config) as snakemake:
        chain.cluster.wait_for(chain.starts, 180, "the training")
        time.sleep(3)  # Slurm loses a job that it is only just handing to its node
        for service in ("slurmctld", "slurmdbd"):
            chain.cluster.control("stop", service)
        time.sleep(OUTAGE_S)
        for service in ("slurmdbd", "slurmctld"):
            chain.cluster.control("start", service)
        code, output = snakemake.wait(300)
    assert code == 0, output
    assert 1 <= output.count(SILENCE) <= 3
    assert [start.step for start in chain.starts()] == [0, STEPS_PER_JOB]


def test_failing_squeue(chain: Chain) -> None:
    chain.skip_smoke_test()
    config = chain.configure(2 * STEPS_PER_JOB, 3)
    folder = chain.fault("squeue")
    with chain.start(config, folder.name) as snakemake:
        chain.cluster.wait_for(chain.starts, 180, "the training")
        (folder / "fail").touch()
        time.sleep(OUTAGE_S)
        (folder / "fail").unlink()
        code, output = snakemake.wait(300)
    assert code == 0, output
    assert 1 <= output.count(SILENCE) <= 2
    assert [start.step for start in chain.starts()] == [0, STEPS_PER_JOB]
