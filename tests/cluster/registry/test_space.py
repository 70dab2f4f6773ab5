"""Disks that are full, and folders where a pull may not write."""

import re
from collections.abc import Callable

import pytest
from pulls import ALICE, Target


@pytest.mark.parametrize(
    ("where", "options", "larger"),
    [
        ("tmp", "size=4m", "size=200m"),
        ("sif", "size=4m", "size=200m"),
        ("tmp", "nr_inodes=8", "nr_inodes=9999"),
        ("sif", "nr_inodes=2", "nr_inodes=9999"),
        ("sif", "nr_inodes=3", "nr_inodes=9999"),
    ],
    ids=["work", "sif", "inodes", "sif-inodes", "record-inodes"],
)
def test_full_file_system_is_one_sentence(
    target: Target,
    small: Callable[..., None],
    where: str,
    options: str,
    larger: str,
) -> None:
    folder = f"{target.folder}/{where}"
    small(folder, options)
    target.start().fail("free some space or inodes")
    kept = target.check_leftovers()
    small(folder, larger, change=True)
    target.pull_again(kept)


def test_work_folder_is_where_there_is_space(target: Target, small: Callable[..., None]) -> None:
    """Without --tmpdir: in the first of the usual folders that is large enough."""
    full = f"{target.folder}/full"
    target.cluster.run(["mkdir", full])
    small(full, "size=4m")
    target.registry.faults(target.fault("third", hold=True))
    env = {"APPTAINER_TMPDIR": full, "TMPDIR": target.tmpdir}
    pull = target.start(tmpdir=False, env=env)
    pull.until(target.is_held, "a layer")
    assert [*target.here(full).iterdir()] == []
    [work] = target.here(target.tmpdir).iterdir()
    assert re.fullmatch(f"jaxway-{ALICE}-[0-9a-f]{{8}}", work.name)
    assert work.stat().st_mode & 0o077 == 0
    target.registry.faults()
    pull.succeed()
    target.check_sif()


def test_forbidden_folder_is_one_sentence(target: Target) -> None:
    folder = target.here(target.sif).parent
    folder.chmod(0o755)
    target.start(user="bob").fail(f"{target.folder}/sif.*[Pp]ermission")
    assert target.check_leftovers() == set()
    folder.chmod(0o2775)
    target.pull_again(set(), user="bob")
