"""Checks of files: folders, disk space, the shared file system, and $HOME."""

import dataclasses
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import tokenizers
from example_records import data_record
from examples import make_training
from jaxway.config.site import Site
from jaxway.launch import state_link
from jaxway.preflight import disk_space, home
from jaxway.preflight.disk_space import Download, check_disk_space, checkpoint_bytes
from jaxway.preflight.finding import FAIL, PASS, WARN, Status, failure, warning
from jaxway.preflight.folders import check_folders
from jaxway.preflight.home import check_home_quota
from jaxway.preflight.shared_fs import check_shared_fs
from jaxway_job import model
from jaxway_shared import identity, presets, training
from jaxway_shared.identity import Identity, program_content

# ---------------------------------------------------------------------------------------- folders


def test_folders_that_can_be_written_pass(site, tmp_path) -> None:
    (finding,) = check_folders(site, tmp_path / "containers")
    assert finding.status is PASS


def test_folder_of_another_user_fails_where_something_is_made_in_it(
    site, tmp_path, monkeypatch
) -> None:
    containers = tmp_path / "containers"
    containers.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != containers)
    assert [*check_folders(site, containers)] == [
        failure("JW509", f"{containers}: you cannot write there")
    ]
    (finding,) = check_folders(site, None)
    assert finding.status is PASS


def test_run_in_a_folder_that_cannot_be_written_fails(site, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.realpath(path) != str(tmp_path))
    assert FAIL in [finding.status for finding in check_folders(site, None)]


def test_unmounted_file_system_fails(site, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "gone"))
    (finding,) = check_folders(site, None)
    assert finding.code == "JW508"
    assert finding.message.startswith(f"$SCRATCH: there is no folder {tmp_path / 'gone'}")


# ------------------------------------------------------------------------------------- disk space


def set_free(monkeypatch: pytest.MonkeyPatch, size: int, inodes: int | None = 10**6) -> None:
    """Let every file system have so much left; None: it has no inodes."""
    status = SimpleNamespace(f_bavail=size, f_frsize=1, f_favail=inodes or 0, f_files=inodes or 0)
    monkeypatch.setattr(os, "statvfs", lambda path: status)


