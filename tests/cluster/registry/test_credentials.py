"""Credentials are left nowhere; tests/unit/pull says who gets them."""

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodes import Cluster
from pulls import ALICE, HOME, TRAINING, Registry, Target, command_lines


@pytest.fixture
def auth_file(registry: Registry) -> Iterator[Path]:
    """Where a login of alice's would be kept; there is none."""
    file = registry.cluster.path(f"{HOME}/.apptainer/docker-config.json")
    assert not file.exists()
    if not file.parent.exists():
        file.parent.mkdir()
        os.chown(file.parent, ALICE, TRAINING)
    yield file
    file.unlink(missing_ok=True)


def files_with(cluster: Cluster, hidden: list[str], since: float) -> set[str]:
    """The login node's files that were written since then and hold one of these strings."""
    folders = f"/p/scratch /p/project1 {HOME} /tmp /var/tmp /dev/shm"
    search = "grep --files-with-matches --no-messages --fixed-strings -f /dev/stdin {} +"
    line = f"find {folders} -type f -newerct @{since} -exec env LC_ALL=C {search}"
    return {*cluster.run(line, user="root", check=False, input="\n".join(hidden)).stdout.split()}


@pytest.mark.parametrize(("source", "scheme"), [("environment", "bearer"), ("file", "basic")])
def test_password_is_nowhere(target: Target, auth_file: Path, source: str, scheme: str) -> None:
    password = f"canary-{secrets.token_hex(16)}"
    both = base64.b64encode(f"user:{password}".encode()).decode()
    digest = hashlib.sha256(both.encode()).hexdigest()  # all that the registry knows
    hidden = [password, both, hashlib.sha256(f"token for {digest}".encode()).hexdigest()]
    env, allowed, since = {}, set(), time.time() - 1
    if source == "environment":
        env = {"APPTAINER_DOCKER_USERNAME": "user", "APPTAINER_DOCKER_PASSWORD": password}
    else:
        host = f"jrlogin01:{target.registry.port}"
        auth_file.write_text(json.dumps({"auths": {host: {"auth": both}}}))
        os.chown(auth_file, ALICE, TRAINING)
        allowed = {f"{HOME}/.apptainer/docker-config.json"}
    demand = target.fault(auth=scheme, credentials=digest)
    target.registry.faults(demand, target.fault("third", hold=True))

    pull = target.start(env=env)
    pull.until(target.is_held, "a layer")
    seen = [*command_lines().values()]
    assert files_with(target.cluster, hidden, since) == allowed
    target.registry.faults(demand)
    while pull.running:
        seen += command_lines().values()
    output = pull.succeed()
    target.check_sif()
    assert files_with(target.cluster, hidden, since) == allowed
    for text in (output.encode(), *(b" ".join(line) for line in seen)):
        assert not [x for x in hidden if x.encode() in text]
