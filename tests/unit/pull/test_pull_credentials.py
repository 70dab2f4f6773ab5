"""Credentials: where they come from, and who gets them."""

import base64
import hashlib
import json

import pytest

BOTH = base64.b64encode(b"user:password").decode()
DIGEST = hashlib.sha256(BOTH.encode()).hexdigest()  # all that the registry knows


@pytest.fixture
def in_variables(monkeypatch):
    monkeypatch.setenv("APPTAINER_DOCKER_USERNAME", "user")
    monkeypatch.setenv("APPTAINER_DOCKER_PASSWORD", "password")


@pytest.fixture
def in_a_file(target, tmp_path):
    file = tmp_path / ".apptainer/docker-config.json"
    file.parent.mkdir()
    host = f"localhost:{target.registry.port}"
    file.write_text(json.dumps({"auths": {host: {"auth": BOTH}}}))


@pytest.mark.parametrize("source", ["in_variables", "in_a_file"])
@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_registry_that_demands_them_gets_them(target, request, source, scheme):
    request.getfixturevalue(source)
    target.registry.faults(target.fault(auth=scheme, credentials=DIGEST))
    target.pull()
    assert all(x["authorization"] for x in target.gets())


def test_registry_that_does_not_ask_gets_none(target, in_variables):
    target.pull()
    assert not any(x["authorization"] for x in target.log())


def test_anybodys_token_is_fetched(target):
    target.registry.faults(target.fault(auth="bearer"))
    target.pull()


def elsewhere(target):
    """Layers are at another host name."""
    path = f"^/v2/{target.name}/tiny/blobs/"
    return target.fault(redirect="127.0.0.1") | {"path": path}


def test_another_host_gets_none(target, in_variables):
    """Registries send clients to a storage elsewhere for the layers."""
    demand = target.fault(auth="bearer", credentials=DIGEST) | {"path": f"^/v2/{target.name}/"}
    target.registry.faults(demand, elsewhere(target))
    target.pull()
    assert {x["authorization"] for x in target.gets()} == {False}


def test_storage_that_asks_gets_none(target, in_variables):
    """A registry that is not trusted with more than this could send clients to a thief."""
    thief = {"path": f"^/elsewhere/{target.name}/", "auth": "bearer", "credentials": 64 * "0"}
    target.registry.faults(elsewhere(target), thief)
    target.refused("APPTAINER_DOCKER_USERNAME")
    assert any("/elsewhere/" in x["path"] for x in target.log())
    assert not any(x["authorization"] for x in target.log())
