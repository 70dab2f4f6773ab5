"""Pull a container image into a SIF that its digest names, and record what it is.

Runs on a host with internet: a login node. Layers and unpacked files go to a folder on the node's
own disk where there is space; beside the SIF there is never more than its unfinished copy. A pull
that failed leaves the complete layers, and the next one resumes from there.
"""

import argparse
import errno
import hashlib
import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxway_shared.container_record import ContainerRecord, LayerRecord
from jaxway_shared.errors import UserError

from jaxway.container import image_name, layers, signature, store, verify, work_folder
from jaxway.container.apptainer import apptainer, apptainer_version, compression, drop_options
from jaxway.container.registry import Image, Json, Repository, sha256_digest
from jaxway.files import atomic_replace, exclusive_lock, log, remove

OCI = "application/vnd.oci.image"


class NotASifError(UserError):
    """What was fetched or copied is no SIF, so another attempt would fetch the same."""

    def __init__(self, image: str) -> None:
        super().__init__("JW128", f"{image} is not a SIF")


@dataclass(frozen=True)
class Source:
    """What an image's name stands for: an image in a registry, or a local file.

    Neither for a source that Apptainer alone knows, such as docker://python:3.11. ``digest`` is
    None then, else the image's or the file's.
    """

    name: str
    digest: str | None
    image: Image | None = None
    repository: Repository | None = None
    file: Path | None = None

    @property
    def size(self) -> int:
        """Bytes to download or read."""
        if self.image:
            return self.image.size
        return self.file.stat().st_size if self.file else 0


def find_source(name: str, pinned: str | None) -> Source:
    """Ask the registry, or the file system; ``pinned`` is the digest to take, whatever the tag."""
    if parsed := image_name.parse(name):
        repository = Repository(parsed.host, parsed.repository, log)
        image = repository.image(pinned or parsed.reference, image_name.host_architecture())
        return Source(name, image.digest, image, repository)
    file = Path(re.sub(r"^docker-archive:([^:]+).*", r"\1", name))
    if file.is_file():
        return Source(name, f"sha256:{verify.sha256(file)}", file=file)
    if name.startswith("docker-archive:") or not re.match(r"[a-z-]+:", name):
        raise UserError(
            "JW110", f"image: there is no file {file}; an image in a registry begins with docker://"
        )
    return Source(name, None)


# ----------------------------------------------------------------------------------------- build


def write_layout(folder: Path, image: Image) -> str:
    """Complete a folder with an image's layers to an OCI layout, the source that Apptainer takes.

    Its manifest is our own, of the layers as they are stored here. They are where Apptainer keeps
    its own cache of layers, which is such a layout too: so it finds each of them and copies none.
    """
    blobs = folder / "blobs/sha256"
    wanted = {layer.stored_sha256 for layer in image.layers}
    for file in blobs.iterdir():
        if file.name not in wanted:
            file.unlink()  # of another image

    def descriptor(kind: str, name: str) -> Json:
        size = (blobs / name).stat().st_size
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{name}", "size": size}

    def write_document(kind: str, content: bytes) -> Json:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return descriptor(kind, name)

    descriptors = [
        descriptor("layer.v1.tar" + "+zstd" * x.media_type.endswith("zstd"), x.stored_sha256)
        for x in image.layers
    ]
    config = write_document("config.v1+json", image.config)
    parts = {"schemaVersion": 2, "config": config, "layers": descriptors}
    manifest = write_document("manifest.v1+json", json.dumps(parts).encode())
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}"


def layout_folder(work: Path) -> Path:
    """Where Apptainer looks for layers, its cache being in the work folder."""
    return work / "cache/cache/blob"


def build(source: Source, part: Path, work: Path) -> None:
    """Make the SIF ``part`` from its source."""
    layout = layout_folder(work)
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)  # of a pull that was killed
    with ThreadPoolExecutor() as pool:
        arguments = pool.submit(compression, work)  # while layers arrive
        if source.repository and source.image:
            layers.download(source.repository, source.image.layers, blobs)
    if source.image and source.name.startswith("oras://"):  # a SIF in a registry
        shutil.copyfile(blobs / source.image.layers[0].stored_sha256, part)
    elif source.file and source.file.suffix == ".sif":
        shutil.copyfile(source.file, part)
    else:
        log("unpacking and compressing")
        oci = write_layout(layout, source.image) if source.image else source.name
        apptainer("build", *arguments.result(), part, oci, work=work)
    if subprocess.run(["apptainer", "sif", "header", part], capture_output=True).returncode:
        raise NotASifError(source.name)


def keep_complete_layers(source: Source, work: Path) -> None:
    """After a failure: leave what the next pull needs, and nothing else."""
    layout = layout_folder(work)
    remove(*(leftover for leftover in work.glob("*") if leftover.name != "cache"))
    remove(*(leftover for leftover in layout.glob("*") if leftover.name != "blobs"))
    wanted = source.image.layers if source.image else ()
    if complete := [x for x in wanted if (layout / "blobs/sha256" / x.stored_sha256).exists()]:
        log(f"{len(complete)} of {len(wanted)} layers stay in {work}: the next pull needs them")
    else:
        remove(work)


