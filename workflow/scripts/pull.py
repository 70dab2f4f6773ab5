"""Pull a container image into a SIF, by digest, and record what it is.

Runs on the host, where there is internet: a login node. Needs only Apptainer and Python.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NoReturn

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
TIMEOUT = 60  # seconds for one answer of the registry


def fail(sentence: str) -> NoReturn:
    """End the program with exit code 1 and one sentence on standard error."""
    sys.exit(f"pull: {sentence}")


def parse(image: str) -> tuple[str, str, str]:
    """Registry host, repository and reference (tag or digest) of a ``docker://`` image.

    The host is empty where the image names none: Apptainer knows which one it takes then.
    """
    name, at, digest = image.removeprefix("docker://").partition("@")
    host, slash, repository = name.partition("/")
    if not slash or not re.search(r"[.:]|^localhost$", host):
        host, repository = "", name
    repository, _, tag = repository.partition(":")
    return host, repository, digest if at else tag or "latest"


def resolve(image: str) -> str:
    """Digest of a ``docker://`` image, asked from its registry (OCI distribution specification).

    A registry that wants a token gets one that anybody may have.
    """
    host, repository, reference = parse(image)
    url = f"https://{host}/v2/{repository}/manifests/{reference}"
    request = urllib.request.Request(url, headers={"Accept": ", ".join(MANIFESTS)})
    try:
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != 401 or not challenge.startswith("Bearer "):
                raise
            fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
            realm = fields.pop("realm")
            with urllib.request.urlopen(
                f"{realm}?{urllib.parse.urlencode(fields)}", timeout=TIMEOUT
            ) as granted:
                token = json.load(granted)
            bearer = token.get("token") or token["access_token"]
            request.add_header("Authorization", f"Bearer {bearer}")
            answer = urllib.request.urlopen(request, timeout=TIMEOUT)
        with answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        fail(
            f"the registry {host} answers {error.code} {error.reason} for {repository}:{reference}"
        )
    except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
        fail(f"the registry {host} cannot be asked for {image}: {error}")
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--image", required=True, help="any source that apptainer pull takes")
    arguments.add_argument("--sif", type=Path, required=True, help="file to make")
    args = arguments.parse_args()

    digest, source = None, args.image
    if args.image.startswith("docker://") and parse(args.image)[0]:
        digest = resolve(args.image)
        host, repository, reference = parse(args.image)
        if reference.startswith("sha256:") and reference != digest:
            fail(f"the registry {host} sent {digest} where {reference} was asked for")
        source = f"docker://{host}/{repository}@{digest}"
    args.sif.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.sif.parent, prefix=".pull-") as temporary:
        part = Path(temporary, "jax.sif")
        environment = os.environ | {
            "APPTAINER_TMPDIR": temporary,
            "APPTAINER_CACHEDIR": str(Path(temporary, "cache")),
        }
        try:
            version = subprocess.run(
                ["apptainer", "--version"], capture_output=True, text=True, check=True
            ).stdout.strip()
            subprocess.run(["apptainer", "pull", part, source], env=environment, check=True)
        except FileNotFoundError:
            fail("there is no apptainer in PATH")
        except subprocess.CalledProcessError as error:
            fail(f"apptainer could not pull {source} (exit code {error.returncode}); see above")
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        record = {
            "image": args.image,
            "digest": digest,
            "sha256": sha256,
            "bytes": part.stat().st_size,
            "apptainer": version,
        }
        new_record = Path(temporary, "record")
        new_record.write_text(json.dumps(record, indent=1) + "\n")
        part.replace(args.sif)
        new_record.replace(args.sif.with_name(args.sif.name + ".json"))
    print(f"{args.sif}: {record['bytes'] / 1e6:.0f} MB, {digest or sha256}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: fail("ended by SIGTERM"))  # and clean up
    try:
        main()
    except OSError as problem:
        fail(str(problem))
