"""The ways into the test cluster: its processes, and command lines that run on its nodes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from build import GROUP, USERS

LOGIN, *COMPUTE = NODES = ["jrlogin01", "jrc0101", "jrc0102"]


class ClusterError(RuntimeError):
    """Something that ends the command with one message."""


def run_folder() -> Path:
    """Where the cluster keeps what is not cached."""
    return Path(os.environ.get("JAXWAY_CLUSTER_RUN", "/var/tmp/jaxway-cluster"))


def first_process(name: str) -> int | None:
    """Process id of a node's first process, or of the rack's; None where there is none.

    Found by the mark in its environment: a file with an id could be older than the process.
    """
    mark = f"JAXWAY_CLUSTER={run_folder()}:{name}".encode()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            ids = re.findall(r"^NSpid:\t(\d+).*\t1$", status.read_text(), re.MULTILINE)
            if ids and mark in (status.parent / "environ").read_bytes().split(b"\0"):
                return int(ids[0])
        except OSError:
            continue  # it ended meanwhile
    return None


def inside(name: str, *flags: str) -> list[str]:
    """The start of a command line that runs the rest in a node's namespaces."""
    if not (pid := first_process(name)):
        raise ClusterError(f"{name} is down" if first_process("rack") else "the cluster is down")
    return ["nsenter", f"--target={pid}", *(flags or ("-m", "-u", "-i", "-n", "-p"))]


def login_shell(node: str, user: str, command: Sequence[str]) -> list[str]:
    """The command line that runs another in a login environment on the node, as ssh would.

    Killing its process hangs up the command, as losing an ssh connection does.
    """
    group = GROUP[0] if user in USERS else user
    login = ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--reset-env"]
    login += ["--pdeathsig=HUP", "env", f"TERM={os.environ.get('TERM', 'dumb')}", "bash"]
    return [*inside(node), *login, "-lc", 'cd && exec "$@"', "bash", *command]