# ------------------------------------------------------------------------------------------ pull


def pull(
    name: str, sif: Path, link: Path | None, tmpdir: Path | None, key: Path | None = None
) -> None:
    """Let ``sif``, and a run's own ``link``, lead to the image's SIF, which is made if need be.

    A run's first pull takes what others have pulled by this name; a later one asks what the name
    means now, but what a run has lost is made again as it was. With a
    ``key`` the registry is always asked for the image's signature.
    """
    version = apptainer_version()
    store.make_shared(sif.parent)
    if store.is_plain(sif):
        with exclusive_lock(sif):
            if store.is_plain(sif):
                store.adopt(sif)
    locked = verify.read_record(link) if link else None
    found, pinned = None, None
    if link and not locked and not key and (found := store.find_named(sif, name)):
        log(f"{found} is {name}, pulled before: `--forcerun pull` asks the registry again")
    elif link and locked and locked.image == name and not store.is_locked(link):
        found, pinned = None if key else store.find(sif, locked.identity), locked.digest
    if not found:
        source = find_source(name, pinned)
        if key:
            signature.require_signature(name, source.repository, source.digest, key)
        found = make(source, sif, tmpdir, version)
    try:
        store.lead(sif, found.name)
    except PermissionError:
        log(f"{sif} still leads elsewhere: you cannot write there")
    if link:
        store.lock(link, found, name)


def make(source: Source, sif: Path, tmpdir: Path | None, version: str) -> Path:
    """The SIF of a source, beside ``sif``: one that is there, or a new one."""
    identity = source.digest or sha256_digest(source.name.encode())
    # Two users may pull at once: the same image once, others side by side.
    unfinished = store.path_of(sif, "", identity)
    unfinished = unfinished.with_name(f".{unfinished.name}")
    found = find(sif, source)
    if not found:
        with exclusive_lock(unfinished):
            found = find(sif, source) or make_new(source, sif, unfinished, tmpdir, version)
    remove(*work_folder.candidates(unfinished, tmpdir))
    return found


def find(sif: Path, source: Source) -> Path | None:
    """The SIF of a source, if somebody has made it."""
    found = store.find(sif, source.digest) if source.digest else None
    if found:
        log(f"{found} is {source.digest} already")
    return found


def make_new(
    source: Source, sif: Path, unfinished: Path, tmpdir: Path | None, version: str
) -> Path:
    """Make the SIF and write its record and digest beside it."""
    size, began = source.size, time.monotonic()
    log(f"{source.name} is {source.digest or 'known to Apptainer alone'}: {size / 1e6:,.0f} MB")
    free = shutil.disk_usage(sif.parent).free
    log(f"{sif.parent}: {free / 1e9:,.1f} GB free, about {size / 1e9:,.1f} GB required")
    work = work_folder.choose(unfinished, tmpdir, work_folder.space_needed(size))
    part = unfinished.with_name(f"{unfinished.name}.part")
    try:
        build(source, part, work)
        record = new_record(source, part, version)
        made = store.path_of(sif, source.name, record.identity)
        atomic_replace(store.record_texts(made, record), {made: part})
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, NotASifError):
            remove(work)
        else:
            keep_complete_layers(source, work)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = work_folder.disk_full_hint(work)
            raise UserError("JW130", f"{sif.parent} or {work} is full: {hint}") from None
        raise
    log(f"{made}: {record.bytes / 1e6:,.0f} MB in {time.monotonic() - began:.0f} s")
    return made


def new_record(source: Source, sif: Path, version: str) -> ContainerRecord:
    """What is known of a SIF that Apptainer of this version has just made."""
    image = source.image
    config = json.loads(image.config or "{}").get("config") if image else None
    return ContainerRecord(
        image=source.name,
        digest=source.digest,
        **verify.fingerprint(sif),
        apptainer=version,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        labels=(config or {}).get("Labels") or {},
        layers=tuple(LayerRecord(x.digest, x.size) for x in image.layers) if image else (),
    )


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", required=True, help="any source that apptainer pull takes")
    parser.add_argument(
        "--sif", type=Path, required=True, help="link to the SIF, which its content names"
    )
    parser.add_argument("--link", type=Path, help="a run's own link to it, with its record")
    parser.add_argument("--tmpdir", type=Path, help="folder for layers and unpacked files")
    parser.add_argument("--key", type=Path, help="public key of who must have signed the image")


def run(args: argparse.Namespace) -> None:
    drop_options()
    link = args.link.absolute() if args.link else None
    pull(args.image, args.sif.absolute(), link, args.tmpdir, args.key)
