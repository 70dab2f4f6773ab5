"""Look, before anything is submitted, for what would stop the plan.

Asks the machine itself: Slurm for its limits, the registry for the image's size, file systems for
their room. Changes nothing there. Knows nothing of Snakemake.
"""

import functools
import getpass
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jaxway_shared import presets
from jaxway_shared.data_record import DataRecord, read_prepared
from jaxway_shared.errors import UserError

from jaxway.config.containers import Container
from jaxway.config.jobs import Config, DataOptions, SubmittedJob, TrainJob
from jaxway.config.site import Site
from jaxway.container import image_name, registry, verify, work_folder
from jaxway.container.apptainer import apptainer_version
from jaxway.data.sources import find_files
from jaxway.data.tokenizer import load_tokenizer
from jaxway.slurm import accounting
from jaxway.slurm.commands import EXIT_NOT_FOUND, EXIT_TIMEOUT, error_message, run_query

OK, NOTE, FAULT = "ok", "note", "FAIL"
PATIENCE = 5  # seconds for the registry's answer
# What Slurm says when it is not there, and of jobs that it takes but cannot start now.
TROUBLE = "Unable to contact|timed out|Connection refused"
LATER = "not available|are busy|maintenance|is down|not responding"
CACHES = ("APPTAINER_CACHEDIR", "HF_HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")


class Finding(NamedTuple):
    """What one check has found: ``verdict`` is OK, NOTE (not known, or good to know) or FAULT."""

    verdict: str
    subject: str
    text: str


Findings = Iterator[Finding]
Jobs = Mapping[str, SubmittedJob]


def findings(
    config: Config,
    site: Site,
    containers: Sequence[Container],
    pulls: bool,
    jobs: Jobs,
    retries: int = 0,
) -> Findings:
    """All checks of a plan. ``jobs``: by label, as in the configuration: train.small.

    ``containers``: as pulled, and with the packages; none, where jobs run without one. ``pulls``:
    the plan makes them anew. ``retries``: how often a job is submitted again.
    """
    fetched, sif = 0, None
    if containers:
        pulled, own = containers
        yield from checked("apptainer", apptainer)
        looked_at = pulled if pulls or not Path(own.sif).exists() else own
        fetched, finding = image(config.image, looked_at, pulls)
        yield finding
        sif = Path(pulled.sif)
    if jobs and site.launcher:
        payer, hours = config.account, accounting.node_hours(jobs.values(), retries)
        found = checked("account", account, payer, hours, site) if payer else []
        yield from found
        paid = FAULT not in [finding.verdict for finding in found]
        for name in dict.fromkeys(job.placement.partition for job in jobs.values()):
            mine = {label: job for label, job in jobs.items() if job.placement.partition == name}
            found = checked("partition", partition, name, mine)
            yield from found
            if paid and all(finding.verdict == OK for finding in found):
                yield from checked("queue", queue, mine, payer)
        named = [job.placement.node for job in jobs.values() if job.placement.node]
        yield from checked("nodes", nodes, named)
    made = pulls or not all(Path(each.output).exists() for each in containers)
    yield from checked("folders", folders, site, sif.parent if sif and made else None)
    trainings = {k: job for k, job in jobs.items() if isinstance(job, TrainJob) and job.data}
    yield from checked("room", room, site, trainings, sif, fetched, config.tmpdir)
    yield from checked("data", texts, trainings)
    if jobs:
        yield from checked("shared", seen_by_nodes, site)
        if site.small_home:
            yield from checked("home", home, config.environment)


def checked(subject: str, check: Callable[..., Findings], *about: Any) -> list[Finding]:
    """What a check finds. One that stumbles stops nothing, and what it had found counts."""
    found: list[Finding] = []
    try:
        for finding in check(*about):
            found.append(finding)
    except Exception as error:
        found.append(Finding(NOTE, subject, f"could not be checked: {error!r}"))
    return found


# ------------------------------------------------------------------------------------- container


def apptainer() -> Findings:
    try:
        yield Finding(OK, "apptainer", apptainer_version())
    except UserError as error:
        yield Finding(FAULT, "apptainer", error.line())


