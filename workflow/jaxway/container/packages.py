"""Add packages on top of a pulled container: in a SIF of its own, or in a folder that is bound.

Runs on a host with internet, as pull does.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from jaxway import files
from jaxway.container import pull, verify
from jaxway.container.registry import sha256

PIP = ["python3", "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
COPIED = "/opt/jaxway-packages"


def definition(base: Path, python: list[str], debian: list[str]) -> str:
    """What `apptainer build` is to do; packages that are files on the host are copied in first."""
    local = [name for name in python + debian if "/" in name and Path(name).is_file()]
    files = {name: f"{COPIED}/{i}/{Path(name).name}" for i, name in enumerate(local)}
    lines = ["Bootstrap: localimage", f"From: {base}", "%files"]
    lines += [f"{Path(name).absolute()} {copy}" for name, copy in files.items()]
    lines += ["%post", "export DEBIAN_FRONTEND=noninteractive PIP_BREAK_SYSTEM_PACKAGES=1"]
    if debian:
        install = ["apt-get", "install", "--yes", "--no-install-recommends"]
        lines += ["apt-get update", shlex.join([*install, *(files.get(x, x) for x in debian)])]
    if python:
        lines += [shlex.join([*PIP, "install", *(files.get(x, x) for x in python)])]
    lines += [f"rm -rf {COPIED} /var/lib/apt/lists/*"]
    return "\n".join(lines) + "\n"


def inventory(sif: Path, arguments: list[str], folder: Path | None = None) -> set[str]:
    """Python and Debian packages in a container, each with its version."""
    list_all = shlex.join([*PIP, "freeze", "--all"])
    list_all += "; dpkg-query --show --showformat '${Package}=${Version}\\n' 2> /dev/null || true"
    variables = [f"--env=PYTHONPATH={folder}"] if folder else []
    line = ["apptainer", "exec", *arguments, *variables, str(sif), "sh", "-c", list_all]
    return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines())


def add(args: argparse.Namespace, arguments: list[str]) -> None:
    """Make ``args.out`` with its record and digest; an old one stays until this one is complete."""
    if problem := verify.problem(args.base, full=False):
        files.fail(problem)
    base = pull.read_record(args.base)
    arguments = [*arguments, "--bind", str(args.out.parent)]
    part = args.out.with_name(f".{args.out.name}.part")
    files.remove(part)
    work = pull.choose_work_folder(
        args.out, args.temporary, base["bytes"] * (2 + 2 * pull.UNPACKED)
    )
    try:
        if args.out.suffix == ".sif":
            recipe = work / "container.def"
            recipe.write_text(definition(args.base, args.python, args.debian))
            zstd = pull.compression(work)
            pull.apptainer("build", *zstd, part, recipe, work=work)
            there = inventory(part, arguments)
        else:
            # As a user's own packages: pip takes what the image has for installed, and leaves it.
            user = work / "user"
            variables = (f"--env=PYTHONUSERBASE={user}", "--env=PIP_BREAK_SYSTEM_PACKAGES=1")
            install = [*PIP, "install", "--user", *args.python]
            binds = [*arguments, "--bind", str(work), *variables]
            pull.apptainer("exec", *binds, args.base, *install, work=work)
            for site_packages in user.glob("lib/python*/site-packages"):
                shutil.copytree(site_packages, part, symlinks=True)
            part.mkdir(exist_ok=True)  # all of it was there already
            there = inventory(args.base, arguments, part)
        record = base | {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "packages": {"python": args.python, "debian": args.debian},
            "installed": sorted(there - inventory(args.base, arguments)),
            "base": base,
        }
        identity = json.dumps([base["digest"] or base["sha256"], record["installed"]])
        record["digest"] = sha256(identity.encode())
        if args.out.suffix == ".sif":
            record |= verify.measures(part)
        texts = {
            verify.record_of(args.out): json.dumps(record, indent=1) + "\n",
            verify.digest_of(args.out): f"{record['digest']}\n",
        }
        if part.is_dir():
            files.remove(args.out)  # a folder takes no other one's place
        files.appear(texts, {args.out: part})
    except BaseException:
        files.remove(part)
        raise
    finally:
        files.remove(work)
    files.say(
        f"{args.out}: {', '.join(record['installed']) or 'nothing that was not there already'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--base", type=Path, required=True, help="SIF that pull made")
    parser.add_argument("--out", type=Path, required=True, help="SIF to make (.sif), or folder")
    parser.add_argument("--python", nargs="+", default=[], help="packages as pip takes them")
    parser.add_argument("--debian", nargs="+", default=[], help="packages as apt-get takes them")
    parser.add_argument("--temporary", type=Path, help="folder for unpacked files")
    args, arguments = parser.parse_known_args()  # the rest is for Apptainer, binds above all
    args.base, args.out = args.base.absolute(), args.out.absolute()
    for variable in ("PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER"):
        os.environ.pop(variable, None)  # the host's would lead pip astray
    # What jobs bind is not there yet.
    binds = os.environ.get("APPTAINER_BIND", "").split(",")
    os.environ["APPTAINER_BIND"] = ",".join(b for b in binds if not b.startswith(f"{args.out}:"))
    with files.alone(args.out):
        add(args, arguments)
