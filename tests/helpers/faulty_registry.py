"""A container registry that misbehaves on request, and a proxy: a program on a node, or in a test.

    python3 faulty_registry.py FOLDER   # which holds the certificate: crt and key

Under every repository's name it serves the same tiny image, with these tags:

- latest: a manifest; other: the same, but other bytes; arm64: for the wrong architecture
- mixed: layers packed in every way, one of them there twice
- path, tag, content: parts that no digest names; short: more layers than its configuration has
- index, arm64-index: the same in an index, the first with both architectures
- sif: FOLDER/image.sif as an ORAS artifact, if a test has put it there

FOLDER/ready.json says the ports, the digests of the tags, and those of the layers with what is in
them, the largest last.
FOLDER/log.jsonl gets a line for each request, without any credential. FOLDER/faults.json is a list
of faults, read again when it is another file. A fault has a regular expression `path` and:

- times: only the first so many requests; without it, all
- status, headers: answer with this status
- cut: reset the connection after so many bytes of the body
- corrupt: change a byte of the body
- whole: ignore that only a range is wanted
- hold: send half of the body and log it; the rest once the faults have changed
- serve: answer with the manifest of this tag instead
- redirect: send the client to this host name, same port
- auth, credentials: demand "basic" or "bearer" authentication. `credentials` is the SHA-256 of
  what the client has to send; without it anybody gets a bearer token.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import socket
import ssl
import struct
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tiny_image import Content, layers, sha256

Json = dict[str, Any]


# ---------------------------------------------------------------------------------- the registry


class Log:
    """Lines of JSON in a file, from many threads."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("a"), threading.Lock()

    def write(self, **fields: Any) -> None:
        with self._lock:
            print(json.dumps({"time": time.time(), **fields}), file=self._file, flush=True)


class Registry(ThreadingHTTPServer):
    """The content, and the faults that the tests want at the moment."""

    daemon_threads = True

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self.log, self.content = folder, log, Content()
        self._lock = threading.Lock()
        self._read = (0, 0)  # which file the faults come from
        self._faults: list[Json] = []
        self._seen: list[int] = []  # requests that each fault was meant for
        super().__init__(("", 0), RegistryHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the request's own thread, so nobody waits for another's TLS handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "crt", self.folder / "key")
        with (
            contextlib.suppress(OSError),  # who goes away or does not trust the certificate
            context.wrap_socket(request, server_side=True) as secure,
        ):
            super().finish_request(secure, client_address)  # type: ignore[arg-type]

    def fault(self, path: str, count: bool = True) -> Json:
        """All that is to go wrong with this request."""
        file = self.folder / "faults.json"
        with self._lock:
            status = file.stat()
            if self._read != (status.st_ino, status.st_mtime_ns):
                self._read = (status.st_ino, status.st_mtime_ns)
                self._faults = json.loads(file.read_text())
                self._seen = [0] * len(self._faults)
            found: Json = {}
            for n, fault in enumerate(self._faults):
                if re.search(fault["path"], path):
                    self._seen[n] += count
                    if self._seen[n] <= fault.get("times", self._seen[n]):
                        found |= fault
            return found


def token(fault: Json) -> str:
    """The bearer token for a fault's credentials."""
    return sha256(b"token for " + fault.get("credentials", "anybody").encode())