def image(name: str, container: Container, pulls: bool) -> tuple[int, Finding]:
    """Bytes to fetch, and whether the container is there as it was pulled, or can be."""
    sif = Path(container.sif)
    if sif.exists() and not pulls:
        problem = verify.problem(sif, full=False, image=name)
        text = problem.line() if problem else f"{sif}, as it was pulled"
        return 0, Finding(FAULT if problem else OK, "image", text)
    if not (parsed := image_name.parse(name)):
        return 0, Finding(OK, "image", f"{name} is going to be made into {sif}")
    found: list[registry.Image] = []
    problems: list[str] = []

    def look() -> None:
        try:
            asked = registry.Repository(parsed.host, parsed.repository, lambda line: None)
            found.append(asked.image(parsed.reference, image_name.host_architecture()))
        except UserError as error:
            problems.append(error.line())
        except Exception as error:
            problems.append(str(error) or repr(error))

    looking = threading.Thread(target=look, daemon=True)  # it tries for longer than we wait
    looking.start()
    looking.join(PATIENCE)
    if problems:
        return 0, Finding(FAULT, "image", problems[0])
    if not found:
        return 0, Finding(NOTE, "image", f"{parsed.host} has not answered within {PATIENCE} s")
    return found[0].size, Finding(OK, "image", f"{name}: {found[0].size / 1e9:.1f} GB to pull")


# ----------------------------------------------------------------------------------------- Slurm


def account(name: str, node_hours: float, site: Site) -> Findings:
    """Whether this user may charge the account, and what is left of it, where Slurm knows."""
    who = ("show", "associations", f"user={getpass.getuser()}", "format=account")
    said = run_query("sacctmgr", "--noheader", "--parsable2", *who)
    known = {*said.stdout.split()}
    if said.returncode or not known:
        yield Finding(NOTE, "account", f"{name}: Slurm does not tell ({error_message(said)})")
        return
    if name.lower() not in {each.lower() for each in known}:
        yield Finding(
            FAULT,
            "account",
            f"{name} is no account that you may charge: set `account` or $SBATCH_ACCOUNT to one of "
            + ", ".join(sorted(known)),
        )
        return
    left, needed = budget(name), node_hours * (site.cores_per_node or 1)
    told = f"{name} has {left or 0:,.0f} CPU-h left"
    if left is None:
        command = site.budget_command
        instead = f"; `{command}` does" if command else ""
        text = f"{name}; what is left of its budget Slurm does not tell{instead}"
        yield Finding(OK, "account", text)
    elif left <= 0:
        spent = f"{told}, and its jobs would wait: use another one, or ask for more"
        yield Finding(FAULT, "account", spent)
    elif left < needed:
        yield Finding(NOTE, "account", f"{told}, less than this may take")
    else:
        yield Finding(OK, "account", told)


def budget(name: str) -> float | None:
    """CPU-hours left of an account's limit (GrpTRESMins); None, it has none or nobody tells."""
    form = "--format=User,GrpTRESMins,GrpTRESRaw"
    said = run_query("sshare", "--noheader", "--parsable2", f"--accounts={name}", form)
    for line in said.stdout.splitlines():
        user, limit, used = (*line.split("|"), "", "")[:3]
        granted, taken = (re.search(r"\bcpu=(\d+)", text) for text in (limit, used))
        if not user and granted:  # the account's own, of all its users
            return (int(granted[1]) - (int(taken[1]) if taken else 0)) / 60
    return None


