"""What happens around a run: before its first job, between a training's jobs, after the last one."""

import asyncio
import atexit
import logging
import re
import subprocess
from datetime import datetime

from snakemake.jobs import Job
from snakemake.scheduling.job_scheduler import JobScheduler
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from jaxway.slurm import accounting
from jaxway.container import verify
from jaxway_shared import data_record
from jaxway_shared.errors import UserError
from jaxway_shared.training import TrainingState
from jaxway.slurm import commands


def around(schedule):
    """Snakemake's way through the jobs, with what this workflow does before and after it.

    `onstart` and `onerror` would leave out dry-runs, and workflows that use this one as a module.
    """

    def scheduled(scheduler):
        if workflow.execution_settings.no_hooks or workflow.touch:  # also in a job
            return schedule(scheduler)
        findings, lines = look_ahead()
        said = "".join(f"{line}\n" for line in lines)
        if workflow.dryrun:
            # At its very end, below Snakemake's own statistics.
            atexit.register(sys.stderr.write, said)
            return schedule(scheduler)
        from jaxway.monitor import reporter

        sys.stderr.write(said)
        sys.stderr.flush()
        if CONFIG.preflight and findings:
            from jaxway.preflight import plan

            try:
                plan.require_success(findings)
            except UserError as error:
                sys.exit(error.line())
        refuse_second_run()
        check_container()
        prepare_wiped_data()
        SAFE.update({job: safe_step(job)[:2] for job in planned("train_run")})
        began = datetime.now().replace(microsecond=0)
        with reporter.report_in_background(CONFIG, SITE):
            done = schedule(scheduler)
        if not done:
            print_reasons(workflow.logger_manager.get_logfile())
            compare_finished_nodes()
            print("The same command goes on from what is done.", file=sys.stderr, flush=True)
        print_cost(began)
        return done

    return scheduled


if not rules.has("preflight"):  # a module is read once more for each `use rule ... with`
    JobScheduler.schedule = around(JobScheduler.schedule)


def planned(*names):
    """Jobs of these rules that this run is going to do. A module's rules may be renamed."""
    wanted = [getattr(rules, name).rule for name in names if rules.has(name)]
    return [job for job in workflow.dag.needrun_jobs() if job.rule in wanted]


def planned_names(rule):
    """Names of the jobs of a rule that this run is going to do."""
    return [job.wildcards.get("name", rule) for job in planned(rule)]


def look_ahead():
    """What preflight finds, and in lines what to say of it."""
    from jaxway.preflight import plan  # what it needs takes a while, and jobs do without

    if planned("preflight"):
        jobs = plan.all_jobs(CONFIG)
    else:
        names = map(planned_names, ("train_run", "benchmark_run"))
        jobs = plan.labelled_jobs(CONFIG, bool(planned("smoke_test")), *names)
    if not jobs and not planned("pull"):
        return [], []
    containers = (PULLED, CONTAINER) if CONTAINED else (None, None)
    retries = workflow.execution_settings.retries
    whole = plan.Plan(CONFIG, SITE, jobs, *containers, bool(planned("pull")), retries)
    findings = plan.run_preflight(whole)
    complete = bool(workflow.dryrun or planned("preflight"))
    return findings, plan.summary(whole, findings, complete)


