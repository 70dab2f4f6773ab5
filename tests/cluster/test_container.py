"""The container on the cluster: entering it, packages on top of it, and whose it is."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxway.launch import PACKAGES
from nodes import Checkout, Cluster, Pull

CONTAINERS = "/p/scratch/training/jureca_containers"
OTHER = "profiles/builds"  # a copy of profiles/jureca for a site where users may build containers

pytestmark = pytest.mark.usefixtures("repaired")


@pytest.fixture(scope="module")
def checkout(cluster: Cluster, pull: Pull) -> Iterator[Checkout]:
    """A checkout with a pulled container, and packages to add to it."""
    checkout = Checkout(cluster, name="container")
    checkout.configure("plain", {})
    password = {"APPTAINER_DOCKER_USERNAME": "alice", "APPTAINER_DOCKER_PASSWORD": pull.password}
    with checkout.start("plain.yaml", "smoke_test", "report", **password) as snakemake:
        code, output = snakemake.wait(400)
    assert code == 0, output
    (checkout.path("output")).write_text(output)
    make_packages(checkout)
    yield checkout
    added = f"{CONTAINERS}/jax-*-????????{{,.sif}}{{,.json,.digest,.runs}}"
    cluster.run(f"rm -rf {checkout.folder} {added}", user="root")


def make_packages(checkout: Checkout) -> None:
    """A wheel and a Debian package in the checkout, and a site that may build containers."""
    for name, needed in (("hello", "numpy"), ("newer", "jax>=99")):
        info = (
            f"Metadata-Version: 2.1\nName: {name}-jaxway\nVersion: 1.0\nRequires-Dist: {needed}\n"
        )
        with zipfile.ZipFile(checkout.path(f"{name}_jaxway-1.0-py3-none-any.whl"), "w") as wheel:
            wheel.writestr(f"{name}_jaxway.py", f"GREETING = '{name}'\n")
            folder = f"{name}_jaxway-1.0.dist-info"
            wheel.writestr(f"{folder}/METADATA", info)
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "")
    control = (
        "Package: hello-debian\nVersion: 2.0\nArchitecture: all\nMaintainer: a\nDescription: b\n"
    )
    deb = checkout.path("deb")
    (deb / "DEBIAN").mkdir(parents=True)
    (deb / "DEBIAN/control").write_text(control)
    (deb / "usr/share/hello-debian").mkdir(parents=True)
    for part in (deb, *deb.rglob("*")):
        part.chmod(0o755 if part.is_dir() else 0o644)
    checkout.cluster.run(f"cd {checkout.folder}; dpkg-deb --build --root-owner-group deb hello.deb")
    site = checkout.path("profiles/jureca/site.yaml").read_text()
    checkout.path(OTHER).mkdir()
    text = site.replace("container_build: false", "container_build: true")
    assert text != site
    checkout.path(f"{OTHER}/site.yaml").write_text(text)
    profile = checkout.path("profiles/jureca/config.yaml").read_text()
    text = profile.replace('slurm_profile("jureca")', f'slurm_profile("{Path(OTHER).name}")')
    assert text != profile
    text += "apptainer-args: --nv --bind $SCRATCH --bind $PROJECT\n"
    checkout.path(f"{OTHER}/config.yaml").write_text(text)


def in_container(
    checkout: Checkout, *words: str, profile: str = "profiles/jureca", config: str = "plain.yaml"
) -> subprocess.CompletedProcess[str]:
    program = ["python3", "workflow/jaxway", "exec", "--profile", profile, "--configfile", config]
    shell = f'cd {checkout.folder}; export SBATCH_ACCOUNT=training; exec "$@"'
    line = ["bash", "-c", shell, "bash", *program, *words]
    return checkout.cluster.run(line, check=False)


# -------------------------------------------------------------------------------------- shell, exec

WHERE = "import jax, os, socket; print(socket.gethostname(), jax.__version__, os.getcwd())"


def test_exec_runs_on_a_gpu_node_or_here(cluster: Cluster, checkout: Checkout) -> None:
    for words, node in (([], "jrc010"), (["--here"], cluster.login)):
        done = in_container(checkout, *words, "python3", "-c", WHERE)
        host, version, folder = done.stdout.split()
        assert host.startswith(node), done.stderr
        assert (version, folder) == ("0.4.33", checkout.folder)
    assert in_container(checkout, "sh", "-c", "exit 7").returncode == 7


def test_shell_on_a_terminal(cluster: Cluster, checkout: Checkout) -> None:
    program = "python3 workflow/jaxway shell --profile profiles/jureca --configfile plain.yaml"
    line = (
        f'export SBATCH_ACCOUNT=training; cd {checkout.folder}; script -qec "{program}" /dev/null'
    )
    done = cluster.run(line, input="hostname; tty; echo $NCCL_SOCKET_IFNAME; exit\n")
    assert {"ib0", "/dev/pts/0"} <= {*done.stdout.split()}
    assert "jrc010" in done.stdout


# ------------------------------------------------------------------------- what goes wrong early


def test_why_a_container_does_not_start_is_in_the_jobs_log(checkout: Checkout) -> None:
    binds = {"environment": {"APPTAINER_BINDPATH": "/missing"}}
    with checkout.start(checkout.configure("bind", binds), "smoke_test") as snakemake:
        code, output = snakemake.wait(300)
    assert code == 1
    assert "/missing" in checkout.path("logs/smoke_test.log").read_text()
    assert "/missing" in output


def test_code_that_the_container_does_not_see_is_named_before_the_queue(
    cluster: Cluster, checkout: Checkout
) -> None:
    folder = "/p/project1/training/alice/elsewhere"
    cluster.run(f"mkdir -p {folder}; touch {folder}/prog.py")
    training = {"program": "command", "command": f"python3 {folder}/prog.py"}
    config: dict[str, object] = {"train": {"a": training}}
    with checkout.start(checkout.configure("code", config), "train", "--dry-run") as snakemake:
        _, output = snakemake.wait(120)
    assert f"train.a.command: the container does not see {folder}/prog.py" in output
    config["environment"] = {"APPTAINER_BIND": folder}
    output = checkout.run(checkout.configure("code", config), "train", "--dry-run", timeout=120)
    assert "the container sees workflow, scratch and the files of commands" in output


# --------------------------------------------------------------------------------------- packages


def test_packages_in_a_folder(cluster: Cluster, checkout: Checkout) -> None:
    """As JURECA's users get them: bound read-only, and in the provenance."""
    wheel = f"{checkout.folder}/hello_jaxway-1.0-py3-none-any.whl"
    cluster.run(f"cp {wheel} $SCRATCH")  # the profile binds that folder
    wheel = f"/p/scratch/training/{Path(wheel).name}"
    config = checkout.configure("folder", {"packages": {"python": [wheel]}})
    checkout.run(config, "smoke_test", timeout=300)
    container = json.loads(checkout.path("results/smoke_test.json").read_text())["provenance"]
    container = container["container"]
    assert container["packages"] == {"python": [wheel], "debian": []}
    (installed,) = container["installed"]
    assert installed.startswith("hello-jaxway @ file://")
    assert container["digest"] != container["base"]["digest"]
    (folder,) = cluster.path(CONTAINERS).glob("jax-*-????????")
    assert (folder / "hello_jaxway.py").exists()
    assert not (folder / "numpy").exists()  # which it needs, but the image has
    show = "import hello_jaxway; print(hello_jaxway.GREETING, hello_jaxway.__file__)"
    done = in_container(checkout, "python3", "-c", show, config=config)
    assert done.stdout.split() == ["hello", f"{PACKAGES}/hello_jaxway.py"]
    show = "import jax, numpy; print(jax.__version__, jax.__file__, numpy.__file__)"
    with_packages = in_container(checkout, "python3", "-c", show, config=config).stdout
    assert with_packages == in_container(checkout, "python3", "-c", show).stdout != ""
    touch = in_container(checkout, "touch", f"{PACKAGES}/new", config=config)
    assert "Read-only file system" in touch.stderr
    assert "Nothing to be done" in checkout.run(config, "smoke_test", "--dry-run", timeout=60)


