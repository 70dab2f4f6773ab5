"""Pull a container image into a SIF, pinned by its digest, and record what it is.

Runs on a host with internet: a login node. Layers and unpacked files go to a folder on the node's
own disk where there is room; beside the SIF there is never more than its unfinished copy. A pull
that failed leaves the layers that had arrived, and the next one goes on from there.
"""

import argparse
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxway.container import verify
from jaxway.container.registry import DIGEST, Image, Json, RegistryError, Repository
from jaxway.files import SIGNALS, TELL, alone, appear, fail, remove, say

# Smaller than gzip's best, at a tenth of the time; larger blocks make up for the low level.
ZSTD = ("--mksquashfs-args", "-comp zstd -Xcompression-level 3 -b 1M")
UNPACKED = 3  # bytes that a byte of a layer takes without compression, roughly
INODES = 100_000  # files of a large image, roughly
OCI = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # as Linux and as registries name them


def parse(image: str) -> tuple[str, str, str] | None:
    """Registry host, repository and reference (tag or digest) of an image in a registry.

    None for any other source, and for a ``docker://`` name without host: Apptainer knows those.
    """
    scheme, _, name = image.partition("://")
    host, slash, path = name.partition("/")
    if scheme not in ("docker", "oras") or not slash or not re.search(r"[.:]|^localhost$", host):
        return None
    if "@" in host:
        fail(
            "image: a user or password does not belong in the image's name; set "
            "APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD"
        )
    path, at, digest = path.partition("@")
    if at and not re.fullmatch(DIGEST, digest):
        fail(f"image: what follows @ must be sha256: and 64 hexadecimal digits, not {digest}")
    repository, _, tag = path.partition(":")
    return host, repository, digest if at else tag or "latest"


# ------------------------------------------------------------------------------------- Apptainer