def minutes(limit: str) -> float:
    """A time as Slurm writes it, [days-]hours:minutes:seconds, in minutes."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)):
        return math.inf  # UNLIMITED
    days, hours, minutes_, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes_ + seconds / 60


def open_partitions() -> str:
    """The end of a sentence about a partition that cannot be used: those that can."""
    said = run_query("sinfo", "--noheader", "--format=%a %R").stdout.splitlines()
    names = dict.fromkeys(line.split()[1] for line in said if line.startswith("up "))
    return f"; open are {', '.join(names)}" if names else ""


def partition(name: str | None, jobs: Jobs) -> Findings:
    """Whether a partition takes these jobs: its state, and its limits by Slurm's own word.

    Without a name, the one that Slurm takes by default.
    """
    if name is None:
        shown = run_query("sinfo", "--noheader", "--format=%P").stdout.split()
        name = next((each[:-1] for each in shown if each.endswith("*")), None)
        if name is None:
            return
    said = run_query("scontrol", "--all", "--oneliner", "show", "partition", name)
    groups = run_query("sinfo", "--noheader", f"--partition={name}", "--format=%D %G")
    if "not found" in error_message(said):
        problem = f"{next(iter(jobs))}.partition: {error_message(said)}{open_partitions()}"
        yield Finding(FAULT, "partition", problem)
        return
    for failed in (said, groups):
        if failed.returncode:
            yield Finding(
                NOTE, "partition", f"{name}: Slurm does not tell ({error_message(failed)})"
            )
            return
    limits = dict(re.findall(r"(\w+)=(\S*)", said.stdout))
    sizes = [(0, 0)]  # nodes, and the GPUs of each
    for line in groups.stdout.splitlines():
        count, _, gres = line.partition(" ")
        sizes.append((int(count), sum(map(int, re.findall(r"gpu:(?:[^,(]+:)?(\d+)", gres)))))
    most, longest = max(gpus for _, gpus in sizes), minutes(limits["MaxTime"])
    faults: dict[str, list[str]] = {}
    if limits["State"] not in ("UP", "DOWN"):
        closed = f".partition: {name} is {limits['State']} and starts no job{open_partitions()}"
        faults[closed] = [*jobs]
    for label, job in jobs.items():
        wanted, gpus = job.placement.nodes, job.placement.gpus_per_node
        enough = sum(count for count, has in sizes if has >= gpus)
        if limits["MaxNodes"].isdecimal():
            enough = min(enough, int(limits["MaxNodes"]))
        if gpus > most:
            fault = f".gpus_per_node: a node of {name} has {most}, not {gpus}"
            faults.setdefault(fault, []).append(label)
        elif wanted > enough:
            fault = f".nodes: {name} gives at most {enough} to a job, not {wanted}"
            faults.setdefault(fault, []).append(label)
        if job.placement.walltime > longest:
            fault = f".walltime: {name} allows {longest:g} minutes, not {job.placement.walltime}"
            faults.setdefault(fault, []).append(label)
    for fault, labels in faults.items():
        more = f" (and {len(labels) - 1} more)" if labels[1:] else ""
        yield Finding(FAULT, "partition", f"{labels[0]}{fault}{more}")
    if not faults and limits["State"] == "DOWN":
        yield Finding(NOTE, "partition", f"{name} is down, and jobs wait there until it is up")
    elif not faults:
        hours = "without a limit of time" if longest == math.inf else f"at most {longest / 60:g} h"
        total = sum(count for count, _ in sizes)
        yield Finding(OK, "partition", f"{name}: {total} nodes with {most} GPUs, {hours}")


def queue(jobs: Jobs, account: str | None) -> Findings:
    """Whether Slurm would take each kind of job, and when it could start: it only looks."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for label, job in jobs.items():
        placement = job.placement
        if not placement.node:
            options = [f"--nodes={placement.nodes}", f"--gres=gpu:{placement.gpus_per_node}"]
            options += [f"--time={placement.walltime}"]
            options += [f"--partition={placement.partition}"] if placement.partition else []
            options += [f"--account={account}"] if account else []
            kinds.setdefault(tuple(options), []).append(label)
    for kind, labels in kinds.items():
        what = labels[0] + (f" and {len(labels) - 1} more" if labels[1:] else "")
        said = run_query("sbatch", "--test-only", *kind, "--wrap=true")
        problem = re.sub(r".*(error|failure): ", "", error_message(said))
        silent = said.returncode in (EXIT_TIMEOUT, EXIT_NOT_FOUND) or re.search(TROUBLE, problem)
        if silent or (said.returncode and re.search(LATER, problem)):
            yield Finding(NOTE, "queue", f"{what}: Slurm does not tell when: {problem}")
            if silent:
                return
        elif said.returncode:
            yield Finding(FAULT, "queue", f"{what}: Slurm would refuse it: {problem}")
        elif start := re.search(r"to start at (\S+)", said.stderr):
            wait = datetime.fromisoformat(start[1]) - datetime.now()
            when = "now" if wait.total_seconds() < 60 else f"{start[1].replace('T', ' ')}"
            yield Finding(OK, "queue", f"{what} could start {when}")


def nodes(wanted: list[str]) -> Findings:
    """Whether Slurm can start a job on each of the nodes to vet: it would wait without end."""
    if not wanted:
        return
    names = f"--nodes={','.join(wanted)}"
    said = run_query("sinfo", "--all", "--noheader", "--Node", "--format=%N %T", names)
    if said.returncode:
        yield Finding(NOTE, "nodes", f"Slurm does not tell ({error_message(said)})")
        return
    states = dict(line.split() for line in said.stdout.splitlines())
    never = r"down|drain|fail|unknown|\*"
    states = {node: states.get(node, "unknown") for node in sorted(set(wanted))}
    absent = [f"{node} ({state})" for node, state in states.items() if re.search(never, state)]
    if absent:
        what = f"node_check.nodes: no job can start on {', '.join(absent)}; take these out"
        yield Finding(FAULT, "nodes", what)
    else:
        yield Finding(OK, "nodes", f"all {len(states)} to vet can start a job")