def print_cost(began):
    """Print what the jobs of this run have used, as Slurm has booked it."""
    if SITE.launcher:
        try:
            jobs = accounting.booked(Path(".snakemake/slurm_logs"), Path(SITE.scratch))
        except accounting.CostError as error:
            print(error, file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # a second one, of somebody who does not want to wait
            pass
        else:
            now = [job for job in jobs if datetime.fromisoformat(job["submitted"]) >= began]
            if now:
                print(accounting.told(now, SITE.cores_per_node), file=sys.stderr, flush=True)


def submitted(*options):
    """Id, state and comment of each job that was submitted from this folder, as Slurm lists them."""
    if not SITE.launcher:
        return []
    queue = commands.run_query(
        "squeue", "--me", "--noheader", "--format=%i %T %k %Z", *options, timeout_s=60
    )
    fields = [line.split(maxsplit=3) for line in queue.stdout.splitlines()]
    return [f[:3] for f in fields if len(f) == 4 and f[2][:5] == "rule_" and f[3] == os.getcwd()]


def refuse_second_run():
    """Submit nothing while jobs of an earlier run in this folder, which was killed, go on."""
    jobs = " ".join(job[0] for job in submitted())
    if jobs and set(workflow.dag.needrun_jobs()) - set(planned("preflight")):
        sys.exit(
            f"Jobs of an earlier run in this folder have not ended: {jobs}. Start again when they "
            f"have, or end them now with `scancel {jobs}`; nothing was submitted."
        )


def check_container():
    """Make again what was wiped, and submit nothing into a container that has changed.

    What this run makes anew in any case need not be there or whole.
    """
    users = ("add_packages", "verify_container", "smoke_test", "train_run", "benchmark_run")
    if not CONTAINED or not planned(*users):
        return
    makers = {"pull": (PULLED, LAUNCH.pull())}
    if CONFIG.packages:
        makers["add_packages"] = (CONTAINER, LAUNCH.add_packages())
    for maker, (container, command) in makers.items():
        if planned(maker) or not Path(container.digest).exists():
            continue
        if not Path(container.output).exists():
            print(f"{container.output} is gone: making it again", flush=True)
            if subprocess.run([*JAXWAY, *command]).returncode:
                sys.exit(f"{container.output} is gone, and cannot be made again: see above")
        found = verify.problem(Path(container.sif), full=False, image=CONFIG.image)
        if found:
            sys.exit(found.line())


def prepare_wiped_data():
    """Prepare again what a training of this run needs and its record says is there."""
    for job in planned("train_run"):
        record = Path(job.input.get("data", ""))
        if record.is_file() and not data_record.read_prepared(record):
            print(f"the data of {record} are gone: preparing them again", flush=True)
            words = [*JAXWAY, *LAUNCH.prepare_data(CONFIG.data[record.stem]), f"--out={record}"]
            if subprocess.run(words).returncode:
                sys.exit(f"The data of {record} are gone, and see above why they stay so.")


SAFE = {}  # of each planned training, its state's folder and the step that was safe in it


def safe_step(job):
    """The folder of a training's state, its last safe step, and why its last job gave up, if so."""
    state = TrainingState.newest(Path(job.params.state))
    if not state:
        return None, 0, None
    return state.folder, state.last_checkpoint_step or 0, state.error


def restarts(job):
    """How often a job may be started again; Snakemake asks when one has failed.

    A training goes on in the next job if it got further in the last one, up to its allocations,
    unless the program has given up or somebody has cancelled the job.
    """
    if job not in SAFE:  # in a job's own Snakemake: none
        return others_restarts(job)
    (folder, step, reason), (earlier, before) = safe_step(job), SAFE[job]
    SAFE[job] = folder, step
    before = before if folder == earlier else 0
    comment = f"rule_{job.rule.name}_wildcards_{job.wildcards.name}"
    states = [state for _, state, what in submitted("--states=all", "--sort=i") if what == comment]
    allowed = CONFIG.train[job.wildcards.name].max_jobs
    if reason:
        why = reason
    elif states and states[-1] == "CANCELLED":
        why = "its job was cancelled"
    elif step <= before:
        why = f"no progress past step {before}, see {job.log[0]}"
    elif job.attempt >= allowed:
        why = f"reached max_jobs={allowed}; last checkpoint: step {step}"
    else:
        print(f"Training {job.wildcards.name}: resuming from step {step}", flush=True)
        return job.attempt
    print(f"Training {job.wildcards.name} stops: {why}", file=sys.stderr, flush=True)
    return 0


others_restarts = Job.restart_times.fget  # Snakemake's own, or of another use of this module
Job.restart_times = property(restarts)


async def wait_for_next_look(executor):
    """Wait before the next look at the queue: 0.6 s after a job has ended, then 1 s longer each
    time, up to 18 s.

    The Slurm plugin waits ten times as long and has no setting for it: a smoke test's end would be
    seen late, Ctrl-C would take up to 180 s, and squeue may have forgotten a job by then.
    """
    await asyncio.sleep(executor.next_seconds_between_status_checks / 10)


RemoteExecutor.sleep = wait_for_next_look


# The rich logger stumbles over a failed job that has no log file yet. It need not say so.
logging.raiseExceptions = False


def print_reasons(logs):
    """Print why jobs failed: the rich logger leaves out what Slurm said."""
    text = "".join(Path(log).read_text() for log in logs)
    reasons = re.findall(r"^ *message: (?!None$)(.+)", text, re.MULTILINE)
    for reason in dict.fromkeys(reasons):
        print(reason, file=sys.stderr)


def compare_finished_nodes():
    """Compare the nodes whose jobs left a result, when others have not: these are named, too."""
    for job in planned("compare_nodes"):
        result = Path(job.output.result)
        if not result.exists():
            there = [file for file in job.input.results if Path(file).exists()]
            words = [*JAXWAY, *LAUNCH.check_nodes(), f"--out={result}", "--results", *there]
            subprocess.run(words)
            result.unlink(missing_ok=True)
