"""Which files `data` names: links are followed once, hidden files left out, nothing is skipped."""

import os
import socket
from pathlib import Path

import pytest
from jaxway.data.find import Found, find_files
from jaxway_shared.errors import UserError


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """The current folder, with text/a.txt, and more/b.txt and more/sub/c.txt beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("text/a.txt", "more/b.txt", "more/sub/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "text"


def names(*entries: str) -> list[str]:
    found = find_files(entries)
    assert not found.problems
    return [str(file.path) for file in found.files]


@pytest.mark.parametrize("entry", ["text", "text/", "text/**", "tex*", "text/*", "text/**/*"])
def test_links_to_folders_are_followed_once(text, entry):
    (text / "link").symlink_to("../more")
    (text / "again").symlink_to("../more/sub")
    found = names(entry)
    contents = sorted(Path(name).read_text() for name in found)
    assert contents == ["more/b.txt", "more/sub/c.txt", "text/a.txt"]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("text/**/*.txt", ["text/a.txt", "text/link/b.txt", "text/link/sub/c.txt"]),
        ("text/**/sub/*.txt", ["text/link/sub/c.txt"]),
        ("text/**/l*/**/c.txt", ["text/link/sub/c.txt"]),
        ("text/l*/*.txt", ["text/link/b.txt"]),
        ("{here}/t*/a.txt", ["{here}/text/a.txt"]),
    ],
)
def test_globs_follow_links_too(text, entry, expected):
    (text / "link").symlink_to("../more")
    here = str(text.parent)
    assert names(entry.format(here=here)) == [name.format(here=here) for name in expected]


@pytest.mark.parametrize("entry", ["text", "text/**/*.txt"])
def test_loops_end_and_are_told(text, entry):
    for number in range(3):  # with two of them, glob.glob() takes for ever
        (text / f"loop{number}").symlink_to("../text")
    found = find_files([entry])
    assert [str(file.path) for file in found.files] == ["text/a.txt"]
    assert not found.problems
    assert found.loops == [f"text/loop{n} leads back to a folder above it" for n in range(3)]


def test_a_loop_of_two_folders_is_told(text):
    (text / "down").symlink_to("../more")
    (text.parent / "more/up").symlink_to("../text")
    found = find_files(["text"])
    assert len(found.files) == 3
    assert found.loops == ["text/down/up leads back to a folder above it"]


def test_the_same_file_comes_once(text):
    os.link(text / "a.txt", text / "hard.txt")
    (text / "soft.txt").symlink_to("a.txt")
    assert names("text", "text/*.txt", "text/soft.txt") == ["text/a.txt"]


def test_hidden_files_are_left_out_unless_they_are_named(text):
    for name in (".DS_Store", ".git/config", ".cache/deep/x.txt"):
        (text / name).parent.mkdir(parents=True, exist_ok=True)
        (text / name).write_text(name)
    for entry in ("text", "text/**", "text/*", "text/**/*.txt"):
        assert names(entry) == ["text/a.txt"]
    assert names("text/.cache") == ["text/.cache/deep/x.txt"]
    assert names("text/.git/conf*") == ["text/.git/config"]


def test_names_with_characters_of_globs_are_taken_literally(text):
    (text / "[1]").mkdir()
    (text / "[1]/*.txt").write_text("x")
    assert names("text/[1]") == names("text/[1]/*.txt") == ["text/[1]/*.txt"]


def problems(*entries: str) -> Found:
    found = find_files(entries)
    assert found.problems
    return found


def test_links_to_nothing_are_told(text):
    (text / "b.txt").symlink_to("/annex/objects/b")
    (text / "self.txt").symlink_to("self.txt")
    assert problems("text").problems == [
        "cannot read text/b.txt, a link to /annex/objects/b: No such file or directory",
        "cannot read text/self.txt, a link to self.txt: Too many levels of symbolic links",
    ]
    assert names("text/a*.txt", "text/**/a.txt") == ["text/a.txt"]  # they do not name these


def test_folder_that_cannot_be_read_is_told(text, monkeypatch):
    (text / "closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = problems("text")
    assert found.problems == ["cannot read text/closed: Permission denied"]
    assert len(found.files) == 1


def test_what_is_no_file_is_told_and_not_waited_for(text):
    os.mkfifo(text / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("text/socket")
        assert problems("text").problems == [
            "text/pipe is neither a file nor a folder",
            "text/socket is neither a file nor a folder",
        ]
    assert problems("/dev/null").problems == ["/dev/null is neither a file nor a folder"]


def test_entry_without_files_is_told(text):
    (text.parent / "empty").mkdir()
    found = problems("text", "empty", "no*")
    assert found.problems == ["empty matches no file", "no* matches no file"]


def test_preparation_tells_loops_and_refuses_the_rest(prepare, corpus, tmp_path, capsys):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/corpus").symlink_to(corpus)
    (tmp_path / "links/loop").symlink_to(tmp_path / "links")
    assert prepare([tmp_path / "links"]).documents == 40
    told = f"data: {tmp_path}/links/loop leads back to a folder above it: not followed again\n"
    assert told in capsys.readouterr().out
    (tmp_path / "links/gone").symlink_to("gone.txt")
    with pytest.raises(UserError, match=r"^data: cannot read .*/gone, a link to gone.txt: No"):
        prepare([tmp_path / "links"])
