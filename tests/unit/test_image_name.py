"""Names of images: those in a registry, and what does not belong in a name."""

import pytest
from example_records import DIGEST
from jaxway.container import image_name
from jaxway.container.image_name import ImageName
from jaxway_shared.errors import UserError


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("docker://nvcr.io/nvidia/jax:24.10-py3", ImageName("nvcr.io", "nvidia/jax", "24.10-py3")),
        ("docker://localhost:5000/a/b", ImageName("localhost:5000", "a/b", "latest")),
        (f"docker://h.org/a@{DIGEST}", ImageName("h.org", "a", DIGEST)),
        (f"docker://h.org/a:tag@{DIGEST}", ImageName("h.org", "a", DIGEST)),
        ("oras://h.org/a:tag", ImageName("h.org", "a", "tag")),
        ("docker://python:3.11", None),
        ("docker://nvidia/cuda", None),
        ("docker-archive:/tmp/jax.tar", None),
        ("/tmp/jax.sif", None),
    ],
)
def test_parts_of_a_name(image, parts):
    assert image_name.parse(image) == parts


@pytest.mark.parametrize("pin", ["sha256:12", "sha512:" + 128 * "0", "latest"])
def test_invalid_digest_is_refused(pin):
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        image_name.parse(f"docker://h.org/a@{pin}")


def test_password_in_the_image_name_is_refused_and_not_repeated():
    with pytest.raises(UserError, match="APPTAINER_DOCKER_PASSWORD") as refused:
        image_name.parse("docker://alice:secret@h.org/a:tag")
    assert "secret" not in str(refused.value)