def test_packages_in_a_sif_of_their_own(cluster: Cluster, checkout: Checkout) -> None:
    wheel = f"{checkout.folder}/hello_jaxway-1.0-py3-none-any.whl"
    packages = {"python": [wheel], "debian": [f"{checkout.folder}/hello.deb"]}
    config = checkout.configure("built", {"packages": packages})
    profile = f"--profile={OTHER}"
    snakemake = f".venv/bin/snakemake {profile} --configfile={config} smoke_test"
    cluster.run(f"cd {checkout.folder}; SBATCH_ACCOUNT=training {snakemake}", timeout=300)
    record = json.loads(checkout.path("results/smoke_test.json").read_text())["provenance"]
    installed = record["container"]["installed"]
    assert any(name.startswith("hello-jaxway @") for name in installed)
    assert "hello-debian=2.0" in installed
    show = "import hello_jaxway; print(hello_jaxway.__file__)"
    done = in_container(checkout, "python3", "-c", show, profile=OTHER, config=config)
    assert "dist-packages/hello_jaxway.py" in done.stdout, done.stderr
    done = in_container(checkout, "ls", "/usr/share/hello-debian", profile=OTHER, config=config)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("profile", ["profiles/jureca", OTHER])
def test_package_that_wants_another_jax_is_refused(
    cluster: Cluster, checkout: Checkout, profile: str
) -> None:
    wheel = "/p/scratch/training/newer_jaxway-1.0-py3-none-any.whl"
    cluster.run(f"cp {checkout.folder}/{Path(wheel).name} {wheel}")
    config = checkout.configure("newer", {"packages": {"python": [wheel]}})
    # Without internet, pip would ask an index for long.
    variables = "SBATCH_ACCOUNT=training PIP_NO_INDEX=1"
    snakemake = f"{variables} .venv/bin/snakemake --profile={profile} --configfile={config}"
    done = cluster.run(f"cd {checkout.folder}; {snakemake} smoke_test", check=False)
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "newer-jaxway 1.0 depends on jax>=99, but the image has jax==0.4.33: choose" in output
    assert not [*cluster.path(CONTAINERS).glob(".*.part")]