# --------------------------------------------------------------------------------------- folders


def standing(path: str) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(Path(p) for p in (path, *map(str, Path(path).parents)) if os.path.exists(p))


def folders(site: Site, containers: Path | None) -> Findings:
    """Whether what has to be written can be. ``containers``: where one is going to be made."""
    for name in site.required_variables:
        if os.environ[name].startswith("/") and not os.path.isdir(os.environ[name]):
            problem = f"${name}: there is no folder {os.environ[name]} on this node"
            yield Finding(FAULT, "folders", f"{problem}; try another login node")
            return
    places = [site.scratch, *([str(containers)] if containers else []), "."]
    refused = [place for place in places if not os.access(standing(place), os.W_OK | os.X_OK)]
    for place in refused:
        yield Finding(FAULT, "folders", f"{standing(place)}: you cannot write there")
    if not refused:
        yield Finding(OK, "folders", f"{', '.join(places[:-1])} and this one can be written")


def room(
    site: Site,
    trainings: Mapping[str, TrainJob],
    sif: Path | None,
    fetched: int,
    tmpdir: str | None,
) -> Findings:
    """Whether there is room for what is coming, in bytes and inodes.

    ``fetched``: bytes to pull into ``sif``, by a work folder in ``tmpdir``, if that is set.
    """
    needs = []
    if sif and fetched:
        needed = work_folder.space_needed(fetched)
        needs.append((str(sif.parent), fetched, 5))
        works = work_folder.candidates(sif, Path(tmpdir) if tmpdir else None)
        works = works[: 1 if tmpdir else None]
        spaces = [work_folder.free_space(work) for work in works if work.parent.is_dir()]
        if not any(space.exceeds(needed) for space in spaces):
            what = f"{needed.bytes / 1e9:,.1f} GB and {needed.inodes:,} inodes, as a pull may take"
            where = ", ".join(str(work.parent) for work in works)
            yield Finding(NOTE, "room", f"{where}: none has {what} for a while; set `tmpdir`")
    folder = site.scratch
    for label, job in trainings.items():
        if [*Path(folder).glob(f"train/{label.partition('.')[2]}-{job.id}*/step")]:
            continue  # it goes on, where it has its checkpoints
        kept = job.options["keep_checkpoints"] + 1  # one is written before one goes
        files = kept * (20 + 10 * job.placement.processes)
        needs.append((folder, kept * checkpoint_bytes(job), files))
    for data in {job.data.id: job.data for job in trainings.values() if job.data}.values():
        if not record_of(data):
            needs.append((folder, sum(size for _, size in files_of(*data.data)), 5))
    disks: dict[int, list[Any]] = {}
    for place, size, files in needs:
        there = standing(place)
        disk = disks.setdefault(there.stat().st_dev, [there, 0, 0])
        disk[1] += size
        disk[2] += files
    for there, size, files in disks.values():
        status = os.statvfs(there)
        free, inodes = status.f_bavail * status.f_frsize, status.f_favail
        told = f"{there}: {free / 1e9:,.1f} GB and {inodes:,} inodes free"
        coming = f"{size / 1e9:,.1f} GB and {files:,} inodes are coming"
        # A file system without inodes has no number of them.
        short = free < size or (status.f_files and inodes < files)
        advice = ": make room there" if short else ""
        yield Finding(FAULT if short else OK, "room", f"{told}, {coming}{advice}")


def checkpoint_bytes(job: TrainJob) -> int:
    """A checkpoint: the model's parameters, float32, and AdamW's two moments of each."""
    parts, tokenizer = presets.resolve(job.options), job.data.tokenizer if job.data else "bytes"
    vocabulary = 256 if tokenizer == "bytes" else vocabulary_of(tokenizer)[0]
    grams = (parts["ngram"] - 1) * 2**presets.NGRAM_BITS
    width = parts["width"]
    # As model.init() has them; its module imports JAX, which takes seconds.
    size: int = 12 * width * (12 * parts["layers"] * width + 2 * vocabulary + grams)
    return size


