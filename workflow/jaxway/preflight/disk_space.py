"""Disk space: whether there is enough for image, checkpoints and data, in bytes and inodes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxway_shared import presets, training
from jaxway_shared.data_record import DataRecord
from jaxway_shared.errors import UserError
from jaxway_shared.identity import Identity, program_content
from jaxway_shared.training import SUMMARY, TrainingState

from jaxway.config.jobs import RAW, TrainJob
from jaxway.config.site import Site
from jaxway.container import work_folder
from jaxway.container.work_folder import Space
from jaxway.data.corpus import RowStore
from jaxway.data.sources import Look
from jaxway.launch import state_link
from jaxway.preflight import jutil
from jaxway.preflight.data import found_files, looks_of, record_of, vocabulary_size
from jaxway.preflight.finding import Finding, Findings, failure, passed, warning
from jaxway.preflight.folders import nearest_existing_parent

FILES_OF_A_PULL = 8  # SIF, record, digest, link, lock, a run's link back in its folder, and a part
FILES_OF_DATA = 5  # shards and record
COMPRESSION = 3  # of text by gzip, zstd or in Parquet, roughly
FILES_OF_A_CHECKPOINT, FILES_OF_A_PROCESS = 20, 10  # as Orbax writes them, roughly


@dataclass(frozen=True)
class Download:
    """An image that is going to be pulled."""

    sif: Path
    bytes: int
    tmpdir: Path | None  # the configured one


@dataclass(frozen=True)
class Requirement:
    """What is going to be written below a folder."""

    folder: Path
    bytes: int
    inodes: int


def check_disk_space(
    site: Site, trainings: Iterable[TrainJob], image: str | None, download: Download | None
) -> Findings:
    """``trainings``: those that the plan does not find finished. ``image``: digest, if known."""
    trainings = [*trainings]
    required = [
        *required_by_checkpoints(site, trainings, image),
        *required_by_data(site, trainings),
    ]
    if download:
        yield from check_work_folder(download)
        folder = download.sif.parent
        required.insert(0, Requirement(folder, download.bytes, FILES_OF_A_PULL))
    disks: dict[int, list[Requirement]] = {}
    for each in required:
        disks.setdefault(nearest_existing_parent(each.folder).stat().st_dev, []).append(each)
    for each_disk in disks.values():
        yield from check_disk(each_disk)
    if site.jutil and required:
        try:
            yield from check_quotas(required)
        except jutil.UnrecognizedError as error:
            yield warning(str(error))


def check_disk(required: list[Requirement]) -> Findings:
    """Whether one file system has space for all that is going to be written there."""
    folder = nearest_existing_parent(required[0].folder)
    needed = total(required)
    status = os.statvfs(folder)
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail
    message = f"{folder}: {in_words(Space(free, inodes))} free, {in_words(needed)} required"
    # A file system without inodes has no number of them.
    if free < needed.bytes or (status.f_files and inodes < needed.inodes):
        yield failure("JW510", f"{message}: free some space there")
    else:
        yield passed(message)


def check_quotas(required: Sequence[Requirement]) -> Findings:
    """Whether quotas leave that much. A project's name is a part of its folders' paths."""
    parts = {part for each in required for part in each.folder.parts}
    names = [project.name for project in jutil.projects() if project.name in parts]
    quotas = [quota for name in names for quota in jutil.data_quotas(name)]
    findings = []
    for quota in quotas:
        below = [each for each in required if each.folder.is_relative_to(quota.folder)]
        if below:
            findings.append(compare_quota(quota, total(below)))
    yield from findings or [warning(f"jutil names no quota of {required[0].folder}")]


def compare_quota(quota: jutil.Quota, needed: Space) -> Finding:
    soft, hard = quota.soft, quota.hard
    message = (
        f"{quota.folder}: {soft.bytes / 1e9:,.1f} GB and {soft.inodes:,} inodes left of the "
        f"project's quota by jutil, whose figures are up to a day old; {in_words(needed)} required"
    )
    if needed.bytes > hard.bytes or needed.inodes > hard.inodes:
        return warning(f"{message}: its hard limit refuses that, unless space was freed since")
    if needed.bytes > soft.bytes or needed.inodes > soft.inodes:
        return warning(f"{message}: beyond it, nothing can be written after 14 days")
    return passed(message)


def check_work_folder(download: Download) -> Findings:
    """A warning, where no folder has the space that a pull takes for a while."""
    needed = work_folder.space_needed(download.bytes)
    folders = work_folder.candidates(download.sif, download.tmpdir)
    if download.tmpdir:
        folders = folders[:1]
    spaces = [work_folder.free_space(folder) for folder in folders if folder.parent.is_dir()]
    if not any(space.exceeds(needed) for space in spaces):
        where = ", ".join(str(folder.parent) for folder in folders)
        yield warning(f"{where}: none has {in_words(needed)} for the pull; set `tmpdir`")


def total(required: Sequence[Requirement]) -> Space:
    return Space(sum(each.bytes for each in required), sum(each.inodes for each in required))


def in_words(space: Space) -> str:
    return f"{space.bytes / 1e9:,.1f} GB and {space.inodes:,} inodes"


def required_by_checkpoints(
    site: Site, trainings: Iterable[TrainJob], image: str | None
) -> Iterator[Requirement]:
    """Space for checkpoints that trainings do not have yet."""
    size = files = 0
    for job in trainings:
        more = kept_checkpoints(job) + 1 - checkpoints_there(job, image)
        if more > 0:  # one is written before one is deleted
            inodes = FILES_OF_A_CHECKPOINT + FILES_OF_A_PROCESS * job.placement.processes
            size, files = size + more * checkpoint_bytes(job), files + more * inodes
    if files:
        yield Requirement(Path(site.scratch), size, files)


def checkpoints_there(job: TrainJob, image: str | None) -> int:
    """Checkpoints of the state to which the run's link leads, if it is what the job resumes."""
    state = TrainingState.find(Path(state_link(job.name)))
    if not (state and state.last_checkpoint_step and job.data):
        return 0
    try:
        before, data = Identity.read(state.folder), DataRecord.read(Path(job.data.record))
    except (OSError, UserError):
        return 0
    options = presets.resolve(job.options)
    if options["from"]:  # in an identity that one's content, which only the job's program knows
        options |= {name: before.options.get(name) for name in ("from", "from_step")}
    this = Identity(
        {name: options.get(name) for name in before.options},
        data.sha256,
        program_content(job.program, None),
        image or before.image,
    )
    finished = (state.folder / SUMMARY).exists()  # an unfinished one of another program is not left
    resumed = before == this if finished else before.same_but_program(this)
    return len(training.checkpoint_steps(state.folder)) if resumed else 0


