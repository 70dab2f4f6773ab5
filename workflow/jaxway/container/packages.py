"""Add packages on top of a pulled container: in a SIF of its own, or in a folder that is bound.

Runs on a host with internet, as pull does.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from jaxway_shared.container_record import ContainerRecord, Packages

from jaxway.config.containers import record_path, target
from jaxway.config.jobs import short_hash
from jaxway.container import store, verify, work_folder
from jaxway.container.apptainer import apptainer, compression, drop_options
from jaxway.container.registry import sha256_digest
from jaxway.files import atomic_replace, exclusive_lock, log, remove

PIP = ("python3", "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
IMAGES_OWN = "--env=PYTHONNOUSERSITE=1"  # without what the user has in ~/.local
ANYWHERE = "--env=PIP_BREAK_SYSTEM_PACKAGES=1"  # also beside Debian's packages
# pip lists also what Debian calls by versions that are none in Python.
CONSTRAINT_RE = re.compile(
    r"[\w.-]+==(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z\d.]+)?", re.ASCII
)
COPIED = "/opt/jaxway-packages"  # where a build has the packages that are files on the host


def local_files(packages: Packages) -> list[str]:
    """Packages that are files on the host."""
    return [x for x in packages.python + packages.debian if is_file(x)]


def definition(base: Path, packages: Packages, constraints: Path) -> str:
    """What `apptainer build` is to do; packages that are files on the host are copied in first."""
    local = enumerate(local_files(packages))
    copies = {name: f"{COPIED}/{i}/{Path(name).name}" for i, name in local}
    lines = ["Bootstrap: localimage", f"From: {base}", "%files"]
    lines += [f"{Path(name).absolute()} {copy}" for name, copy in copies.items()]
    lines += [f"{constraints} {COPIED}/{constraints.name}"]
    lines += ["%post", "export DEBIAN_FRONTEND=noninteractive PIP_BREAK_SYSTEM_PACKAGES=1"]
    if packages.debian:
        install = ["apt-get", "install", "--yes", "--no-install-recommends"]
        names = (copies.get(x, x) for x in packages.debian)
        lines += ["apt-get update", shlex.join([*install, *names])]
    if packages.python:
        names = (copies.get(x, x) for x in packages.python)
        lines += [
            shlex.join([*PIP, "install", f"--constraint={COPIED}/{constraints.name}", *names])
        ]
    lines += [f"rm -rf {COPIED} /var/lib/apt/lists/*"]
    return "\n".join(lines) + "\n"


def is_file(package: str) -> bool:
    """Whether a package is a file of this host."""
    return "/" in package and Path(package).is_file()


def write_constraints(base: Path, arguments: Sequence[str], work: Path) -> Path:
    """The image's packages with their versions, which pip is to keep."""
    line = ["apptainer", "exec", *arguments, IMAGES_OWN, str(base), *PIP, "list", "--format=freeze"]
    lines = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    file = work / "constraints.txt"
    file.write_text("".join(f"{each}\n" for each in lines if CONSTRAINT_RE.fullmatch(each)))
    return file


def installed(sif: Path, arguments: Sequence[str], folder: Path | None = None) -> set[str]:
    """Python and Debian packages in a container, each with its version."""
    list_all = shlex.join([*PIP, "freeze", "--all"])
    list_all += "; dpkg-query --show --showformat '${Package}=${Version}\\n' 2> /dev/null || true"
    variables = [f"--env=PYTHONPATH={folder}"] if folder else []
    line = ["apptainer", "exec", *arguments, IMAGES_OWN, *variables, str(sif), "sh", "-c", list_all]
    return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines())


def build_sif(
    base: Path, packages: Packages, arguments: Sequence[str], part: Path, work: Path
) -> None:
    """Make a SIF with the packages in it."""
    constraints = write_constraints(base, arguments, work)
    if packages.python:  # a build that fails takes long
        folders = {str(Path(name).absolute().parent) for name in packages.python if is_file(name)}
        binds = [word for folder in (str(work), *folders) for word in ("--bind", folder)]
        trial = [*PIP, "install", "--dry-run", f"--constraint={constraints}", *packages.python]
        variables = (IMAGES_OWN, ANYWHERE)
        apptainer("exec", *arguments, *binds, *variables, base, *trial, work=work)
    recipe = work / "container.def"
    recipe.write_text(definition(base, packages, constraints))
    apptainer("build", *compression(work), part, recipe, work=work)