def apptainer(*arguments: str | Path, work: Path) -> None:
    """Run Apptainer, telling now and then that it is at work; end the program if it fails."""
    environment = os.environ | {
        "APPTAINER_TMPDIR": str(work),
        "APPTAINER_CACHEDIR": str(work / "cache"),
    }
    with tempfile.TemporaryFile("w+", dir=work) as output:
        # A signal while it starts would leave it running.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process = subprocess.Popen(
            ["apptainer", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        began = time.monotonic()
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            while process.poll() is None:
                try:
                    process.wait(TELL)
                except subprocess.TimeoutExpired:
                    free = shutil.disk_usage(work).free
                    say(
                        f"... {time.monotonic() - began:.0f} s, {free / 1e9:,.1f} GB free in {work}"
                    )
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        said = [line.strip() for line in output if line.strip()]
    if process.returncode:
        reasons = [line for line in said if line.startswith("FATAL")] or said or ["no reason given"]
        reason = re.sub(r"^\w+: +", "", reasons[-1])
        if re.search("no space left|quota exceeded", reason, re.IGNORECASE):
            reason += f"; {no_room(work)}"
        for line in said[-20:]:
            say(line)
        fail(f"apptainer {arguments[0]} failed: {reason}")


def end_with_parent() -> None:
    """In the child: be killed when pull is, even by SIGKILL."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def no_room(work: Path) -> str:
    return (
        f"make room there (space, inodes and your quota of both), or set `temporary` in the "
        f"configuration to a folder with more than {work} has"
    )


def apptainer_version() -> tuple[str, str]:
    """Version of Apptainer, and why this user cannot run it; one of them is empty."""
    try:
        done = subprocess.run(["apptainer", "--version"], capture_output=True, text=True)
    except FileNotFoundError:
        return "", "there is no apptainer in PATH"
    except OSError as error:
        return "", f"apptainer does not run: {error.strerror}"
    if "group container" in done.stdout + done.stderr:
        return "", (
            "you may not use Apptainer here yet: in JuDoor, under Software, request access to "
            "restricted software, choose Container Runtime Engine and accept its agreement; it "
            "takes effect within hours"
        )
    if done.returncode:
        return "", f"apptainer does not run: {(done.stderr or done.stdout).strip()}"
    return done.stdout.split()[-1], ""


def compression(work: Path) -> tuple[str, ...]:
    """Arguments of `apptainer build` for zstd; none, so gzip, if this host cannot make or mount it.

    Found by running a program in an image that is nothing but links to the host's own /usr.
    """
    trial = work / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "root/usr").mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (trial / "root" / name).symlink_to(f"usr/{name}")
    sif = trial / "trial.sif"
    lines: list[list[str | Path]] = [
        ["build", *ZSTD, sif, trial / "root"],
        ["exec", "--bind", "/usr", sif, "true"],
    ]
    environment = os.environ | {"APPTAINER_TMPDIR": str(trial)}
    for line in lines:
        if subprocess.run(["apptainer", *line], env=environment, capture_output=True).returncode:
            say("zstd images do not work on this host: taking gzip, which is slower")
            return ()
    return ZSTD


# ---------------------------------------------------------------------------------------- places


def work_folders(sif: Path, *places: Path | None) -> list[Path]:
    """Folders that could hold the layers and unpacked files of this user's pulls to this SIF."""
    name = f"jaxway-{os.getuid()}-{hashlib.sha256(str(sif).encode()).hexdigest()[:8]}"
    variables = map(os.environ.get, ("APPTAINER_TMPDIR", "TMPDIR"))
    everywhere = [*places, *variables, "/tmp", "/var/tmp", sif.parent]
    return [Path(place, name) for place in dict.fromkeys(map(str, filter(None, everywhere)))]


def room(work: Path) -> tuple[int, int]:
    """Bytes that such a folder can have, with those it has already, and inodes that are free."""
    status = os.statvfs(work.parent)
    there = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
    return status.f_bavail * status.f_frsize + there, status.f_favail


def work_needed(size: int) -> int:
    """Bytes that pulling layers of this size needs for a while, roughly.

    Layers as plain archives, their files, and these compressed, which is copied into the SIF.
    """
    return size * (2 * UNPACKED + 1)


def choose_work_folder(sif: Path, temporary: Path | None, needed: int) -> Path:
    """The first of them where there is room, made and open to this user alone; else the last."""
    *candidates, beside = work_folders(sif, temporary)
    for work in candidates[:1] if temporary else candidates:
        place = work.parent
        if not place.is_dir():
            fail(f"{place} is no folder, but `temporary` or APPTAINER_TMPDIR names it")
        free, inodes = room(work)
        say(
            f"{place}: {free / 1e9:,.1f} GB and {inodes:,} inodes free, about "
            f"{needed / 1e9:,.1f} GB and up to {INODES:,} inodes needed"
        )
        if temporary or (free > needed and inodes > INODES):
            break
    else:
        work = beside
        say(f"no room on this machine's own disks: working in {work}")
    work.mkdir(mode=0o700, exist_ok=True)
    if work.is_symlink() or work.stat().st_uid != os.getuid():
        fail(f"{work} belongs to somebody else; set `temporary` in the configuration")
    return work


def read_record(sif: Path) -> Json:
    """The record beside a SIF; an empty one where there is none."""
    try:
        return dict(json.loads(verify.record_of(sif).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def is_there(sif: Path, record: Json, digest: str | None) -> bool:
    """Whether the SIF is what has this digest, and whole."""
    same = bool(digest) and record.get("digest") == digest
    return same and not verify.problem(sif, full=False)


# ------------------------------------------------------------------------------------------ pull


def write_layout(folder: Path, image: Image) -> str:
    """Complete a folder with an image's layers to an OCI layout, the source that Apptainer takes.

    Its manifest is our own, of the layers as they lie here. They do where Apptainer keeps its own
    cache of layers, which is such a layout too: so it finds each of them there and copies none.
    """
    blobs = folder / "blobs/sha256"
    wanted = {layer["kept"] for layer in image.layers}
    for file in blobs.iterdir():
        if file.name not in wanted:
            file.unlink()  # of another image

    def entry(kind: str, name: str) -> Json:
        size = (blobs / name).stat().st_size
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{name}", "size": size}

    def document(kind: str, content: bytes) -> Json:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return entry(kind, name)

    layers = [
        entry("layer.v1.tar" + "+zstd" * layer["mediaType"].endswith("zstd"), layer["kept"])
        for layer in image.layers
    ]
    config = document("config.v1+json", image.config)
    parts = {"schemaVersion": 2, "config": config, "layers": layers}
    manifest = document("manifest.v1+json", json.dumps(parts).encode())
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}"


def pull(image: str, sif: Path, temporary: Path | None) -> None:
    """Make the SIF and write its record and digest beside it, unless all that is there."""
    (version, unusable), began = apptainer_version(), time.monotonic()
    if unusable:
        fail(unusable)
    file = Path(re.sub(r"^docker-archive:([^:]+).*", r"\1", image))
    record, found, digest = read_record(sif), None, None
    if name := parse(image):
        host, repository_name, reference = name
        if not sif.exists() and record.get("image") == image and record["digest"]:
            reference = record["digest"]  # it was wiped: the same again, whatever the tag means now
        artifact = image.startswith("oras://")  # a SIF in a registry
        architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        repository = Repository(host, repository_name, say)
        try:
            found = repository.image(reference, architecture)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fail(f"{host} sent something that is no image for {image}: {error!r}")
        digest = found.digest
    elif file.is_file():
        digest = f"sha256:{verify.sha256(file)}"
    elif image.startswith("docker-archive:") or not re.match(r"[a-z-]+:", image):
        fail(f"image: there is no file {file}; an image in a registry begins with docker://")
    layers = found.layers if found else []
    if found and not layers:
        fail(f"{image} has no layers")
    if is_there(sif, record, digest):
        say(f"{sif} is {digest} already")
        if not verify.same_image(image, record):
            record["image"] = image
            appear({verify.record_of(sif): json.dumps(record, indent=1) + "\n"})
        identity = verify.digest_of(sif)
        if not identity.exists() or identity.read_text() != f"{digest}\n":
            appear({identity: f"{digest}\n"})
        return remove(*work_folders(sif, temporary))

    size = sum(layer["size"] for layer in layers) or (file.stat().st_size if digest else 0)
    say(f"{image} is {digest or 'what Apptainer finds'}: {size / 1e6:,.0f} MB")
    free = shutil.disk_usage(sif.parent).free
    say(f"{sif.parent}: {free / 1e9:,.1f} GB free, about {size / 1e9:,.1f} GB and 5 inodes needed")
    work = choose_work_folder(sif, temporary, work_needed(size))
    part = sif.with_name(f".{sif.name}.part")
    layout = work / "cache/cache/blob"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    try:
        part.unlink(missing_ok=True)  # of a pull that was killed
        with ThreadPoolExecutor() as pool:
            arguments = pool.submit(compression, work)
            if found:
                repository.fetch(layers, blobs)
        if found and artifact:
            shutil.copyfile(blobs / layers[0]["kept"], part)
        elif digest and file.suffix == ".sif":
            shutil.copyfile(file, part)
        else:
            say("unpacking and compressing")
            source = write_layout(layout, found) if found else image
            apptainer("build", *arguments.result(), part, source, work=work)
        subprocess.run(["apptainer", "sif", "header", part], check=True, capture_output=True)
        record = {
            "image": image,
            "digest": digest,
            **verify.measures(part),
            "apptainer": version,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "labels": labels(found),
            "layers": [{"digest": x["digest"], "bytes": x["size"]} for x in layers],
        }
        texts = {
            verify.record_of(sif): json.dumps(record, indent=1) + "\n",
            verify.digest_of(sif): f"{digest or record['sha256']}\n",
        }
        appear(texts, {sif: part})
    except subprocess.CalledProcessError:
        part.unlink()
        remove(*work_folders(sif, temporary))
        fail(f"{image} is no SIF")
    except BaseException as error:
        part.unlink(missing_ok=True)
        remove(*(leftover for leftover in work.iterdir() if leftover.name != "cache"))
        remove(*(leftover for leftover in layout.iterdir() if leftover.name != "blobs"))
        if here := [x for x in layers if (blobs / x["kept"]).exists()]:
            say(f"{len(here)} of {len(layers)} layers stay in {work}: the next pull needs them")
        else:
            remove(work)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"{sif.parent} or {work} is full: {no_room(work)}")
        raise
    remove(*work_folders(sif, temporary))
    say(f"{sif}: {record['bytes'] / 1e6:,.0f} MB in {time.monotonic() - began:.0f} s")


def labels(image: Image | None) -> dict[str, str]:
    """Labels of an image; none of what is not from a registry."""
    config = json.loads(image.config or "{}").get("config") if image else None
    return (config or {}).get("Labels") or {}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--image", required=True, help="any source that apptainer pull takes")
    arguments.add_argument("--sif", type=Path, required=True, help="file to make")
    arguments.add_argument("--temporary", type=Path, help="folder for layers and unpacked files")
    args = arguments.parse_args()
    sif = args.sif.absolute()
    os.environ.pop("APPTAINER_BIND", None)  # for jobs, of folders that may not be there yet
    with alone(sif):
        try:
            pull(args.image, sif, args.temporary)
        except RegistryError as error:
            fail(str(error))
