"""Checks of the container: Apptainer, and the image here or in its registry."""

import threading
from pathlib import Path

import pytest
from example_records import write_container_record
from jaxway.config.containers import Container
from jaxway.container import registry, store, verify
from jaxway.preflight import container
from jaxway.preflight.container import check_image, check_own_sifs
from jaxway.preflight.finding import FAIL, PASS, Finding, failure, passed, warning
from jaxway_shared.errors import UserError

IMAGE, OTHER = "docker-archive:one.tar", "docker-archive:two.tar"
NONE = Container("/none", "/none")


@pytest.fixture
def sif(tmp_path: Path) -> Path:
    return tmp_path / "jax.sif"


@pytest.fixture
def pulled(sif: Path) -> Path:
    """The SIF as it was pulled, with its record."""
    sif.write_text("a container")
    write_container_record(sif, IMAGE)
    return sif


def check(sif: Path, image: str = IMAGE, pulls: bool = False) -> Finding:
    """The finding about an image that is not in a registry."""
    files = Container(str(sif), str(sif))
    size, finding = check_image(image, sif, files, files, pulls)
    assert size == 0
    return finding


def test_image_that_is_no_registry_s_needs_no_pull(sif) -> None:
    assert check(sif) == passed(f"{IMAGE} will be made into {sif}")


def test_container_as_it_was_pulled_passes(pulled) -> None:
    assert check(pulled) == passed(f"{pulled}, as it was pulled")


def test_each_container_that_a_benchmark_names_is_checked(pulled, tmp_path) -> None:
    link, gone = tmp_path / "link/other.sif", tmp_path / "gone.sif"
    link.parent.mkdir()
    link.symlink_to("../site.sif")  # which leads to the one pulled last
    (tmp_path / "site.sif").symlink_to(pulled)
    good, bad = check_own_sifs([str(link), str(gone)])
    assert good == passed(f"{link}, as it was made")
    message = f"{gone}: No such file or directory; remove it (`rm {gone}`), and pull it again"
    assert bad == failure("JW140", f"{message} (`jaxway pull`)")


def test_container_of_another_image_fails(pulled) -> None:
    finding = check(pulled, OTHER)
    assert finding.status is FAIL
    assert f"leads to {IMAGE}, not {OTHER}" in finding.message


def test_container_that_is_pulled_anew_may_be_of_another_image(pulled) -> None:
    assert check(pulled, OTHER, pulls=True).status is PASS


def test_changed_container_fails(pulled) -> None:
    pulled.write_text("another one")
    finding = check(pulled)
    assert (finding.status, finding.code) == (FAIL, "JW140")


def test_container_that_was_purged_and_made_again_passes(sif, tmp_path) -> None:
    """Its bytes are others; before the first job the run's link is locked again."""
    shared, link = tmp_path / "shared/jax-x.sif", tmp_path / "run/jax.sif"
    shared.parent.mkdir()
    for content in ("a container", "the same image in another SIF"):
        shared.write_text(content)
        write_container_record(shared, IMAGE)
        if not link.exists():
            store.lock(link, shared, IMAGE)
    assert check(link) == passed(f"{shared}, made again since it was pulled")
    assert check(link, OTHER).status is FAIL
    shared.write_text("something")
    assert check(link).code == "JW140"


def test_container_in_a_private_folder_of_another_user_fails(sif, monkeypatch) -> None:
    def refuse(path: Path) -> bool:
        raise verify.unreadable(path)

    monkeypatch.setattr(verify, "exists", refuse)
    finding = check(sif)
    assert (finding.status, finding.code) == (FAIL, "JW142")


def test_container_with_packages_is_the_one_checked(pulled, tmp_path) -> None:
    """Where it does not exist yet, the one below it; no registry is asked for that."""
    files, packages = Container(str(pulled), str(pulled)), tmp_path / "jax-0123.sif"
    with_packages = Container(str(packages), str(packages))
    assert check_image(IMAGE, pulled, files, with_packages, pulls=False)[1].status is PASS
    packages.write_text("of nothing known")
    assert check_image(IMAGE, pulled, files, with_packages, pulls=False)[1].status is FAIL


def test_unknown_registry_fails() -> None:
    """`.invalid` never has an address (RFC 2606)."""
    size, finding = check_image(
        "docker://registry.invalid/jax:1", Path("/none"), NONE, NONE, pulls=True
    )
    assert (size, finding.status) == (0, FAIL)
    assert "registry.invalid is unknown" in finding.message


def test_registry_that_does_not_answer_is_not_waited_for(monkeypatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(container, "REGISTRY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(registry.Repository, "image", lambda *_: waiting.wait(60))
    found = check_image("docker://h.org/jax:1", Path("/none"), NONE, NONE, pulls=True)
    waiting.set()
    assert found == (0, warning("h.org did not answer within 0.1 s"))


def test_missing_apptainer_fails(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no apptainer in PATH"):
        [*container.check_apptainer()]


def test_failure_has_the_code_of_its_error(pulled) -> None:
    problem = verify.find_problem(pulled, full=False, image=OTHER)
    assert problem
    assert check(pulled, OTHER) == failure(problem.code, str(problem))