def required_by_data(site: Site, trainings: Iterable[TrainJob]) -> Iterator[Requirement]:
    """Space for data that are not prepared yet: their text, and while they are, rows once more."""
    for data in dict.fromkeys(job.data for job in trainings if job.data):
        if record_of(data):
            continue
        files = found_files(*data.entries).files
        looks = [Look(None)] * len(files)
        if data.tokenizer != RAW and not data.token_shards:
            looks = looks_of(data.text_column, *data.entries)
        texts = [
            file.bytes * (COMPRESSION if look.compressed else 1)
            for file, look in zip(files, looks, strict=True)
        ]
        rows = [size for size, look in zip(texts, looks, strict=True) if look.table]
        inodes = FILES_OF_DATA + (2 * RowStore.FILES if rows else 0)
        yield Requirement(Path(site.scratch), sum(texts) + sum(rows), inodes)


def kept_checkpoints(job: TrainJob) -> int:
    """Checkpoints that a training keeps in the end, at most: newest, best, every so many steps."""
    options = job.options
    every, validates = options["keep_every"], options["validate_every"] is not None
    kept: int = options["keep_checkpoints"] + validates
    return kept + options["steps"] // every if every else kept


def checkpoint_bytes(job: TrainJob) -> int:
    """Size of a checkpoint: parameters as model.init() has them, whose module imports JAX."""
    vocabulary = vocabulary_size(job.data.tokenizer if job.data else "bytes")
    counts = presets.parameter_counts(presets.resolve(job.options), vocabulary)
    return presets.BYTES_OF_A_PARAMETER * sum(counts)