def prepare_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all data be prepared, so that they need no space."""
    monkeypatch.setattr(disk_space, "record_of", lambda data: data_record())


def statuses(site: Site, *names: str, download: Download | None = None) -> list[Status]:
    """Of the check for short trainings with these names."""
    jobs = [replace(make_training(), name=name) for name in names]
    return [finding.status for finding in check_disk_space(site, jobs, None, download)]


@pytest.mark.parametrize(
    ("free", "inodes", "status"),
    [(10**12, 10**6, PASS), (10**6, 10**6, FAIL), (10**12, 10, FAIL), (10**12, None, PASS)],
)
def test_bytes_and_inodes_are_compared(site, monkeypatch, free, inodes, status) -> None:
    set_free(monkeypatch, free, inodes)
    assert statuses(site, "a") == [status]


@pytest.fixture
def state(site, monkeypatch) -> Path:
    """The state of make_training(), of image `i`, without a checkpoint; its data are prepared."""
    set_free(monkeypatch, 10**6)
    prepare_data(monkeypatch)
    job = make_training()
    assert job.data
    record, state, link = Path(job.data.record), Path("train/a-feedbeef"), Path(state_link("a"))
    for folder in (record.parent, state, link.parent):
        folder.mkdir(parents=True)
    record.write_text(json.dumps(data_record().to_json()))
    link.symlink_to(state.absolute())
    options = presets.resolve(job.options)
    del options["keep_checkpoints"]  # as it does not affect results
    of = Identity(options, data_record().sha256, program_content("train", None), "i")
    (state / identity.FILE).write_text(json.dumps(of.to_json()))
    return state


def save(state: Path) -> None:
    """Let a state have the checkpoints that it will keep, and the one before them."""
    (state / training.LAST_CHECKPOINT_STEP).write_text("4")
    for step in (2, 3, 4):
        (state / training.CHECKPOINTS / str(step)).mkdir(parents=True)


def test_training_that_resumes_has_its_space(site, state) -> None:
    assert statuses(site, "a") == [FAIL]
    save(state)
    assert statuses(site, "a") == []
    job = make_training(keep_every=2)  # another two
    assert [each.status for each in check_disk_space(site, [job], "i", None)] == [FAIL]


@pytest.mark.parametrize(
    ("options", "image", "new"),
    [
        ({"keep_checkpoints": 1}, "i", False),
        ({"layers": 2}, "i", False),  # the preset's
        ({"steps": 11}, "i", True),
        ({"width": 64}, None, True),
        ({}, "another", True),
        ({"tokenizer": "raw"}, "i", True),
    ],
)
def test_training_that_was_edited_needs_space_again(site, state, options, image, new) -> None:
    save(state)
    job = make_training(**options)
    assert bool([*check_disk_space(site, [job], image, None)]) == new


def test_edited_program_needs_space_where_its_training_was_finished(site, state, monkeypatch):
    save(state)
    monkeypatch.setattr(disk_space, "program_content", lambda *_: {"train.py": "edited"})
    assert statuses(site, "a") == []  # it is asked whether to resume
    (state / training.SUMMARY).write_text("{}")
    assert statuses(site, "a") == [FAIL]


def test_damaged_identity_counts_as_none(site, state) -> None:
    save(state)
    (state / identity.FILE).write_text("{")
    assert statuses(site, "a") == [FAIL]


def test_image_needs_its_size_and_more_for_the_pull(site, tmp_path, monkeypatch) -> None:
    set_free(monkeypatch, 10**9)
    for size, expected in (
        (10**9 // 8, [PASS]),
        (10**9, [WARN, PASS]),  # for a while, a pull takes more than the image
        (10**9 + 1, [WARN, FAIL]),
    ):
        download = Download(tmp_path / "jax.sif", size, None)
        assert statuses(site, download=download) == expected


def test_requirements_on_one_disk_are_added_up(site, monkeypatch) -> None:
    prepare_data(monkeypatch)
    set_free(monkeypatch, 6 * checkpoint_bytes(make_training()))
    assert statuses(site, "a", "b") == [PASS]  # 3 checkpoints each
    assert statuses(site, "a", "b", "c") == [FAIL]


@pytest.mark.parametrize(
    ("content", "tokenizer", "bytes_required"),
    [
        (b"some text", "bytes", 9),
        (b'{"text": "a"}\n', "bytes", 2 * 14),  # rows wait until they are sorted
        (gzip.compress(b"some text", mtime=0), "bytes", 3 * 29),
        (gzip.compress(b"some text", mtime=0), "raw", 29),
    ],
)
def test_text_that_is_going_to_be_prepared_needs_space(
    site, tmp_path, content, tokenizer, bytes_required
) -> None:
    file = tmp_path / "a"
    file.write_bytes(content)
    job = make_training((str(file),), tokenizer)
    (data,) = disk_space.required_by_data(site, [job])
    assert data.bytes == bytes_required
    assert (data.inodes > 200) == content.startswith(b"{")


def test_prepared_data_need_no_space(site, tmp_path, monkeypatch) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(bytes(10**6))
    job = make_training((str(text),), "raw", layers=1, width=64, heads=1, ngram=1)
    set_free(monkeypatch, 3 * checkpoint_bytes(job))
    (finding,) = check_disk_space(site, [job], None, None)
    assert finding.code == "JW510"
    prepare_data(monkeypatch)
    (finding,) = check_disk_space(site, [job], None, None)
    assert finding.status is PASS


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "tiny"},
        {"preset": "6.7B"},
        {"preset": "124M", "kv_heads": 4, "mlp": "gated", "mlp_width": 100, "ngram": 2},
    ],
)
def test_size_of_a_checkpoint_is_that_of_the_model_s_arrays(options) -> None:
    sizes = presets.resolve(make_training(**options).options)
    names = {field.name for field in dataclasses.fields(model.Config)} & sizes.keys()
    config = model.Config(**{name: sizes[name] for name in names - {"dtype"}})
    params = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    size = 12 * sum(x.size for x in jax.tree.leaves(params))
    assert checkpoint_bytes(make_training(**options)) == size


def test_checkpoint_grows_with_the_tokenizer_s_vocabulary(tmp_path) -> None:
    words = {f"w{number}": number for number in range(1000)}
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(file))
    small, large = make_training(ngram=1), make_training(ngram=1, tokenizer=str(file))
    width = presets.PRESETS["tiny"].width
    assert checkpoint_bytes(large) - checkpoint_bytes(small) == 12 * width * 2 * (1024 - 256)


# ------------------------------------------------------------------------------ shared file system


def test_site_that_shares_everything_is_not_checked() -> None:
    assert not [*check_shared_fs([])]


def test_folders_that_compute_nodes_see_pass(tmp_path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/")
    for shared in ("/", str(link)):
        (finding,) = check_shared_fs([shared])
        assert finding.status is PASS


def test_folders_that_compute_nodes_do_not_see_fail(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = [*check_shared_fs([str(tmp_path)])]
    assert [finding.code for finding in findings] == ["JW514"] * 2  # environment and workflow


# ------------------------------------------------------------------------------------------- home


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$HOME, with no variable of a cache, and another folder in which the test is."""
    house, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    house.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(house))
    for name in home.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(elsewhere)
    return house


def test_run_outside_home_passes(house) -> None:
    (finding,) = check_home_quota({})
    assert finding.status is PASS


@pytest.mark.parametrize("variable", ["HF_HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_cache_in_home_is_a_warning(house, variable) -> None:
    advice = "is in $HOME, whose quota is small and fills: move it to $PROJECT"
    assert [*check_home_quota({variable: f"{house}/cache"})] == [warning(f"${variable} {advice}")]


def test_a_cache_of_the_shell_matters_where_jobs_inherit_it(house, monkeypatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{house}/cache")
    assert [finding.status for finding in check_home_quota({})] == [PASS]
    monkeypatch.setenv("HF_HOME", f"{house}/cache")
    assert [finding.status for finding in check_home_quota({})] == [WARN]


def test_run_in_home_fails(house, monkeypatch) -> None:
    monkeypatch.chdir(house)
    (finding,) = check_home_quota({})
    assert finding.code == "JW515"
    assert finding.message.startswith("this folder is in $HOME")