class RegistryHandler(BaseHTTPRequestHandler):
    """The part of the OCI distribution specification that a pull needs."""

    protocol_version = "HTTP/1.1"
    server: Registry

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path.startswith("/token/"):
            self.grant()
            return
        fault = self.server.fault(self.path)
        port = self.server.server_port
        if "auth" in fault and not self.allowed(fault):
            repository = self.path.split("/", 2)[2].rpartition("/")[0].rpartition("/")[0]
            realm = f"https://{self.headers['Host']}/token/{repository}"
            scope = f'service="test",scope="repository:{repository}:pull"'
            bearer = f'Bearer realm="{realm}",{scope}'
            challenge = bearer if fault["auth"] == "bearer" else 'Basic realm="test"'
            self.send(401, b"{}", {"WWW-Authenticate": challenge})
        elif "redirect" in fault:
            path = self.path.replace("/v2/", "/elsewhere/", 1)
            self.send(307, b"", {"Location": f"https://{fault['redirect']}:{port}{path}"})
        elif "status" in fault:
            self.send(fault["status"], b"{}", fault.get("headers", {}))
        else:
            self.send_content(fault)

    def allowed(self, fault: Json) -> bool:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if fault["auth"] == "bearer":
            return scheme == "Bearer" and value == token(fault)
        return scheme == "Basic" and sha256(value.encode()) == fault["credentials"]

    def grant(self) -> None:
        """A bearer token for who has the credentials."""
        repository = self.path.removeprefix("/token/").partition("?")[0]
        fault = self.server.fault(f"/v2/{repository}/", count=False)
        if "credentials" in fault and not self.allowed(fault | {"auth": "basic"}):
            self.send(401, b"{}")
        else:
            self.send(200, json.dumps({"token": token(fault)}).encode())

    def send_content(self, fault: Json) -> None:
        content, (kind, name) = self.server.content, self.path.rsplit("/", 2)[1:]
        if name == "sif" and "sif" not in content.tags:
            content.add_sif((self.server.folder / "image.sif").read_bytes())
        digest = content.tags.get(fault.get("serve", name), name)
        found = content.manifests if kind == "manifests" else content.blobs
        if self.path == "/v2/":
            self.send(200, b"{}")
        elif digest not in found:
            self.send(404, b"{}")
        else:
            data = found[digest]
            media = json.loads(data)["mediaType"] if kind == "manifests" else ""
            headers = {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
            headers["Content-Type"] = media or "application/octet-stream"
            status = 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and not fault.get("whole"):
                first, last = int(asked[1]), int(asked[2] or len(data) - 1)
                status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
                data = data[first : last + 1]
            self.send(status, data, headers, fault)

    def send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        fault: Json | None = None,
    ) -> None:
        """Sends the whole answer, as well as the fault lets it."""
        fault = fault or {}
        self.server.log.write(
            method=self.command,
            path=self.path,
            range=self.headers.get("Range"),
            status=status,
            authorization="Authorization" in self.headers,
        )
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.get("corrupt"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        half = fault.get("cut", len(data) // 2)
        self.wfile.write(data[:half])
        if "cut" in fault:
            self.reset()
            return
        if fault.get("hold"):
            self.server.log.write(held=self.path)
            while self.server.fault(self.path, count=False).get("hold"):
                time.sleep(0.02)
        self.wfile.write(data[half:])

    def reset(self) -> None:
        """Resets the connection once the other side has all that was sent."""
        connection = self.connection
        while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
            time.sleep(0.01)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(connection.detach())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


# ------------------------------------------------------------------------------------- the proxy


class ProxyHandler(BaseHTTPRequestHandler):
    """Connects to where the client asks for, and forwards both ways."""

    log: Log

    def do_CONNECT(self) -> None:
        self.log.write(method="CONNECT", path=self.path)
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=self.pass_on, args=(there, self.connection)).start()
            self.pass_on(self.connection, there)
        self.close_connection = True

    @staticmethod
    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one side closed it
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


def start(folder: Path) -> tuple[Registry, ThreadingHTTPServer]:
    """Starts registry and proxy in threads, and says in FOLDER/ready.json where they are."""
    ProxyHandler.log = log = Log(folder / "log.jsonl")
    registry, proxy = Registry(folder, log), ThreadingHTTPServer(("", 0), ProxyHandler)
    for server in (registry, proxy):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ready = {
        "port": registry.server_port,
        "proxy": proxy.server_port,
        "tags": registry.content.tags,
        "layers": [x["digest"] for x in registry.content.layers],
        "contents": [sha256(layer) for layer in layers()],
    }
    (folder / "ready.part").write_text(json.dumps(ready))
    (folder / "ready.part").rename(folder / "ready.json")
    return registry, proxy


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("folder", type=Path)
    start(arguments.parse_args().folder)
    threading.Event().wait()


if __name__ == "__main__":
    main()