@functools.cache
def vocabulary_of(path: str) -> tuple[int, str]:
    """Size of a tokenizer's vocabulary, and why it cannot be used."""
    try:
        return load_tokenizer(path).tokenizer.get_vocab_size(), ""
    except UserError as error:
        return 0, error.line()


# ------------------------------------------------------------------------------------------ data


def record_of(data: DataOptions) -> DataRecord | None:
    """Record of a training's data, if they have been prepared and are there."""
    return read_prepared(Path(f"results/data/{data.id}.json"))


@functools.cache
def files_of(*sources: str) -> list[tuple[Path, int]]:
    """Files that entries of ``data`` name, and their bytes. There may be many, so once a run."""
    files = [file for source in sources for file in find_files(source)]
    return [(file, file.stat().st_size) for file in dict.fromkeys(files)]


def texts(jobs: Mapping[str, TrainJob]) -> Findings:
    """Whether the data of trainings are there and enough, and how often they are read."""
    groups: dict[DataOptions, list[str]] = {}
    for label, job in jobs.items():
        if job.data:
            groups.setdefault(job.data, []).append(label)
    for data, labels in groups.items():
        who = labels[0]
        options = [presets.resolve(jobs[label].options) for label in labels]
        if data.tokenizer != "bytes" and (problem := vocabulary_of(data.tokenizer)[1]):
            yield Finding(FAULT, "data", f"{who}: {problem}")
            continue
        context = max(each["context"] for each in options)
        wanted = max(each["steps"] * each["global_batch"] * each["context"] for each in options)
        if record := record_of(data):
            there, what = record.train_tokens, f"{record.train_tokens / 1e6:,.1f} M tokens"
        else:
            files, held = files_of(*data.data), data.validation_bytes
            if closed := next((file for file, _ in files if not os.access(file, os.R_OK)), None):
                yield Finding(FAULT, "data", f"{who}.data: {closed} cannot be read by this user")
                continue
            if not files:
                nothing = f"{who}.data: no file in {', '.join(data.data)}"
                yield Finding(FAULT, "data", nothing)
                continue
            size = sum(size for _, size in files)
            # A file is either held out or trained on.
            there, what = (
                size - held if files[1:] else 0,
                f"{size / 1e6:,.1f} MB in {len(files)} files",
            )
            if there <= context:
                problem = f"{who}.data: {what} are too short for {held:,} bytes of validation"
                yield Finding(FAULT, "data", f"{problem} and a context of {context}: add text")
                continue
        if record or data.tokenizer == "bytes":
            times = math.ceil(wanted / there)
            what += f", read {f'{times:,} times' if times > 1 else 'once'} at most"
        more = f" and {len(labels) - 1} more" if labels[1:] else ""
        yield Finding(OK, "data", f"{who}{more}: {what}")


# -------------------------------------------------------------------------- where things are kept


def seen_by_nodes(site: Site) -> Findings:
    """Whether compute nodes see the environment, the workflow and this folder."""
    if not site.shared:
        return
    places = {"Python's environment": sys.prefix, "the workflow": __file__, "this folder": "."}
    shared = [Path(folder).resolve() for folder in site.shared]
    hidden = [
        f"{what}, {Path(place).resolve()}"
        for what, place in places.items()
        if not any(Path(place).resolve().is_relative_to(folder) for folder in shared)
    ]
    for what in hidden:
        where = " or ".join(site.shared)
        yield Finding(FAULT, "shared", f"{what}, is on this node only: move it to {where}")
    if not hidden:
        yield Finding(OK, "shared", "compute nodes see the environment, the workflow, this folder")


def home(environment: Mapping[str, str]) -> Findings:
    """Whether caches stay out of $HOME. A container's home is the folder of the run."""
    known, house = {**os.environ, **environment}, Path.home().resolve()
    below = {"this folder": "."} | {f"${name}": known.get(name, "") for name in CACHES}
    inside = [k for k, v in below.items() if v and Path(v).resolve().is_relative_to(house)]
    for what in inside:
        # A variable may be of something that no job does.
        verdict = FAULT if what == "this folder" else NOTE
        text = f"{what} is in $HOME, whose quota is small and fills: move it to $PROJECT"
        yield Finding(verdict, "home", text)
    if not inside:
        yield Finding(OK, "home", "caches stay out of $HOME")
