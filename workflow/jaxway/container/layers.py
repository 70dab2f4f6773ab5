"""Download an image's layers: several at once, each hashed and decompressed while it arrives."""

import contextlib
import hashlib
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import requests
import urllib3
from isal import isal_zlib

from jaxway.container.registry import Layer, Repository, TemporaryError, reason
from jaxway.files import PROGRESS_INTERVAL_S

CONNECTIONS = 4  # layers that are downloaded at once
CHUNK_SIZE = 1 << 18  # bytes of a layer that are decompressed at once
GZIP_WBITS = 31  # as zlib has it: the largest window, gzip's header and checksum


def download(repository: Repository, layers: Iterable[Layer], folder: Path) -> None:
    """Store each layer in ``folder``, in a file that ``stored_sha256`` names.

    Complete files stay whatever happens, and are not downloaded again; partial ones are removed.
    """
    files = {folder / layer.stored_sha256: layer for layer in layers}
    missing = [LayerDownload(layer, file) for file, layer in files.items() if not file.exists()]
    total, began = sum(each.layer.size for each in missing), time.monotonic()

    def arrived() -> str:
        size = sum(each.arrived for each in missing)
        speed = size / (time.monotonic() - began)
        return f"{size / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed / 1e6:,.0f} MB/s"

    finished = 0
    try:
        # Its threads end with the program, also while they wait for the registry.
        with ThreadPool(CONNECTIONS) as pool:
            results = pool.imap_unordered(lambda each: each.run(repository), missing)
            while finished < len(missing):
                try:
                    results.next(PROGRESS_INTERVAL_S)
                    finished += 1
                except multiprocessing.TimeoutError:
                    pass
                repository.log(f"layers: {finished} of {len(missing)} downloaded, {arrived()}")
    finally:
        for each in missing:
            each.part.unlink(missing_ok=True)


class LayerDownload:
    """A layer on its way into a file: how much has arrived, hashed and decompressed as it did."""

    def __init__(self, layer: Layer, file: Path) -> None:
        self.layer, self.file = layer, file
        self.part = file.with_name(f"{file.name}.part")
        self.most_arrived = 0  # in any attempt
        self.restart()

    def restart(self) -> None:
        """Forget what has arrived."""
        self.arrived, self.compressed, self.stored = 0, hashlib.sha256(), hashlib.sha256()
        self.gzip = isal_zlib.decompressobj(GZIP_WBITS)

    def run(self, repository: Repository) -> None:
        """Download the layer; a further attempt resumes where the last one stopped."""

        def attempt() -> None:
            if self.arrived < self.layer.size:
                headers = {"Range": f"bytes={self.arrived}-"} if self.arrived else {}
                with repository.get(f"blobs/{self.layer.digest}", headers) as answer:
                    if answer.status_code != requests.codes.partial:
                        self.restart()  # a registry that knows no ranges
                    try:
                        self.write(answer.raw.stream(CHUNK_SIZE, decode_content=False))
                    except urllib3.exceptions.HTTPError as error:
                        raise TemporaryError(
                            f"the connection broke: {reason(error)}", progress=self.progressed()
                        ) from None
            self.finish()

        repository.with_retries(attempt)

    def progressed(self) -> bool:
        """Whether more has arrived than in any attempt before."""
        before, self.most_arrived = self.most_arrived, max(self.most_arrived, self.arrived)
        return self.arrived > before

    def write(self, chunks: Iterable[bytes]) -> None:
        """Add what arrives, at most one chunk too much."""
        with (
            self.part.open("ab" if self.arrived else "wb") as out,
            contextlib.suppress(isal_zlib.error),  # type: ignore[arg-type] # finish() finds it
        ):
            for chunk in chunks:
                self.arrived += len(chunk)
                self.compressed.update(chunk)
                for content in self.decompress(chunk):
                    self.stored.update(content)
                    out.write(content)
                if self.arrived > self.layer.size:
                    break

    def decompress(self, chunk: bytes) -> Iterator[bytes]:
        """What is stored of a chunk."""
        if self.layer.digest == f"sha256:{self.layer.stored_sha256}":
            yield chunk
            return
        while chunk:
            if self.gzip.eof:  # what follows is a gzip stream of its own
                self.gzip = isal_zlib.decompressobj(GZIP_WBITS)
            yield self.gzip.decompress(chunk)
            chunk = self.gzip.unused_data

    def finish(self) -> None:
        """Give the file its name if it is what it should be."""
        found = f"sha256:{self.compressed.hexdigest()}", self.stored.hexdigest()
        if found != (self.layer.digest, self.layer.stored_sha256):
            self.restart()
            raise TemporaryError(f"layer {self.layer.digest[7:19]} arrived damaged")
        self.part.rename(self.file)