def install_to_folder(
    base: Path, packages: Packages, arguments: Sequence[str], part: Path, work: Path
) -> None:
    """Make a folder with the Python packages that the container does not have."""
    # As a user's own packages: pip takes what the image has for installed, and leaves it.
    user = work / "user"
    variables = (f"--env=PYTHONUSERBASE={user}", ANYWHERE)
    constraint = f"--constraint={write_constraints(base, arguments, work)}"
    install = [*PIP, "install", "--user", constraint, *packages.python]
    apptainer("exec", *arguments, "--bind", work, *variables, base, *install, work=work)
    for site_packages in user.glob("lib/python*/site-packages"):
        shutil.copytree(site_packages, part, symlinks=True)
    part.mkdir(exist_ok=True)  # where all of it was in the container already


def add(
    base: Path, link: Path, packages: Packages, arguments: Sequence[str], tmpdir: Path | None
) -> None:
    """Let a run's ``link`` lead to what has these packages on top of what its ``base`` leads to."""
    if problem := verify.find_problem(base, full=False):
        raise problem
    base_record = ContainerRecord.read(record_path(base))
    # Named by what goes in: users of one folder share what is the same, and nothing else.
    files = {name: verify.sha256(Path(name)) for name in local_files(packages)}
    name = f"{store.stem(target(base))}-{short_hash([dataclasses.asdict(packages), files])}"
    out = target(base).with_name(name + (".sif" if link.suffix == ".sif" else ""))
    with exclusive_lock(out.with_name(f".{out.name}")):
        if out.exists() and store.is_whole(out):
            log(f"{out} has these packages already")
        else:
            make(base, base_record, out, packages, arguments, tmpdir)
    store.lock(link, out, base_record.image)


def make(
    base: Path,
    base_record: ContainerRecord,
    out: Path,
    packages: Packages,
    arguments: Sequence[str],
    tmpdir: Path | None,
) -> None:
    """Make ``out`` with its record and digest; an old one stays until this one is complete."""
    arguments = [*arguments, "--bind", str(out.parent)]
    part = out.with_name(f".{out.name}.part")
    remove(part)
    needed = work_folder.Space(
        base_record.bytes * (2 + 2 * work_folder.UNPACK_RATIO), work_folder.MAX_INODES
    )
    work = work_folder.choose(out, tmpdir, needed)
    try:
        if out.suffix == ".sif":
            build_sif(base, packages, arguments, part, work)
            after = installed(part, arguments)
        else:
            install_to_folder(base, packages, arguments, part, work)
            after = installed(base, arguments, part)
        new = tuple(sorted(after - installed(base, arguments)))
        record = dataclasses.replace(
            base_record,
            digest=sha256_digest(json.dumps([base_record.identity, new]).encode()),
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            packages=packages,
            installed=new,
            base=base_record,
        )
        if part.is_dir():
            remove(out)  # a folder is not replaced by renaming another one
        else:
            record = dataclasses.replace(record, **verify.fingerprint(part))
        atomic_replace(store.record_texts(out, record), {out: part})
    except BaseException:
        remove(part)
        raise
    finally:
        remove(work)
    log(f"{out}: {', '.join(new) or 'nothing that was not in the container already'}")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, help="a run's link to what pull made")
    parser.add_argument(
        "--link", type=Path, required=True, help="its link to the SIF (.sif), or folder, to make"
    )
    parser.add_argument("--python", nargs="+", default=[], help="packages as pip takes them")
    parser.add_argument("--debian", nargs="+", default=[], help="packages as apt-get takes them")
    parser.add_argument("--tmpdir", type=Path, help="folder for unpacked files")
    parser.add_argument("apptainer_arguments", nargs="*", help="after --: binds above all")


def run(args: argparse.Namespace) -> None:
    for variable in ("PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER"):
        os.environ.pop(variable, None)  # the host's would mislead pip
    drop_options()
    packages = Packages(args.python, args.debian)
    add(args.base, args.link, packages, args.apptainer_arguments, args.tmpdir)
