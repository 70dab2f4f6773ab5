"""The container: whether Apptainer runs here, and the image is there or can be pulled."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from jaxway_shared.errors import UserError

from jaxway.config.containers import Container, target
from jaxway.container import image_name, registry, store, verify
from jaxway.container.apptainer import apptainer_version
from jaxway.container.image_name import ImageName
from jaxway.preflight.finding import Finding, Findings, failure, passed, unchecked, warning

REGISTRY_TIMEOUT_S = 5


def check_apptainer() -> Findings:
    yield passed(apptainer_version())


def check_image(
    image: str, shared: Path, pulled: Container, container: Container, pulls: bool
) -> tuple[int, Finding]:
    """Bytes to pull, and whether the container is there as it was pulled, or can be.

    ``shared``: the site's link. ``container``: ``pulled``, with packages on top. ``pulls``: it is
    going to be pulled, whether it is there or not.
    """
    try:
        sifs = [Path(each.sif) for each in (container, pulled) if not pulls]
        existing = next(filter(verify.exists, sifs), None)
        if existing is None:
            if found := find_shared(image, shared, pulled):
                return 0, passed(f"{found}, pulled before")
            return check_registry(image, shared)
        own, there = verify.read_record(existing), target(existing)
        if own and own.image == image and not store.is_locked(existing) and store.is_whole(there):
            return 0, passed(f"{there}, made again since it was pulled")  # and locked again
        if problem := verify.find_problem(existing, full=False, image=image):
            raise problem
        return 0, passed(f"{existing}, as it was pulled")
    except UserError as error:
        return 0, failure(error.code, str(error))
    except Exception as error:
        return 0, unchecked(error)


def check_own_sifs(sifs: Iterable[str]) -> Findings:
    """``sifs``: containers that benchmarks name in place of the configured one."""
    for sif in sifs:
        problem = verify.find_problem_of_own(sif)
        yield failure(problem.code, str(problem)) if problem else passed(f"{sif}, as it was made")


def find_shared(image: str, shared: Path, pulled: Container) -> Path | None:
    """What a run's first pull is going to take, as it was pulled before."""
    if os.path.exists(pulled.digest):
        return None
    if not store.is_plain(shared):
        return store.find_named(shared, image)
    record = verify.read_record(shared)
    found = record.image if record else store.image_in(store.labels_of(shared) or {})
    return shared if found == image else None


def check_registry(image: str, sif: Path) -> tuple[int, Finding]:
    """Bytes to pull, and whether the image's registry has it."""
    name = image_name.parse(image)
    if not name:
        return 0, passed(f"{image} will be made into {sif}")
    size = size_in_registry(name)
    if size is None:
        return 0, warning(f"{name.host} did not answer within {REGISTRY_TIMEOUT_S} s")
    return size, passed(f"{image}: {size / 1e9:.1f} GB to pull")


def size_in_registry(name: ImageName) -> int | None:
    """Bytes of an image's layers; None, if its registry does not answer soon."""
    found: list[registry.Image] = []
    errors: list[Exception] = []

    def query() -> None:
        try:
            repository = registry.Repository(name.host, name.repository, lambda line: None)
            found.append(repository.image(name.reference, image_name.host_architecture()))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=query, daemon=True)  # it tries for longer than we wait
    thread.start()
    thread.join(REGISTRY_TIMEOUT_S)
    if errors:
        raise errors[0]
    return found[0].size if found else None