def test_missing_package_is_one_sentence(checkout: Checkout) -> None:
    config = checkout.configure("missing", {"packages": {"python": ["/nowhere/a.whl"]}})
    with checkout.start(config, "smoke_test") as snakemake:
        code, output = snakemake.wait(120)
    assert code == 1
    assert "jaxway add-packages: apptainer exec failed" in output
    assert "/nowhere/a.whl" in output


# --------------------------------------------------------------------------------------- password


def test_run_leaves_no_password(cluster: Cluster, pull: Pull, checkout: Checkout) -> None:
    """In the environment of the whole run; registry/test_credentials.py has one that is used."""
    assert pull.password not in pull.output + checkout.path("output").read_text()
    assert checkout.path("results/report.html").exists()
    folders = [checkout.path("."), cluster.path("/p/scratch"), cluster.path("/p/home")]
    files = [
        f for folder in folders for f in folder.rglob("*") if f.is_file() and not f.is_symlink()
    ]
    assert len(files) > 100
    assert [f for f in files if pull.password.encode() in f.read_bytes()] == []


# ------------------------------------------------------------------------------------ another user


def test_container_of_another_user_is_one_sentence(cluster: Cluster, checkout: Checkout) -> None:
    """Where others may not open the folder, before any job is planned."""
    theirs = Checkout(cluster, user="bob", name="theirs")
    cluster.run(f"chmod 700 {CONTAINERS}")
    try:
        with theirs.start(theirs.configure("plain", {}), "smoke_test", "--dry-run") as snakemake:
            code, output = snakemake.wait(120)
    finally:
        cluster.run(f"chmod 2775 {CONTAINERS}")
        cluster.run(f"rm -rf {theirs.folder}", user="root")
    assert code == 1
    assert f"you may not read {CONTAINERS}/jax.sif: ask its owner" in output
    assert "Traceback" not in output
