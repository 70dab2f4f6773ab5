"""Read container images from a registry, over the API of the OCI distribution specification."""

import base64
import email.utils
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
import urllib3
from jaxway_shared.errors import UserError

from jaxway.container.image_name import DIGEST_RE

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
TIMEOUT_S = (10, 60)  # to connect, and between two parts of an answer
BACKOFF_S = (1, 2, 4, 8)  # before each further attempt, unless the registry names its own
MAX_RETRY_AFTER_S = 600  # a registry that asks for more is not waited for
MAX_DOCUMENT = 4 << 20  # bytes; what registries allow a manifest to have

Json = dict[str, Any]
T = TypeVar("T")


class RegistryError(UserError):
    """The registry, or the way to it, refuses."""


class TemporaryError(Exception):
    """A failure after which another attempt may succeed.

    ``retry_after_s``: the wait that the registry asked for, if it did. ``progress``: more has
    arrived than ever before.
    """

    def __init__(
        self, problem: str, retry_after_s: float | None = None, progress: bool = False
    ) -> None:
        super().__init__(problem)
        self.retry_after_s, self.progress = retry_after_s, progress


class Session(requests.Session):
    """Sends credentials to the registry alone: not where it redirects to, and none of ~/.netrc."""

    def rebuild_auth(self, prepared_request: Any, response: requests.Response) -> None:
        if self.should_strip_auth(str(response.request.url), str(prepared_request.url)):
            prepared_request.headers.pop("Authorization", None)


@dataclass(frozen=True)
class Layer:
    """A layer of an image, as the registry has it.

    ``stored_sha256`` is the hexadecimal digest of what we store of it: of its content where gzip
    compresses it (the configuration's diff_id), else of the layer itself.
    """

    digest: str
    size: int
    media_type: str
    stored_sha256: str


@dataclass(frozen=True)
class Image:
    """An image for one architecture: the digest that its name stands for, and its parts."""

    digest: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(layer.size for layer in self.layers)


