"""What ends a pull at once, with one sentence that says why; tests/unit/pull has more."""

from pulls import Target


def test_system_trusts_the_real_registry(target: Target) -> None:
    """So its 404 is seen, without SSL_CERT_FILE."""
    image = "docker://nvcr.io/nvidia/nothing:latest"
    target.start(image, trusting=False).fail("has no latest of nvidia/nothing")
    target.check_leftovers()


def test_file_that_is_no_sif_is_one_sentence(target: Target) -> None:
    target.cluster.run(f"echo hello > {target.folder}/fake.sif")
    target.start(f"{target.folder}/fake.sif").fail("fake.sif is not a SIF")
    assert target.check_leftovers() == set()


def test_unknown_host_is_one_sentence(target: Target) -> None:
    """On a compute node."""
    image = "docker://nvcr.io/nvidia/jax:26.06-py3"
    target.start(image, node="jrc0101").fail("nvcr.io.*compute nodes.*login node")
    assert target.check_leftovers() == set()
