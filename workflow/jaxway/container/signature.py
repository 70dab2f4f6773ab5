"""Check who has signed an image: a signature by cosign in the image's repository, and a public key.

The signature is at the tag `sha256-<digest>.sig`, as `cosign sign --key` writes it (cosign 3: with
`--new-bundle-format=false`) and NVIDIA's registry has it. It is checked by openssl, which each
system has; neither cosign nor a transparency log is asked.
"""

import base64
import json
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile

from jaxway_shared.errors import UserError

from jaxway.container.registry import RegistryError, Repository

SIGNATURE = "dev.cosignproject.cosign/signature"  # annotation of a layer, which is what was signed


def require_signature(
    name: str, repository: Repository | None, digest: str | None, key: Path
) -> None:
    """Raise a sentence unless the holder of a key has signed the image with this digest."""
    require_key(key)
    if not repository or not digest:
        raise unsigned(f"{name} is in no registry, which would have its signature")
    tag = f"{digest.replace(':', '-')}.sig"
    try:
        manifest = json.loads(repository.document(f"manifests/{tag}"))
        for layer in manifest["layers"]:
            repository.validate_digests(layer["digest"])
            signed = repository.document(f"blobs/{layer['digest']}")
            signature = base64.b64decode(layer["annotations"][SIGNATURE])
            if verifies(signed, signature, key):
                about = json.loads(signed)["critical"]["image"]["docker-manifest-digest"]
                if about == digest:
                    return
    except RegistryError as error:
        if error.code != "JW121":
            raise
        raise unsigned(f"{name} is not signed: {repository.host} has no {tag}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unsigned(f"{name}: {tag} is no signature by cosign ({error!r})") from None
    raise unsigned(f"{name} ({digest}) is not signed by {key}")


def unsigned(sentence: str) -> UserError:
    return UserError("JW129", f"{sentence}; the site's `image_key` asks for it")


def require_key(key: Path) -> None:
    """Raise a sentence unless a file is a public key."""
    command = ["openssl", "pkey", "-pubin", "-noout", "-in", str(key)]
    if subprocess.run(command, capture_output=True).returncode:
        raise UserError("JW129", f"{key}, the site's `image_key`, is no public key (PEM)")


def verifies(content: bytes, signature: bytes, key: Path) -> bool:
    """Whether a signature of the content's SHA-256 was made by the private part of a key."""
    with NamedTemporaryFile() as file:
        file.write(signature)
        file.flush()
        command = ["openssl", "dgst", "-sha256", "-verify", str(key), "-signature", file.name]
        return not subprocess.run(command, input=content, capture_output=True).returncode