def sha256_digest(content: bytes) -> str:
    """Digest of a document as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Repository:
    """A repository of a registry, such as nvidia/jax; ``log`` gets each line about progress."""

    def __init__(self, host: str, name: str, log: Callable[[str], None]) -> None:
        self.host, self.name, self.log = host, name, log
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
        try:
            return self._image(reference, architecture)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                "JW126",
                f"{self.host} sent something that is not an image for {self.name}:{reference}: "
                f"{error!r}",
            ) from None

    def _image(self, reference: str, architecture: str) -> Image:
        body = self.document(f"manifests/{reference}")
        content = body
        if "manifests" in (index := json.loads(body)):
            platforms = {
                m["platform"]["architecture"]: m["digest"]
                for m in reversed(index["manifests"])  # the first of an architecture counts
                if m.get("platform", {}).get("os") == "linux"
            }
            self.check_architecture(architecture, list(platforms), reference)
            self.validate_digests(platforms[architecture])
            content = self.document(f"manifests/{platforms[architecture]}")
        manifest = json.loads(content)
        self.validate_digests(*(x["digest"] for x in (manifest["config"], *manifest["layers"])))
        config_bytes = self.document(f"blobs/{manifest['config']['digest']}")
        config = json.loads(config_bytes or "{}")
        if found := config.get("architecture"):  # an artifact has none
            self.check_architecture(architecture, [found], reference)
        if not manifest["layers"]:
            raise RegistryError("JW126", f"{self.host}/{self.name}:{reference} has no layers")
        return Image(sha256_digest(body), config_bytes, self.layers(manifest, config))

    def layers(self, manifest: Json, config: Json) -> tuple[Layer, ...]:
        """The layers that a manifest names."""
        layers = manifest["layers"]
        diff_ids = config["rootfs"]["diff_ids"] if "rootfs" in config else [""] * len(layers)
        result = []
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            stored = diff_id if layer["mediaType"].endswith("gzip") else layer["digest"]
            self.validate_digests(stored)
            stored = stored.removeprefix("sha256:")
            result.append(Layer(layer["digest"], layer["size"], layer["mediaType"], stored))
        return tuple(result)

    def validate_digests(self, *digests: str) -> None:
        """Refuse what cannot be checked, and might be the path of another file."""
        for digest in digests:
            if not re.fullmatch(DIGEST_RE, digest):
                raise RegistryError(
                    "JW126", f"{self.host}/{self.name}: {digest!r} in its manifest is not a digest"
                )

    def check_architecture(self, wanted: str, available: list[str], reference: str) -> None:
        if wanted not in available:
            names = " and ".join(available) or "no Linux"
            raise RegistryError(
                "JW127",
                f"{self.host}/{self.name}:{reference} is for {names}, but this machine is "
                f"{wanted}: choose an image for {wanted}",
            )

    def document(self, path: str) -> bytes:
        """A manifest or configuration; one that is asked for by digest is checked."""

        def attempt() -> bytes:
            with self.get(path, {"Accept": ", ".join(MANIFESTS)}) as answer:
                try:
                    content: bytes = answer.raw.read(MAX_DOCUMENT, decode_content=True)
                except urllib3.exceptions.HTTPError as error:
                    raise TemporaryError(f"the connection broke: {reason(error)}") from None
            wanted = path.rpartition("/")[2]
            if wanted.startswith("sha256:") and sha256_digest(content) != wanted:
                raise RegistryError(
                    "JW126",
                    f"{self.host} sent {sha256_digest(content)} when asked for {wanted}",
                )
            return content

        return self.with_retries(attempt)

    def with_retries(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns, tried again with growing pauses while that may help."""
        pauses = iter(BACKOFF_S)
        while True:
            try:
                return attempt()
            except TemporaryError as error:
                if error.progress:
                    pauses = iter(BACKOFF_S)
                pause = next(pauses, None)
                if pause is None:
                    raise RegistryError(
                        "JW122",
                        f"{self.host}: {error}, {len(BACKOFF_S) + 1} times; try again later",
                    ) from None
                wait = error.retry_after_s or pause
                if wait > MAX_RETRY_AFTER_S:
                    raise RegistryError(
                        "JW122",
                        f"{self.host}: {error} and asks to wait; try again in {wait:,.0f} s",
                    ) from None
                self.log(f"{self.host}: {error}; trying again in {wait:g} s")
                time.sleep(wait)

    def get(self, path: str, headers: dict[str, str]) -> requests.Response:
        """The registry's answer to one request, its body yet to be read."""
        url = f"https://{self.host}/v2/{self.name}/{path}"
        try:
            answer = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
            # Not for where the registry has redirected to: that gets no credentials.
            if answer.status_code == requests.codes.unauthorized and not answer.history:
                answer.close()
                self.log_in(answer.headers.get("WWW-Authenticate", ""))
                answer = self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise self.connection_error(error) from None
        self.raise_for_status(answer, path.partition("/")[2])
        return answer

    def connection_error(self, error: requests.RequestException) -> Exception:
        """Whether a request that got no answer may be tried again, and why it failed."""
        if isinstance(error, requests.exceptions.SSLError):
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                return TemporaryError(f"no secure connection: {reason(error)}")
            return RegistryError(
                "JW125",
                f"{self.host} has no certificate that this machine trusts; if it should, set "
                f"SSL_CERT_FILE to its authority's file ({reason(error)})",
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return RegistryError(
                "JW124", f"the proxy in https_proxy does not work: {reason(error)}"
            )
        if isinstance(cause(error), urllib3.exceptions.NameResolutionError):
            return RegistryError(
                "JW123",
                f"{self.host} is unknown: the name is wrong, or this machine has no internet "
                "(compute nodes have none: pull on a login node)",
            )
        if isinstance(error, requests.exceptions.ConnectionError):
            return TemporaryError(f"no connection: {reason(error)}")
        return TemporaryError(reason(error))

    def raise_for_status(self, answer: requests.Response, what: str) -> None:
        code = answer.status_code
        if answer.ok:
            return
        answer.close()  # its body is never read
        if code in (401, 403):
            who = "these credentials" if credentials(self.host) else "anonymous users"
            raise RegistryError(
                "JW120",
                f"unauthorized: {self.host} does not let {who} read {self.name} (status {code}); "
                "check the image's name, and set APPTAINER_DOCKER_USERNAME and "
                "APPTAINER_DOCKER_PASSWORD, or use `apptainer registry login`",
            )
        if code == 404:
            raise RegistryError(
                "JW121", f"{self.host} has no {what} of {self.name}: check the image's name"
            )
        status = f"status {code} {answer.reason}"
        if code == 429 or code >= 500:
            raise TemporaryError(status, retry_after(answer))
        raise RegistryError("JW126", f"{self.host} did not send {what} of {self.name}: {status}")

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
                raise RegistryError(
                    "JW126", f"{self.host} asks for a login over an insecure connection"
                )
            self.authorization = basic
            granted = self.session.get(realm, params=asked, timeout=TIMEOUT_S)
            self.raise_for_status(granted, "token")
            token = granted.json()
            self.authorization = f"Bearer {token.get('token') or token.get('access_token')}"
            if not re.fullmatch("[!-~]+ [!-~]+", self.authorization):
                raise RegistryError("JW126", f"{self.host} sent an invalid token")


def cause(error: BaseException) -> BaseException:
    """What is below the wrappers of requests and urllib3."""
    below = [x for x in (getattr(error, "reason", None), *error.args) if isinstance(x, Exception)]
    return cause(below[0]) if below else error


def reason(error: BaseException) -> str:
    """The cause in one line, without the names of objects."""
    return re.sub(r"<.*?>(\(.*?\))?:? *|^.*?: (?=\[)", "", " ".join(str(cause(error)).split()))


def retry_after(answer: requests.Response) -> float | None:
    """Seconds that the registry asks to wait, given as such or as a date; None if it does not."""
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
