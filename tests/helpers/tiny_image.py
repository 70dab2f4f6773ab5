"""The image that the faulty registry serves: always the same bytes, packed in various ways.

python3 tiny_image.py FILE   # the image as `docker save` writes it
"""

import base64
import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
SIF = "application/vnd.sylabs.sif.layer.v1.sif"
LAYERS = {"first": 2_000, "second": 50_000, "third": 12_000_000}  # file and its bytes
LABELS = {"org.opencontainers.image.title": "tiny", "jaxway.test": "a label"}
Json = dict[str, Any]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    """A tar archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def layers() -> list[bytes]:
    """The image's layers, not yet compressed; always the same bytes."""
    noise = random.Random(0)
    return [tar({name: noise.randbytes(size)}) for name, size in LAYERS.items()]


def zstd(data: bytes) -> bytes:
    """A frame of one block, stored (RFC 8878, section 3.1.1)."""
    header = bytes.fromhex("28b52ffda0") + len(data).to_bytes(4, "little")
    return header + (len(data) << 3 | 1).to_bytes(3, "little") + data


def digests(contents: list[bytes]) -> list[str]:
    return [f"sha256:{sha256(content)}" for content in contents]


def configuration(architecture: str, diffs: list[str]) -> bytes:
    """The configuration of an image with these layers."""
    content = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Labels": LABELS, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    return json.dumps(content).encode()


def write_archive(path: Path) -> None:
    """The image as `docker save` writes it."""
    files = {f"{n}/layer.tar": layer for n, layer in enumerate(layers())}
    entry = {"Config": "config.json", "RepoTags": ["tiny:latest"], "Layers": [*files]}
    config = configuration("amd64", digests(layers()))
    files |= {"config.json": config, "manifest.json": json.dumps([entry]).encode()}
    path.write_bytes(tar(files))


class Content:
    """What the registry has: blobs and manifests by their digests, and tags."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        packed = [gzip.compress(layer, 1, mtime=0) for layer in layers()]
        self.layers = [self.blob(f"{OCI}.layer.v1.tar+gzip", data) for data in packed]
        platforms = []
        for tag, architecture in (("latest", "amd64"), ("arm64", "arm64")):
            config = self.configuration(architecture, digests(layers()))
            data = self.manifest(tag, config=config, layers=self.layers)
            described = self.describe(f"{OCI}.manifest.v1+json", data)
            platforms.append(
                described | {"platform": {"os": "linux", "architecture": architecture}}
            )
            if tag == "latest":
                self.manifest("other", config=config, layers=self.layers, annotations={"a": "b"})
        self.manifest("index", manifests=platforms)
        # Parts that no digest names: a path of the client's, and a tag, which cannot be checked.
        self.manifest("path", config=config, layers=[{"digest": "sha256:../../victim", "size": 9}])
        self.manifest("tag", manifests=[platforms[0] | {"digest": "latest"}])
        self.manifest("arm64-index", manifests=platforms[1:])
        self.add_strange()

    @staticmethod
    def describe(kind: str, data: bytes) -> Json:
        return {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    def blob(self, kind: str, data: bytes, **more: Any) -> Json:
        described = self.describe(kind, data) | more
        self.blobs[described["digest"]] = data
        return described

    def manifest(self, tag: str, **parts: Any) -> bytes:
        kind = f"{OCI}.index.v1+json" if "manifests" in parts else f"{OCI}.manifest.v1+json"
        data = json.dumps({"schemaVersion": 2, "mediaType": kind, **parts}).encode()
        self.tags[tag] = f"sha256:{sha256(data)}"
        self.manifests[self.tags[tag]] = data
        return data

    def configuration(self, architecture: str, diffs: list[str]) -> Json:
        return self.blob(f"{OCI}.config.v1+json", configuration(architecture, diffs))

    def add_strange(self) -> None:
        """Images with layers that are packed in other ways, or are not what their names say."""
        first, second, third = layers()
        in_two = gzip.compress(second[:9_999]) + gzip.compress(second[9_999:])
        packed = [
            self.blob(f"{OCI}.layer.v1.tar+zstd", zstd(first)),
            self.blob(f"{OCI}.layer.v1.tar+gzip", in_two),
            self.blob("application/vnd.docker.image.rootfs.diff.tar", third),
        ]
        packed.append(packed[1])
        diffs = digests([first, second, third, second])
        for tag, known in (
            ("mixed", diffs),
            ("short", diffs[:3]),
            ("content", [diffs[0], "sha256:../../victim", *diffs[2:]]),
        ):
            self.manifest(tag, config=self.configuration("amd64", known), layers=packed)

    def add_sif(self, data: bytes) -> None:
        """A SIF as `apptainer push` stores it."""
        config = self.blob("application/vnd.sylabs.sif.config.v1+json", b"{}")
        title = {"org.opencontainers.image.title": "image.sif"}
        self.manifest("sif", config=config, layers=[self.blob(SIF, data, annotations=title)])

    def sign(self, tag: str, key: Path, about: str = "") -> None:
        """A signature by cosign's rules, of a tag's image unless another digest is named."""
        image = self.tags[tag]
        claim = {"critical": {"image": {"docker-manifest-digest": about or image}}}
        signed = json.dumps(claim).encode()
        command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
        made = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
        annotation = {"dev.cosignproject.cosign/signature": base64.b64encode(made).decode()}
        kind = "application/vnd.dev.cosign.simplesigning.v1+json"
        layer = self.blob(kind, signed, annotations=annotation)
        self.manifest(
            f"{image.replace(':', '-')}.sig", config=self.blob(kind, b"{}"), layers=[layer]
        )


if __name__ == "__main__":
    write_archive(Path(sys.argv[1]))
