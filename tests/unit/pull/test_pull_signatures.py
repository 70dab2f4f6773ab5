"""Images that a site wants to be signed: by cosign, with a key."""

import subprocess
from pathlib import Path

import pytest

SIZES = {"EC": "ec_paramgen_curve:P-256", "RSA": "rsa_keygen_bits:2048"}  # cosign's own is EC


def make_key(folder: Path, name: str, kind: str) -> tuple[Path, Path]:
    """A private and a public key."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    new = f"openssl genpkey -algorithm {kind} -pkeyopt {SIZES[kind]} -out {private}"
    for command in (new, f"openssl pkey -in {private} -pubout -out {public}"):
        subprocess.run(command.split(), check=True, capture_output=True)
    return private, public


@pytest.fixture
def keys(tmp_path):
    """Of the site."""
    return make_key(tmp_path, "site", "EC")


@pytest.fixture
def content(target):
    """What the registry has; signatures end with the test."""
    content = target.registry.content
    yield content
    content.tags = {tag: x for tag, x in content.tags.items() if not tag.endswith(".sig")}


@pytest.mark.parametrize(("kind", "tag"), [("EC", "index"), ("RSA", "latest")])
def test_signed_image_is_pulled(target, content, tmp_path, kind, tag):
    private, public = make_key(tmp_path, "site", kind)
    content.sign(tag, private)
    target.pull(target.image(tag), public)
    target.pull(target.image(tag), public)  # is there, and the signature too


def test_unsigned_image_is_refused_before_any_layer(target, keys, content):
    reason = r"is not signed: localhost:\d+ has no sha256-[0-9a-f]{64}\.sig.*image_key"
    assert target.fails(reason, key=keys[1]) == set()
    assert target.gets() == []


def test_signature_by_another_or_of_another_image_or_none_at_all(target, keys, content, tmp_path):
    other, _ = make_key(tmp_path, "other", "EC")
    content.sign("latest", other)
    target.fails("is not signed by .*site.pub", key=keys[1])
    content.sign("latest", keys[0], about=content.tags["other"])
    target.fails("is not signed by .*site.pub", key=keys[1])
    content.manifest(content.tags["latest"].replace(":", "-") + ".sig", config={}, layers=[{}])
    target.fails("is no signature by cosign", key=keys[1])


def test_image_that_is_there_is_refused_too(target, keys, content):
    target.pull()
    target.fails("is not signed", key=keys[1])


def test_no_registry_or_no_key(target, keys, tmp_path):
    target.fails("is in no registry", "docker://python:3.11", keys[1])
    target.fails("is no public key", key=tmp_path / "missing.pub")
    target.fails("is no public key", key=keys[0])
