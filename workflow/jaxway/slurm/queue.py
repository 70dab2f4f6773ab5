"""Where jobs are: squeue's answer, and that of sacct for jobs that squeue no longer lists."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxway.slurm.commands import error_message, run_query

LOST = "LOST"  # a state of ours: Slurm does not know the job any more
# Any other state is of a job that has not ended: each Slurm adds some, such as EXPEDITING, and a
# job that it queues again is PENDING.
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"),
        *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT", LOST),
    )
)
NO_NODES = ("(null)", "None assigned")
QUERY_TIMEOUT_S = 30
JOBS_PER_QUERY = 500  # an argument has a limit of 128 KiB
LOST_AFTER_S = 60  # an answering Slurm that does not list a job for so long has lost it
ACCOUNTING_DAYS = 30  # how far back sacct looks for a name
NO_ACCOUNTING = "accounting storage is disabled"  # a site without; squeue alone knows


class QueryError(Exception):
    """Slurm did not answer; ``str()`` says why. Nothing follows about any job."""


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm reports it."""

    id: str
    name: str
    state: str
    nodes: str = ""


def parse(text: str) -> dict[str, SlurmJob]:
    """Jobs by name, from lines `id|name|state|nodes`; of those with one name, the last line."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 4 or not fields[2]:
            raise QueryError(f"not a line about a job: {line!r}")
        job_id, name, state, nodes = fields
        state = state.split()[0].rstrip("+")  # of `CANCELLED by 1001`
        jobs[name] = SlurmJob(job_id, name, state, "" if nodes in NO_NODES else nodes)
    return jobs


def find_jobs(names: Iterable[str]) -> dict[str, SlurmJob]:
    """The user's jobs of these names, by name; those that Slurm does not know are left out.

    QueryError where Slurm did not answer.
    """
    wanted = sorted(set(names))
    if len(wanted) > JOBS_PER_QUERY:
        rest = find_jobs(wanted[JOBS_PER_QUERY:])
        return find_jobs(wanted[:JOBS_PER_QUERY]) | rest
    if not wanted:
        return {}
    form = "--format=%i|%j|%T|%N"
    jobs = parse(query("squeue", "--me", "--states=all", f"--name={','.join(wanted)}", form))
    if ended := set(wanted) - jobs.keys():
        try:
            jobs |= parse(
                query(
                    *("sacct", "--allocations", "--parsable2", f"--name={','.join(ended)}"),
                    f"--starttime=now-{ACCOUNTING_DAYS}days",
                    "--format=JobIDRaw,JobName,State,NodeList",
                )
            )
        except QueryError as error:
            if NO_ACCOUNTING not in str(error):
                raise
    return jobs


def query(*command: str) -> str:
    """What a command of Slurm prints. QueryError where it fails."""
    result = run_query(*command, "--noheader", timeout_s=QUERY_TIMEOUT_S)
    if result.returncode:
        raise QueryError(f"{command[0]}: {error_message(result)}")
    return result.stdout
