"""What the cluster is made of: root file systems and images, built once and cached.

Each part is a folder `<cache>/<name>-<key>`; the key is a hash of the recipe, so a changed recipe
is built anew and the old folder removed. A part is built in a temporary folder and renamed when it
is complete, so a build that was killed leaves nothing that looks finished.
"""

import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE.parents[1] / "requirements.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxway-cluster"

# Names and ids of the unprivileged users; fixed, so that files on shared folders keep their owner.
USERS = {"alice": 1001, "bob": 1002}
GROUP = ("training", 1000)

NODE_PACKAGES = (
    "apptainer,ca-certificates,curl,docker-registry,fuse3,git,iproute2,less,make,mariadb-server,"
    "munge,openssl,procps,psmisc,python3,python3-venv,slurm-client,slurm-wlm-mysql-plugin,"
    "slurmctld,slurmd,slurmdbd,squashfs-tools,squashfuse,tmux"
)
IMAGE_PACKAGES = "ca-certificates,python3"
REPOSITORY = "nvidia/jax"
PYTHON_TAGS = {"node": "3.13", "image": "3.11"}  # of Debian 13 and Debian 12
PLATFORM = "x86_64-manylinux_2_28"
DOCKER = "application/vnd.docker."


def log(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def call(*command: str | Path, env: dict[str, str] | None = None, text: str | None = None) -> str:
    """Standard output of a command; its errors become part of the exception."""
    done = subprocess.run(
        [str(c) for c in command],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"} | (env or {}),
        input=text or "",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        output, line = (done.stderr + done.stdout).strip()[-3000:], " ".join(map(str, command))
        raise RuntimeError(f"{line[:300]} failed ({done.returncode}):\n{output}")
    return done.stdout


# ---------------------------------------------------------------------------------- host tools


def install_host_tools(building: bool) -> None:
    """Debian packages that this machine lacks; none of them is a service."""
    needed = {"openssl": "openssl", "ip": "iproute2"}
    needed |= {"mmdebstrap": "mmdebstrap"} if building else {}
    missing = [package for tool, package in needed.items() if not shutil.which(tool)]
    if building and not shutil.which("uv"):
        missing.append("python3-venv")
    # It fails where another one updates: those of two clusters wait for each other.
    apt_get = ("flock", "/var/lib/dpkg", "apt-get")
    if building or missing:
        call(*apt_get, "update")  # mirror() reads the index, too
    if missing:
        log(f"installing {' '.join(missing)}")
        call(*apt_get, "install", "-y", "--no-install-recommends", *missing)


@functools.cache
def mirror() -> str:
    """The Debian mirror this machine uses itself, whichever that is."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())
    suite = release["VERSION_CODENAME"].strip('"')
    fields = "$(REPO_URI) $(SUITE) $(CODENAME) $(COMPONENT)"
    index = call("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
    for uri, *names in map(str.split, index.splitlines()):
        if names[-1] == "main" and suite in names[:-1]:
            return uri
    raise RuntimeError(f"apt has no source for {suite} main")


def mmdebstrap(target: Path, packages: str, *suites: str, hook: str = "true") -> None:
    """A Debian root file system in `target`, through this machine's own mirror and apt settings."""
    own = re.findall(r'^(Acquire::https?::\S+ ".+");$', call("apt-config", "dump"), re.MULTILINE)
    settings = [
        *own,
        # The mirror's Release file of unstable can be past its date.
        'Acquire::Check-Valid-Until "false"',
        'Acquire::Languages "none"',
        f'APT::Default-Release "{suites[0]}"',
    ]
    sources = "".join(f"deb {mirror()} {suite} main\n" for suite in suites)
    unneeded = ("man", "doc", "locale", "info")
    call(
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--include={packages}",
        *(f"--aptopt={s}" for s in settings),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in unneeded),
        f"--customize-hook={hook}",
        *(suites[0], target, "-"),
        text=sources,
    )


@functools.cache
def uv() -> str:
    """uv, which installs for another Python and resolves in a second; from PyPI if not there."""
    if found := shutil.which("uv"):
        return found
    home = CACHE / "uv"
    if not (home / "bin/uv").exists():
        call(sys.executable, "-m", "venv", home)
        call(home / "bin/pip", "install", "--quiet", "uv")
    return str(home / "bin/uv")


def pip_install(target: Path, python: str, *arguments: str | Path) -> None:
    """Install wheels for Python `python` into `target`, with the index pip is configured for."""
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    chosen = {"UV_DEFAULT_INDEX": index} if index and "UV_DEFAULT_INDEX" not in os.environ else {}
    call(
        *(uv(), "pip", "install", "--quiet", "--link-mode=copy", "--target", target),
        *("--python", sys.executable, "--python-version", python, "--python-platform", PLATFORM),
        *arguments,
        env=chosen,
    )


def compile_python(root: Path, folder: str, source: Path) -> None:
    """Byte-compile `source` with the Python of `root`, which sees it as `folder`: users cannot."""
    (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    # Some packages ship templates that are no valid Python; compileall's exit code counts them.
    script = 'mount --bind "$1" "$2$3"; chroot "$2" python3 -m compileall -qq -j 2 "$3" || true'
    call("unshare", "--mount", "sh", "-ec", script, "sh", source, root, folder)


RECIPE_FUNCTIONS = (mmdebstrap, pip_install, compile_python)


# ---------------------------------------------------------------------------------- the parts


def build_node(target: Path) -> None:
    """Root file system of every node. Apptainer is in Debian's unstable only."""
    users = [f"groupadd -g {GROUP[1]} {GROUP[0]}"] + [
        f"useradd -u {uid} -g {GROUP[0]} -s /bin/bash -d /p/home/jusers/{name}/jureca {name}"
        for name, uid in USERS.items()
    ]
    inside = " && ".join(["mkdir -p /p/home /p/project1 /p/scratch", *users])
    mmdebstrap(target, NODE_PACKAGES, "trixie", "unstable", hook=f'chroot "$1" sh -c "{inside}"')
    for path in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(target / path)


def build_environment(target: Path, node: Callable[[], Path]) -> None:
    """/p/software/jaxway: a virtual environment with the project's locked packages."""
    home, python = "/p/software/jaxway", PYTHON_TAGS["node"]
    environment = target / home[1:]
    packages = environment / f"lib/python{python}/site-packages"
    pip_install(packages, python, "--require-hashes", "-r", REQUIREMENTS)
    scripts = (packages / "bin").rename(environment / "bin")
    for script in scripts.iterdir():  # uv wrote this machine's interpreter into them
        first, _, rest = script.read_bytes().partition(b"\n")
        if first == b"#!/bin/sh":  # its form for long paths takes three lines
            rest = rest.split(b"\n", 2)[2]
        if first.startswith(b"#!"):
            script.write_bytes(f"#!{home}/bin/python3\n".encode() + rest)
    for name in ("python", "python3", f"python{python}"):
        (scripts / name).symlink_to(f"/usr/bin/python{python}")
    (environment / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {python}\n")
    compile_python(node(), home, environment)


def build_registry(target: Path) -> None:
    """Storage of docker-registry with one image for each list in images/.

    The folders are laid out as docker-registry does it itself; a push through a running registry
    would copy every layer twice more.
    """
    python = PYTHON_TAGS["image"]
    dist_packages = f"/usr/local/lib/python{python}/dist-packages"
    store = target / "docker/registry/v2"
    repository = store / "repositories" / REPOSITORY

    def link(path: str, digest: str) -> None:
        file = repository / path / "link"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(digest)

    def blob(content: Path, digest: str) -> None:
        data = store / "blobs/sha256" / digest[7:9] / digest[7:] / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        content.rename(data)
        link(f"_layers/sha256/{digest[7:]}", digest)

    def layer(folder: Path) -> tuple[str, dict[str, object]]:
        """Packs a folder; its plain digest and its descriptor. Level 1: quick, 10 % larger."""
        plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
        gzip = zlib.compressobj(1, wbits=31)
        archive = target / f"{folder.name}.tar.gz"
        tar = ["tar", "-C", str(folder), "--exclude=./dev/*", "--numeric-owner", "-c", "."]
        with subprocess.Popen(tar, stdout=subprocess.PIPE) as process, archive.open("wb") as file:
            assert process.stdout
            while chunk := process.stdout.read(1 << 20):
                plain.update(chunk)
                file.write(data := gzip.compress(chunk))
                packed.update(data)
            file.write(data := gzip.flush())
            packed.update(data)
            size = file.tell()
        if process.returncode:
            raise RuntimeError(f"tar of {folder.name} failed")
        digest = f"sha256:{packed.hexdigest()}"
        blob(archive, digest)
        kind = f"{DOCKER}image.rootfs.diff.tar.gzip"
        return f"sha256:{plain.hexdigest()}", {"mediaType": kind, "size": size, "digest": digest}

    def document(value: object) -> tuple[str, int]:
        text = json.dumps(value).encode()
        file = target / hashlib.sha256(text).hexdigest()
        file.write_bytes(text)
        blob(file, f"sha256:{file.name}")
        return f"sha256:{file.name}", len(text)

    def image(tag: str, packages: Path) -> None:
        folder = target / tag
        pip_install(folder / dist_packages[1:], python, "--no-deps", "-r", packages)
        # A tenth of the image, and of the time that every pull of it takes.
        unneeded = [
            folder / dist_packages[1:] / "bin",
            *(folder / dist_packages[1:]).rglob("tests"),
        ]
        for part in filter(Path.is_dir, unneeded):
            shutil.rmtree(part)
        compile_python(base, dist_packages, folder / dist_packages[1:])
        layers = [base_layer.result(), layer(folder)]
        config, size = document(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                    "Cmd": ["/bin/bash"],
                    "Labels": {
                        "org.opencontainers.image.title": f"{REPOSITORY}:{tag}",
                        "org.opencontainers.image.description": "Test stand-in, CPU only",
                    },
                },
                "rootfs": {"type": "layers", "diff_ids": [plain for plain, _ in layers]},
            }
        )
        kind = f"{DOCKER}container.image.v1+json"
        manifest, _ = document(
            {
                "schemaVersion": 2,
                "mediaType": f"{DOCKER}distribution.manifest.v2+json",
                "config": {"mediaType": kind, "size": size, "digest": config},
                "layers": [descriptor for _, descriptor in layers],
            }
        )
        for path in (
            f"revisions/sha256/{manifest[7:]}",
            f"tags/{tag}/current",
            f"tags/{tag}/index/sha256/{manifest[7:]}",
        ):
            link(f"_manifests/{path}", manifest)
        shutil.rmtree(folder)

    base = target / "base"
    mmdebstrap(base, IMAGE_PACKAGES, "bookworm")
    # The settings with which mmdebstrap had it made name releases that apt-get does not know later.
    unneeded = ("var/cache/apt", "var/lib/apt/lists", "etc/apt/apt.conf.d/99mmdebstrap")
    call("rm", "-rf", *(base / path for path in unneeded))
    (base / dist_packages[1:]).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        base_layer = pool.submit(layer, base)
        images = [pool.submit(image, f.stem, f) for f in sorted((HERE / "images").glob("*.txt"))]
        for each in images:
            each.result()
    shutil.rmtree(base)


# ---------------------------------------------------------------------------------- the cache


def location(name: str, recipe: object) -> Path:
    """Where a part is, or belongs: its name and a hash of how it is made and of its inputs."""
    code = [inspect.getsource(x) for x in (globals()[f"build_{name}"], *RECIPE_FUNCTIONS)]
    return CACHE / f"{name}-{hashlib.sha256(repr([code, recipe]).encode()).hexdigest()[:16]}"


def finish(path: Path, build: Callable[[Path], None]) -> Path:
    """Has `build` fill a temporary folder, unless the part is there; then gives it its name."""
    if not path.exists():
        started = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=CACHE))
        folder.chmod(0o755)
        build(folder)
        folder.rename(path)
        log(f"built {path.name} in {time.monotonic() - started:.0f} s")
    os.utime(path)
    for old in CACHE.glob(f"{path.name.split('-')[0]}-*"):
        # Another checkout's cluster may be running from it: leave it for a day after its last use.
        if time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old)
    return path


def main() -> None:
    """Prints every part's folder; what is missing is built, side by side. Needs the lock."""
    for left in CACHE.glob("tmp-*"):  # by a build that was killed
        shutil.rmtree(left)
    images = [(f.stem, f.read_text()) for f in sorted((HERE / "images").glob("*.txt"))]
    parts = {
        "node": location("node", [NODE_PACKAGES, USERS, GROUP]),
        "environment": location("environment", REQUIREMENTS.read_text()),
        "registry": location("registry", [IMAGE_PACKAGES, REPOSITORY, images]),
    }
    if building := not all(path.exists() for path in parts.values()):
        log("building what is not in the cache; this takes minutes")
    install_host_tools(building)
    with ThreadPoolExecutor() as pool:
        node = pool.submit(finish, parts["node"], build_node)
        others = [
            pool.submit(finish, parts["environment"], lambda x: build_environment(x, node.result)),
            pool.submit(finish, parts["registry"], build_registry),
        ]
        for part in (node, *others):
            part.result()
    print(json.dumps({name: str(path) for name, path in parts.items()}))


if __name__ == "__main__":
    main()
