"""Containers side by side, each named by its content, and the links that lead to them.

The site's `sif` is a link to the one pulled last, for people. A run has a link of its own, with a
copy of the record and the digest beside it: its lock. Jobs run in what that leads to, whatever is
pulled meanwhile. A link back, beside the container, says when a run last started with it.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import time
import uuid
from pathlib import Path

from jaxway_shared.container_record import ContainerRecord

from jaxway.config.containers import digest_path, record_path, target
from jaxway.config.jobs import short_hash
from jaxway.container import image_name, verify
from jaxway.files import atomic_replace, log

DIGITS = 12  # hexadecimal, of a container's identity in its name
LABEL = "org.label-schema.usage"  # of what `apptainer build` writes into a SIF
REGISTRY_RE = re.compile("(docker|oras|library)://")  # names that mean the same to all users


def stem(sif: Path) -> str:
    return sif.name.removesuffix(".sif")


def path_of(sif: Path, image: str, identity: str) -> Path:
    """Where a container lies that people find by ``sif``."""
    name = image_name.parse(image)
    tag = f"-{name.reference}" if name and ":" not in name.reference else ""
    return sif.with_name(f"{stem(sif)}{tag}-{identity.removeprefix('sha256:')[:DIGITS]}.sif")


def containers(sif: Path) -> dict[Path, ContainerRecord]:
    """All containers that lie beside ``sif``, with their records, the newest last."""
    found = {}
    for file in sif.parent.glob(f"{stem(sif)}-*.json"):
        container = file.with_suffix("")
        if container.exists() and (record := verify.read_record(container)):
            found[container] = record
    return dict(sorted(found.items(), key=lambda item: (item[1].date, item[0])))


def find(sif: Path, identity: str) -> Path | None:
    """A whole SIF with this identity."""
    for container, record in containers(sif).items():
        if not record.base and record.identity == identity and is_whole(container):
            return container
    return None


def find_named(sif: Path, image: str) -> Path | None:
    """The newest whole SIF that was pulled by this name, where that means the same to all users."""
    if not REGISTRY_RE.match(image):
        return None
    for container, record in reversed(containers(sif).items()):
        if not record.base and record.same_image(image) and is_whole(container):
            return container
    return None


def is_whole(container: Path) -> bool:
    """Whether a SIF is as its record says; a folder of packages has no more than a record."""
    if container.is_dir():
        return verify.read_record(container) is not None
    return not verify.find_problem(container, full=False)


# ------------------------------------------------------------------------------------------- links


def lead(link: Path, container: Path | str) -> None:
    """Let a link lead to a container; nobody ever finds it missing."""
    part = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.symlink_to(container)
        part.replace(link)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def record_texts(container: Path, record: ContainerRecord) -> dict[Path, str]:
    """The files that go with a container."""
    return {
        record_path(container): json.dumps(record.to_json(), indent=1) + "\n",
        digest_path(container): f"{record.identity}\n",
    }


def lock(link: Path, container: Path, image: str) -> None:
    """Let a run's link lead to a container, whose image has this name for the run."""
    record = ContainerRecord.read(record_path(container))
    if not record.same_image(image):
        record = named(record, image)
    link.parent.mkdir(parents=True, exist_ok=True)
    lead(link, container.absolute())
    texts = record_texts(link, record)
    # What stays the same is not touched in vain.
    atomic_replace({x: t for x, t in texts.items() if not x.exists() or x.read_text() != t})
    note_run(container, link)


def named(record: ContainerRecord, image: str) -> ContainerRecord:
    """A record with this name of the image: users may have pulled the same by other names."""
    base = named(record.base, image) if record.base else None
    return dataclasses.replace(record, image=image, base=base)


def is_locked(link: Path) -> bool:
    """Whether a run's link leads to what its record describes: not, where that was made again."""
    if not verify.exists(link):
        return False
    own, shared = verify.read_record(link), verify.read_record(target(link))
    return bool(own and (not shared or own == named(shared, own.image)))


def runs_folder(container: Path) -> Path:
    """Links back to the links of runs that started with a container."""
    return container.with_name(f"{container.name}.runs")


def note_run(container: Path, link: Path) -> None:
    """Leave word that a run starts with a container, if that can be written.

    ``link``: the run's, which leads to it; of a container that has none, the folder of its links.
    """
    folder = runs_folder(container)
    with contextlib.suppress(OSError):
        make_shared(folder)
        lead(folder / short_hash(str(link)), link)


def make_shared(folder: Path) -> None:
    """Make a folder in which those may write who may write into the one above."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(folder.stat().st_mode | (folder.parent.stat().st_mode & 0o070))


# ------------------------------------------------------------------------------------ plain files


def is_plain(sif: Path) -> bool:
    """Whether there is a file in the place of the link: of the manual way, or from before links."""
    return sif.is_file() and not sif.is_symlink()


def labels_of(sif: Path) -> dict[str, str] | None:
    """What Apptainer wrote into a SIF; None, if it is none."""
    line = ["apptainer", "inspect", "--labels", "--json", str(sif)]
    done = subprocess.run(line, capture_output=True, text=True)
    try:
        labels: dict[str, str] = json.loads(done.stdout)["data"]["attributes"]["labels"]
    except (ValueError, LookupError, TypeError):
        return None
    return labels


def image_in(labels: dict[str, str]) -> str:
    """The image of which Apptainer made a SIF with these labels."""
    definition = f"{LABEL}.singularity.deffile."
    return "://".join(labels.get(definition + part, "") for part in ("bootstrap", "from"))


def adopt(sif: Path) -> None:
    """Give a plain SIF the name of its content, and leave a link in its place."""
    if is_whole(sif):
        record = ContainerRecord.read(record_path(sif))
    else:
        if (labels := labels_of(sif)) is None:
            return log(f"{sif} is no SIF that Apptainer can read: it will be replaced")
        status = verify.fingerprint(sif)
        written = time.gmtime(status["mtime_ns"] / 1e9)
        record = ContainerRecord(
            image=image_in(labels),
            digest=None,  # Apptainer does not keep it
            **status,
            apptainer=labels.get(f"{LABEL}.apptainer.version", "unknown"),
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", written),
            labels=labels,
            layers=(),
        )
    container = path_of(sif, record.image, record.identity)
    atomic_replace(record_texts(container, record))
    try:
        container.unlink(missing_ok=True)
        os.link(sif, container)
        lead(sif, container.name)
    except PermissionError:  # another user's file has no second name
        sif.replace(container)
        lead(sif, container.name)
    for file in (record_path(sif), digest_path(sif)):
        file.unlink(missing_ok=True)
    log(f"{sif} was a file: now it is a link to {container.name}, of {record.image}")
