"""A Snakemake that was killed, and the same command again: its jobs are taken over."""

import random
import re
import time
from pathlib import Path

import pytest
from chain import STEPS_PER_JOB, Chain

KILLS = 10
LAST_KILL_S = 15  # after a plan
STEPS = 60

pytestmark = pytest.mark.usefixtures("repaired")


def test_chain_survives_kills_at_random_moments(chain: Chain) -> None:
    """sbatch is slow, so that some moments are between a submission and its bookkeeping."""
    faults = chain.fault("sbatch", slow_before="0.5", slow_after="1.5").name
    config = chain.configure(STEPS, 0.3)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    moments, outputs = random.Random(seed), []
    for _ in range(KILLS):
        with chain.start(config, faults) as snakemake:
            chain.cluster.wait_for(
                lambda s=snakemake: "Job stats" in s.output() or not s.running, 60, "a plan"
            )
            time.sleep(moments.uniform(0, LAST_KILL_S))
            if not snakemake.running:  # a quick machine has done it all
                assert snakemake.wait(0)[0] == 0, snakemake.output()
                break
            snakemake.signal("KILL")
            outputs.append(snakemake.wait(30)[1])
    outputs.append(chain.checkout.run(config, "train", timeout=400))
    # Taken over, or, where it had ended before the next run looked, submitted again.
    assert any("of an earlier run: " in output for output in outputs)
    jobs = chain.jobs()
    assert len(jobs["smoke_test"]) == 1
    starts = chain.starts()
    # Every job resumed from the last checkpoint of the one before, and no other job ran.
    assert [start.step for start in starts] == [*range(0, STEPS, STEPS_PER_JOB)]
    assert [start.job for start in starts] == jobs[f"train_run {chain.name}"]


def kill_at(chain: Chain, config: str, file: Path) -> None:
    """Kill a Snakemake that runs with the faults in the file's folder, once there is the file."""
    with chain.start(config, file.parent.name) as snakemake:
        chain.cluster.wait_for(file.exists, 120, f"the file {file.name}")
        snakemake.signal("KILL")
        snakemake.wait(30)


def test_job_whose_submission_was_not_recorded_is_found(chain: Chain) -> None:
    """Killed while sbatch, which has submitted the job already, has not returned."""
    config = chain.configure(STEPS_PER_JOB, 2)
    folder = chain.fault("sbatch", slow_after="20")
    kill_at(chain, config, folder / "sbatch.done")
    (job,) = chain.queue()
    (folder / "slow-after").unlink()
    chain.cluster.run("pkill -x sleep", check=False)  # sbatch's: it returns
    with chain.start(config) as snakemake:
        code, output = snakemake.wait(180)
    assert code == 0, output
    assert f"Took over job {job} (smoke_test)" in output
    assert chain.jobs()["smoke_test"] == [job]


def test_job_that_sbatch_submits_after_the_kill_is_found(chain: Chain) -> None:
    """The next run waits for the end of that call."""
    config = chain.configure(STEPS_PER_JOB, 0.1)
    folder = chain.fault("sbatch", slow_before="15")
    kill_at(chain, config, folder / "sbatch.called")
    assert chain.queue() == []
    with chain.start(config) as snakemake:
        code, output = snakemake.wait(180)
    assert code == 0, output
    assert "Took over job" in output
    assert len(chain.jobs()["smoke_test"]) == 1


def test_end_that_nobody_saw_counts(chain: Chain) -> None:
    """The training ends while no Snakemake runs, with more to do. Each job knows when Slurm would
    end it."""
    chain.skip_smoke_test()
    config = chain.configure(2 * STEPS_PER_JOB, 1)
    with chain.start(config) as snakemake:
        chain.cluster.wait_for(chain.starts, 180, "the training")
        snakemake.signal("HUP")
        snakemake.wait(30)
    chain.cluster.wait_for(lambda: not chain.queue(), 60, "the job's end")
    with chain.start(config) as snakemake:
        code, output = snakemake.wait(180)
    assert code == 0, output
    first, second = chain.starts()
    assert (first.step, second.step) == (0, STEPS_PER_JOB)
    assert chain.jobs() == {f"train_run {chain.name}": [first.job, second.job]}
    query = f"sacct --noheader -XP --jobs={first.job},{second.job} --format=Start,TimelimitRaw"
    recorded = chain.cluster.run(f"SLURM_TIME_FORMAT=%s {query}").stdout.split()
    limits = [(int(began), int(minutes)) for began, minutes in (x.split("|") for x in recorded)]
    assert [first.deadline, second.deadline] == [began + 60 * minutes for began, minutes in limits]


def test_job_with_other_settings_is_not_taken_over(chain: Chain) -> None:
    chain.skip_smoke_test()
    config = chain.configure(STEPS_PER_JOB, 20)
    with chain.start(config) as snakemake:
        chain.cluster.wait_for(chain.starts, 180, "the training")
        snakemake.signal("KILL")
        snakemake.wait(30)
    (start,) = chain.starts()
    other = chain.configure(STEPS_PER_JOB, 21)
    waiting = f"Job {start.job} (train_run {chain.name}) of an earlier run with other settings"
    with chain.start(other) as snakemake:
        chain.cluster.wait_for(lambda: waiting in snakemake.output(), 60, "what it waits for")
        chain.cluster.wait_for(lambda: len(chain.queue()) == 2, 60, "the new job")
        (new,) = {*chain.queue()} - {start.job}
        squeue = f"squeue --noheader --jobs={new} --format=%T,%r"
        chain.cluster.wait_for(
            lambda: chain.cluster.run(squeue).stdout == "PENDING,Dependency\n", 60, "its reason"
        )
        assert chain.starts() == [start]
        chain.cluster.run(f"scancel {start.job}")
        chain.cluster.wait_for(
            lambda: chain.cluster.run(squeue).stdout.startswith("RUNNING"), 120, "its start"
        )
        snakemake.signal("INT")
        snakemake.wait(60)


def test_second_run_is_refused_while_the_first_lives(chain: Chain) -> None:
    chain.skip_smoke_test()
    config = chain.configure(STEPS_PER_JOB, 60)
    with chain.start(config) as first:
        chain.cluster.wait_for(chain.queue, 120, "a job")
        with chain.start(config) as second:
            code, output = second.wait(60)
        assert code == 1
        assert re.search(r"another run is running in this folder: process \d+ on jrlogin01", output)
        assert first.running
