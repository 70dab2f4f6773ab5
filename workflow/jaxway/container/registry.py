"""Read container images from a registry, over the API of the OCI distribution specification.

Runs on the host that pulls. Needs the package requests, which Snakemake brings.
"""

import base64
import contextlib
import email.utils
import hashlib
import json
import multiprocessing
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import requests
import urllib3
from isal import isal_zlib

from jaxway.files import TELL

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of an answer
PAUSES = (1, 2, 4, 8)  # seconds before each further attempt, unless the registry names its own
LONGEST_PAUSE = 600  # seconds; a registry that wants more is not waited for
CONNECTIONS = 4  # layers that are fetched at once
PIECE = 1 << 18  # bytes of a layer that are unpacked at once
GZIP = 31  # as zlib has it: the largest window, gzip's header and checksum
DIGEST = "sha256:[0-9a-f]{64}"
DOCUMENT = 4 << 20  # bytes; what registries allow a manifest to have

Json = dict[str, Any]
T = TypeVar("T")


class RegistryError(Exception):
    """The registry, or the way to it, refuses; the message is one sentence."""


class TemporaryError(Exception):
    """What another attempt may mend.

    ``pause``: seconds to wait before it, if the registry said so. ``progress``: some of what was
    wanted has arrived all the same.
    """

    def __init__(self, problem: str, pause: float | None = None, progress: bool = False) -> None:
        super().__init__(problem)
        self.pause, self.progress = pause, progress


class Session(requests.Session):
    """Sends credentials to the registry alone: not where it redirects to, and none of ~/.netrc."""

    def rebuild_auth(self, prepared_request: Any, response: requests.Response) -> None:
        if self.should_strip_auth(str(response.request.url), str(prepared_request.url)):
            prepared_request.headers.pop("Authorization", None)


@dataclass(frozen=True)
class Image:
    """An image for one architecture: the digest that its name stands for, and its parts.

    Of each layer ``digest``, ``size`` in bytes and ``mediaType`` are as the registry has them;
    ``kept`` is the hexadecimal digest of what stays: what is in it if gzip packs it, else the same.
    """

    digest: str
    config: bytes
    layers: list[Json]


