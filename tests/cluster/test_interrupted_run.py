"""Ctrl-C at any moment cancels every job that was submitted, and lists them."""

import random
import re
import time
from pathlib import Path

import pytest
from chain import STEPS_PER_JOB, Chain
from nodes import Snakemake

INTERRUPTS = 3
CANCELLED = re.compile(r"Cancelled: ((?:\d+ \([^)]*\)(?:, )?)+)")

pytestmark = pytest.mark.usefixtures("repaired")


def interrupt(chain: Chain, snakemake: Snakemake, ending: Path | None = None) -> str:
    """Ends a run by Ctrl-C; its output. No job is left, and those that were are listed, except one
    that has ended by itself meanwhile.

    As soon as there is the file ``ending``, Ctrl-C comes once more.
    """
    left = chain.queue()
    snakemake.signal("INT")
    if ending:
        chain.cluster.wait_for(ending.exists, 30, "the cancelling of jobs")
        snakemake.signal("INT")
    code, output = snakemake.wait(60)
    assert code == 1, output
    assert "Traceback" not in output, output
    listed = re.findall(r"\d+(?= \()", "".join(CANCELLED.findall(output)))
    for job in {*left} - {*listed}:
        sacct = f"sacct --noheader -XP --jobs={job} --format=State"
        assert chain.cluster.run(sacct).stdout == "COMPLETED\n", output
    chain.cluster.wait_for(lambda: not chain.queue(), 30, "an empty queue")
    return output


def test_during_a_slow_squeue(chain: Chain) -> None:
    chain.skip_smoke_test()
    config = chain.configure(STEPS_PER_JOB, 60)
    folder = chain.fault("squeue", slow_before="8")
    with chain.start(config, folder.name) as snakemake:
        chain.cluster.wait_for(chain.queue, 120, "a job")
        (folder / "squeue.called").unlink(missing_ok=True)
        chain.cluster.wait_for((folder / "squeue.called").exists, 30, "a query")
        interrupt(chain, snakemake)


@pytest.mark.parametrize("moment", ["slow_before", "slow_after"])
def test_during_a_submission(chain: Chain, moment: str) -> None:
    """Before Slurm has the job, and before Snakemake knows of it."""
    config = chain.configure(STEPS_PER_JOB, 60)
    folder = chain.fault("sbatch", **{moment: "4"})
    reached = folder / ("sbatch.called" if moment == "slow_before" else "sbatch.done")
    with chain.start(config, folder.name) as snakemake:
        chain.cluster.wait_for(reached.exists, 120, "a submission")
        output = interrupt(chain, snakemake)
    assert "(smoke_test)" in output


def test_twice_is_one_sentence_more(chain: Chain) -> None:
    chain.skip_smoke_test()
    config = chain.configure(STEPS_PER_JOB, 60)
    folder = chain.fault("scancel", slow_before="3")
    with chain.start(config, folder.name) as snakemake:
        chain.cluster.wait_for(chain.queue, 120, "a job")
        output = interrupt(chain, snakemake, folder / "scancel.called")
    assert "Ending already [JW201]" in output


def test_at_random_moments(chain: Chain) -> None:
    """Of a run that would last for minutes, so each Ctrl-C finds it running. The last command, with
    short steps, finishes."""
    long = chain.configure(STEPS_PER_JOB, 60)
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(INTERRUPTS):
        with chain.start(long) as snakemake:
            chain.cluster.wait_for(lambda s=snakemake: "Job stats" in s.output(), 60, "a plan")
            time.sleep(moments.uniform(0, 12))
            interrupt(chain, snakemake)
    with chain.start(chain.configure(STEPS_PER_JOB, 0.5)) as snakemake:
        code, output = snakemake.wait(180)
    assert code == 0, output
