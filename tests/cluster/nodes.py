"""Runs commands on the test cluster, for tests."""

import json
import os
import shlex
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quick
from enter import COMPUTE, LOGIN, first_process, login_shell, run_folder

IMAGE = "docker://nvcr.io/nvidia/jax:24.10-maxtext-py3"
COMMAND = Path(__file__).parent / "cluster"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # each has a cluster of its own
    os.environ["JAXWAY_CLUSTER_RUN"] = f"{run_folder()}-{worker}"
BUSY = 4  # on a machine that computes other things anything may take so many times as long
UNSUITABLE = 77  # exit code of `cluster up` on a machine that cannot have one

# What `make setup` does in a checkout, with the nodes' packages in place of a download.
MAKE_SETUP = """
set -e
python3 -m venv --without-pip $1
packages=$(echo $1/lib/python3*/site-packages)
printf '%s\\n' $PWD/workflow $PWD/workflow/scripts /p/software/jaxway/lib/python3*/site-packages \\
  > $packages/jaxway.pth
python=$(realpath -s $1)/bin/python3
for name in snakemake jaxway; do
  printf '#!%s\\nfrom %s.cli import main\\nmain()\\n' $python $name > $1/bin/$name
  chmod +x $1/bin/$name
done
"""


class Cluster:
    """Runs commands on the nodes and puts faults into them."""

    login, compute = LOGIN, (*COMPUTE,)
    disturbed = False  # a node or a service was stopped or started

    def argv(
        self, command: str | Sequence[str], node: str = LOGIN, user: str = "alice"
    ) -> list[str]:
        """The command line that runs `command` on a node: a string by bash, a list as it is.

        For subprocess.Popen. Killing that process hangs the command up, like a lost connection.
        """
        words = ["bash", "-c", command] if isinstance(command, str) else list(command)
        return login_shell(node, user, words)

    def is_up(self, node: str) -> bool:
        """Whether a node runs."""
        return first_process(node) is not None

    def run(
        self,
        command: str | Sequence[str],
        node: str = LOGIN,
        user: str = "alice",
        check: bool = True,
        timeout: float = 120,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` in a login environment on a node and waits for it. See BUSY."""
        return self._wait(self.argv(command, node, user), check, timeout, input)

    def control(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`cluster kill-node jrc0102`, `cluster stop slurmctld` and the like."""
        self.disturbed = True
        return self._wait([str(COMMAND), *arguments], True, timeout, "")

    def path(self, path: str | Path) -> Path:
        """Where this machine has a file of the nodes' shared file systems (/p/...)."""
        return run_folder() / "shared" / Path(path).relative_to("/p")

    def wait_for(self, reached: Callable[[], object], timeout: float = 60, what: str = "") -> None:
        """Until `reached` is true; looks four times a second. See BUSY."""
        timeout *= BUSY
        deadline = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or reached}"
            time.sleep(0.25)

    @staticmethod
    def _wait(
        argv: list[str], check: bool, timeout: float, input: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, input=input, capture_output=True, text=True, timeout=timeout * BUSY
        )
        if check and done.returncode:
            output = f"{shlex.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            raise AssertionError(output)
        return done


@dataclass(frozen=True)
class Pull:
    """What a pull has printed, and a password in its environment that it did not need."""

    output: str
    password: str


class Checkout:
    """A user's copy of the working tree on the login node."""

    def __init__(self, cluster: Cluster, user: str = "alice", name: str = "jaxway") -> None:
        self.cluster, self.user = cluster, user
        self.folder = f"/p/project1/training/{user}/{name}"
        cluster.run(["rm", "-rf", self.folder], user="root")
        cluster.run(["mkdir", "-p", self.folder], user=user)
        root = COMMAND.parents[2]
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True).stdout
        pack = ["tar", "--create", "--null", "--files-from=-"]
        files = subprocess.run(pack, cwd=root, input=tracked, capture_output=True, check=True)
        unpack = cluster.argv(["tar", "--extract", "--directory", self.folder], user=user)
        subprocess.run(unpack, input=files.stdout, check=True)
        self.make_setup(".venv")

    def make_setup(self, environment: str) -> None:
        """Makes a Python environment that finds the checkout's packages, and uses it from now."""
        self.environment = environment
        script = f"cd {self.folder}; set {environment}; {MAKE_SETUP}"
        self.cluster.run(script, user=self.user)

    def path(self, name: str) -> Path:
        """Where this machine has a file of the checkout."""
        return self.cluster.path(self.folder) / name

    def configure(self, name: str, settings: Any) -> str:
        """Writes a configuration file; its name."""
        defaults = {"platform": "cpu", "environment": {"XLA_FLAGS": quick.OLD_FLAGS}}
        text = json.dumps(defaults | settings)  # YAML, too
        self.cluster.run(f"cat > {self.folder}/{name}.yaml", user=self.user, input=text)
        return f"{name}.yaml"

    def start(self, config: str, *arguments: str, **environment: str) -> "Snakemake":
        """Starts Snakemake in the checkout, with the profile as it is."""
        line = [f"{self.environment}/bin/snakemake", "--profile", "profiles/jureca"]
        line += [f"--configfile={config}", *arguments]
        variables = {"SBATCH_ACCOUNT": "training"} | environment
        return Snakemake(self, ["env", *(f"{k}={v}" for k, v in variables.items()), *line])

    def run(self, config: str, *arguments: str, timeout: float) -> str:
        """Runs Snakemake, which must succeed in time; what it says."""
        with self.start(config, *arguments) as snakemake:
            code, output = snakemake.wait(timeout)
        assert code == 0, output
        return output


class Snakemake:
    """A running Snakemake, first process of its session as on a terminal."""

    def __init__(self, checkout: Checkout, line: list[str]) -> None:
        self._checkout = checkout
        self._session = f"session-{uuid.uuid4().hex[:8]}"
        shell = f'cd {checkout.folder} && echo $$ > {self._session} && exec "$@"'
        session = ["setsid", "--wait", "bash", "-c", shell, "bash", *line]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            checkout.cluster.argv(session, user=checkout.user),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Snakemake":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.signal("KILL")
        self._process.wait()
        self._output.close()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        """Its output up to now, white space evened out: the rich logger breaks lines."""
        self._output.seek(0)
        return " ".join(self._output.read().split())

    def signal(self, name: str) -> None:
        """Sends a signal to Snakemake and its children, as a terminal does."""
        session = self._checkout.path(self._session).read_text().strip()
        self._checkout.cluster.run(f"kill -s {name} -- -{session}", user=self._checkout.user)

    def wait(self, timeout: float) -> tuple[int, str]:
        """Exit code and output; fails the test when it does not end in time. See BUSY."""
        timeout *= BUSY
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"Snakemake did not end in {timeout:g} s: {self.output()}"
            ) from None
        return self._process.returncode, self.output()