def sha256(content: bytes) -> str:
    """Digest of a document as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Repository:
    """A repository of a registry, such as nvidia/jax; ``say`` gets each line about progress."""

    def __init__(self, host: str, name: str, say: Callable[[str], None]) -> None:
        self.host, self.name, self.say = host, name, say
        self.session = Session()
        self.session.verify = ssl.get_default_verify_paths().cafile or True
        self.session.auth = self.authorize  # of our own, so that requests reads no ~/.netrc
        self.authorization = ""

    def authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the credentials that the registry has asked for, if it has."""
        if self.authorization:
            request.headers["Authorization"] = self.authorization
        return request

    def image(self, reference: str, architecture: str) -> Image:
        """The image that a tag or digest stands for, for an architecture as Go names it."""
        body = self.document(f"manifests/{reference}")
        manifest = body
        if "manifests" in (index := json.loads(body)):
            platforms = {
                m["platform"]["architecture"]: m["digest"]
                for m in reversed(index["manifests"])  # the first of an architecture counts
                if m.get("platform", {}).get("os") == "linux"
            }
            self.refuse_other(architecture, list(platforms), reference)
            self.refuse_names(platforms[architecture])
            manifest = self.document(f"manifests/{platforms[architecture]}")
        parts = json.loads(manifest)
        self.refuse_names(*(x["digest"] for x in (parts["config"], *parts["layers"])))
        config = self.document(f"blobs/{parts['config']['digest']}")
        described, layers = json.loads(config or "{}"), parts["layers"]
        if found := described.get("architecture"):  # an artifact has none
            self.refuse_other(architecture, [found], reference)
        archives = described["rootfs"]["diff_ids"] if "rootfs" in described else [""] * len(layers)
        for layer, archive in zip(layers, archives, strict=True):
            kept = archive if layer["mediaType"].endswith("gzip") else layer["digest"]
            self.refuse_names(kept)
            layer["kept"] = kept.removeprefix("sha256:")
        return Image(sha256(body), config, layers)

    def refuse_names(self, *digests: str) -> None:
        """What is no digest cannot be checked, and might be the path of somebody's file."""
        for digest in digests:
            if not re.fullmatch(DIGEST, digest):
                raise RegistryError(f"{self.host}/{self.name} names a part of the image {digest!r}")

    def refuse_other(self, wanted: str, there: list[str], reference: str) -> None:
        if wanted not in there:
            names = " and ".join(there) or "no Linux"
            raise RegistryError(
                f"{self.host}/{self.name}:{reference} is for {names}, but this machine is "
                f"{wanted}: name an image for {wanted}"
            )

    def document(self, path: str) -> bytes:
        """A manifest or configuration; one that is asked for by digest is checked."""

        def attempt() -> bytes:
            with self.get(path, {"Accept": ", ".join(MANIFESTS)}) as answer:
                try:
                    content = answer.raw.read(DOCUMENT, decode_content=True)
                except urllib3.exceptions.HTTPError as error:
                    raise TemporaryError(f"the connection broke: {reason(error)}") from None
            wanted = path.rpartition("/")[2]
            if wanted.startswith("sha256:") and sha256(content) != wanted:
                raise RegistryError(
                    f"{self.host} sent {sha256(content)} where {wanted} was asked for"
                )
            return content

        return self.persistently(attempt)

    def fetch(self, layers: list[Json], folder: Path) -> None:
        """Have what is ``kept`` of every layer in ``folder``, in a file of that name.

        Finished ones that are there stay; unfinished ones are removed when this fails.
        """
        files = {folder / layer["kept"]: layer for layer in layers}
        missing = [Arrival(layer, file) for file, layer in files.items() if not file.exists()]
        left, began = sum(layer.size for layer in missing), time.monotonic()

        def arrived() -> str:
            here = sum(layer.arrived for layer in missing)
            speed = here / (time.monotonic() - began)
            return f"{here / 1e6:,.0f} of {left / 1e6:,.0f} MB, {speed / 1e6:,.0f} MB/s"

        finished = 0
        try:
            # Its threads end with the program, also while they wait for the registry.
            with ThreadPool(CONNECTIONS) as pool:
                results = pool.imap_unordered(self.fetch_layer, missing)
                while finished < len(missing):
                    try:
                        results.next(TELL)
                        finished += 1
                    except multiprocessing.TimeoutError:
                        pass
                    self.say(f"layers: {finished} of {len(missing)} are here, {arrived()}")
        finally:
            for layer in missing:
                layer.part.unlink(missing_ok=True)

    def fetch_layer(self, layer: "Arrival") -> None:
        """Fetch a layer; a further attempt goes on where the last one stopped."""

        def attempt() -> None:
            start = layer.arrived
            if start < layer.size:
                headers = {"Range": f"bytes={start}-"} if start else {}
                with self.get(f"blobs/{layer.digest}", headers) as answer:
                    if answer.status_code != requests.codes.partial:
                        layer.begin()
                    try:
                        layer.take(answer.raw.stream(PIECE, decode_content=False))
                    except urllib3.exceptions.HTTPError as error:
                        broke = f"the connection broke: {reason(error)}"
                        raise TemporaryError(broke, progress=layer.arrived > start) from None
            layer.finish()

        self.persistently(attempt)

    def persistently(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, tried again with growing pauses while that may help."""
        pauses = iter(PAUSES)
        while True:
            try:
                return attempt()
            except TemporaryError as problem:
                if problem.progress:
                    pauses = iter(PAUSES)
                pause = next(pauses, None)
                if pause is None:
                    raise RegistryError(
                        f"{self.host}: {problem}, {len(PAUSES) + 1} times; try again later"
                    ) from None
                wait = problem.pause or pause
                if wait > LONGEST_PAUSE:
                    raise RegistryError(
                        f"{self.host}: {problem} and asks to wait; try again in {wait:,.0f} s"
                    ) from None
                self.say(f"{self.host}: {problem}; trying again in {wait:g} s")
                time.sleep(wait)

    def get(self, path: str, headers: dict[str, str]) -> requests.Response:
        """The registry's answer to one request, its body yet to be read."""
        url = f"https://{self.host}/v2/{self.name}/{path}"
        try:
            answer = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
            # Not for where the registry has redirected to: that gets no credentials.
            if answer.status_code == requests.codes.unauthorized and not answer.history:
                self.log_in(answer.headers.get("WWW-Authenticate", ""))
                answer = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise TemporaryError(f"no secure connection: {reason(error)}") from None
            raise RegistryError(
                f"{self.host} has no certificate that this machine trusts; if it should, name its "
                f"authority's file in SSL_CERT_FILE ({reason(error)})"
            ) from None
        except requests.exceptions.ProxyError as error:
            raise RegistryError(
                f"the proxy that https_proxy names cannot be used: {reason(error)}"
            ) from None
        except requests.exceptions.ConnectionError as error:
            if isinstance(cause(error), urllib3.exceptions.NameResolutionError):
                raise RegistryError(
                    f"{self.host} is not known here: the name is wrong, or this machine has no "
                    "internet (compute nodes have none: pull on a login node)"
                ) from None
            raise TemporaryError(f"no connection: {reason(error)}") from None
        except requests.RequestException as error:
            raise TemporaryError(reason(error)) from None
        self.refuse_failure(answer, path.partition("/")[2])
        return answer

    def refuse_failure(self, answer: requests.Response, what: str) -> None:
        code = answer.status_code
        if answer.ok:
            return
        if code in (401, 403):
            raise RegistryError(
                f"{self.host} lets {'these credentials' if credentials(self.host) else 'nobody'} "
                f"read {self.name} without a right to it (it answers {code}): check the image's "
                "name, and set APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD, or use "
                "`apptainer registry login`"
            )
        if code == 404:
            raise RegistryError(f"{self.host} has no {what} of {self.name}: check the image's name")
        answers = f"it answers {code} {answer.reason}"
        if code == 429 or code >= 500:
            raise TemporaryError(answers, retry_after(answer))
        raise RegistryError(f"{self.host} does not send {what} of {self.name}: {answers}")

    def log_in(self, challenge: str) -> None:
        """Get the authorization that a 401 asks for; none where that takes credentials we lack."""
        known = credentials(self.host)
        basic = "Basic " + base64.b64encode(":".join(known).encode()).decode() if known else ""
        scheme, _, fields = challenge.partition(" ")
        if scheme.lower() == "basic":
            self.authorization = basic
        if scheme.lower() == "bearer":
            asked = requests.utils.parse_dict_header(fields)
            realm = asked.pop("realm", None) or ""
            if not realm.startswith("https://"):
                raise RegistryError(f"{self.host} wants a login over a connection that is not safe")
            self.authorization = basic
            granted = self.session.get(realm, params=asked, timeout=TIMEOUT)
            self.refuse_failure(granted, "token")
            token = granted.json()
            self.authorization = f"Bearer {token.get('token') or token.get('access_token')}"
            if not re.fullmatch("[!-~]+ [!-~]+", self.authorization):
                raise RegistryError(f"{self.host} grants a token that is none")


class Arrival:
    """A layer on its way into a file: how much has arrived, hashed and unpacked as it did."""

    def __init__(self, layer: Json, file: Path) -> None:
        self.digest, self.size, self.file = layer["digest"], layer["size"], file
        self.part = file.with_name(f"{file.name}.part")
        self.begin()

    def begin(self) -> None:
        """Forget what has arrived."""
        self.arrived, self.packed, self.kept = 0, hashlib.sha256(), hashlib.sha256()
        self.gzip = isal_zlib.decompressobj(GZIP)

    def take(self, pieces: Iterable[bytes]) -> None:
        """Add what arrives, at most one piece too much."""
        with (
            self.part.open("ab" if self.arrived else "wb") as out,
            contextlib.suppress(isal_zlib.error),  # type: ignore[arg-type] # finish() finds it
        ):
            for piece in pieces:
                self.arrived += len(piece)
                self.packed.update(piece)
                for content in self.unpack(piece):
                    self.kept.update(content)
                    out.write(content)
                if self.arrived > self.size:
                    break

    def unpack(self, piece: bytes) -> Iterator[bytes]:
        """What stays of a piece."""
        if self.digest == f"sha256:{self.file.name}":
            yield piece
            return
        while piece:
            if self.gzip.eof:  # what follows is packed by itself
                self.gzip = isal_zlib.decompressobj(GZIP)
            yield self.gzip.decompress(piece)
            piece = self.gzip.unused_data

    def finish(self) -> None:
        """Give the file its name if it is what it should be."""
        found = f"sha256:{self.packed.hexdigest()}", self.kept.hexdigest()
        if found != (self.digest, self.file.name):
            self.begin()
            raise TemporaryError(f"layer {self.digest[7:19]} arrived damaged")
        self.part.rename(self.file)


def cause(error: BaseException) -> BaseException:
    """What is below the wrappers of requests and urllib3."""
    below = [x for x in (getattr(error, "reason", None), *error.args) if isinstance(x, Exception)]
    return cause(below[0]) if below else error


def reason(error: BaseException) -> str:
    """The cause in one line, without the names of objects."""
    return re.sub(r"<.*?>(\(.*?\))?:? *|^.*?: (?=\[)", "", " ".join(str(cause(error)).split()))


def retry_after(answer: requests.Response) -> float | None:
    """Seconds that the registry asks to wait, given as such or as a date; None, it does not."""
    value = answer.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(1.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def credentials(host: str) -> tuple[str, str] | None:
    """User and password for a registry: from Apptainer's variables, else from a login's file."""
    names = ("APPTAINER_DOCKER_USERNAME", "APPTAINER_DOCKER_PASSWORD")
    if all(name in os.environ for name in names):
        return os.environ[names[0]], os.environ[names[1]]
    docker = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    for file in (Path.home() / ".apptainer/docker-config.json", docker / "config.json"):
        try:
            entry = json.loads(file.read_text())["auths"][host]
            user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
            return user, password
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nothing for this host, or kept elsewhere
    return None
