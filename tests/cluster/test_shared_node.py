"""Short trainings that share a node and a job of Slurm: what each keeps of its own."""

import json
import math

import pytest
from chain import SCRATCH, STEPS_PER_JOB, Chain
from jaxway.slurm.journal import JOURNAL, Journal

pytestmark = pytest.mark.usefixtures("repaired")
FAILS = "python3 -c 'import sys; sys.exit(3)'"


def test_trainings_share_a_node(chain: Chain) -> None:
    """Two at a time. One of them fails, and one needs a second job, which it has by itself."""
    count = f"python3 {chain.checkout.folder}/program.py {{}} 0.1"
    steps = {"one": STEPS_PER_JOB, "two": STEPS_PER_JOB, "resumes": STEPS_PER_JOB + 1}
    commands = {name: count.format(number) for name, number in steps.items()} | {"fails": FAILS}
    shared = {"program": "command", "trainings_per_node": 4, "partition": "dc-gpu-devel"}
    shared |= {"gpus_per_node": 2, "walltime": 10}
    train = {
        f"{chain.name}-{name}": shared | {"command": command} for name, command in commands.items()
    }
    with chain.checkout.start(chain.checkout.configure("share", {"train": train}), "train") as run:
        code, output = run.wait(300)
    assert code == 1, output
    assert f"Training {chain.name}-fails stopped: command.py on jrc010" in output
    assert f"Training {chain.name}-resumes: resuming from step {STEPS_PER_JOB}" in output
    log = chain.checkout.path(f"logs/train/{chain.name}-fails.log").read_text()
    assert "the command exited with code 3" in log

    jobs: dict[str, list[str]] = {name: [] for name in commands}
    for each in Journal(chain.checkout.path(str(JOURNAL))).read().values():
        if each.label.startswith("train_run"):
            jobs[each.label.rpartition("-")[2]].append(each.id)
    for name in steps:
        result = chain.checkout.path(f"results/train/{chain.name}-{name}/summary.json").read_text()
        segments = json.loads(result)["segments"]
        assert [segment["provenance"]["job"] for segment in segments] == jobs[name]
        assert segments[-1]["last_step"] == steps[name]
        assert segments[0]["provenance"]["environment"]["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    assert [len(ids) for ids in jobs.values()] == [1, 1, 2, 1]
    # One job, unless they were submitted many seconds apart. It has time for all turns.
    firsts = [ids[0] for ids in jobs.values()]
    assert max(map(firsts.count, firsts)) > 2
    query = f"sacct --noheader --allocations --jobs={','.join(firsts)} --format=JobID,TimelimitRaw"
    limits = dict(map(str.split, chain.cluster.run(query).stdout.splitlines()))
    assert limits == {job: str(10 * math.ceil(firsts.count(job) / 2)) for job in firsts}

    # Each is charged its part, and all together what Slurm has recorded.
    site, scratch = "profiles/jureca/site.yaml", f"{SCRATCH}/alice/jaxway"
    jaxway = f"cd {chain.checkout.folder}; {chain.checkout.environment}/bin/jaxway"
    chain.cluster.run(f"{jaxway} cost --site={site} --scratch={scratch} --out=cost.json")
    cost = json.loads(chain.checkout.path("cost.json").read_text())["jobs"]
    assert [usage["name"].rpartition("-")[2] for usage in cost if usage["no_progress"]] == ["fails"]
    ids = {job for ids in jobs.values() for job in ids}
    query = f"sacct --noheader --allocations --jobs={','.join(ids)} --format=ElapsedRaw"
    recorded = sum(map(int, chain.cluster.run(query).stdout.split()))
    charged = sum(usage["seconds"] / usage["sharing"] for usage in cost if usage["job"] in ids)
    assert charged == pytest.approx(recorded)
