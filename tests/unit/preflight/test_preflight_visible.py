"""What a container sees of the files that its jobs use."""

from pathlib import Path

from examples import make_config, make_site
from jaxway.preflight.finding import failure, passed
from jaxway.preflight.visible import check_visible, used_paths


def test_what_the_container_does_not_see_is_named_with_its_user(tmp_path: Path) -> None:
    """`env` stands for a container that sees all of this machine, and no more."""
    (tmp_path / "a b.py").touch()
    used = {str(tmp_path / "a b.py"): "train.a.command"}
    assert [*check_visible(["env"], used)] == [
        passed("the container sees workflow, scratch and the files of commands")
    ]
    (found,) = check_visible(["env"], used | {"/p/project1/x/prog.py": "train.b.command"})
    assert found == failure(
        "JW516",
        "train.b.command: the container does not see /p/project1/x/prog.py: set `environment: "
        "{APPTAINER_BIND: /p/project1/x}` (folders with commas between them)",
    )


def test_a_container_that_does_not_start_here_is_a_warning() -> None:
    (found,) = check_visible(["sh", "-c", "echo no rights >&2; exit 255"], {"/x": "scratch"})
    assert str(found).split(maxsplit=1) == ["WARN", "the container was not looked into: no rights"]


def test_files_of_commands_are_found_also_behind_a_shell(tmp_path: Path) -> None:
    for name in ("prog.py", "data", "more.py"):
        (tmp_path / name).touch()
    commands = {
        "own": f"python3 {tmp_path}/prog.py --data={tmp_path}/data --out={tmp_path}/new",
        "shell": f"bash -c 'cd /; python3 {tmp_path}/more.py > log'",
    }
    train = {name: {"program": "command", "command": line} for name, line in commands.items()}
    config = make_config(make_site(), train={**train, "ours": {"global_batch": 8}})
    jobs = {f"train.{name}": job for name, job in config.train.items()}
    found = used_paths(jobs, f"{tmp_path}/scratch/alice")
    assert found.pop(str(tmp_path)) == "scratch"
    assert {path: who for path, who in found.items() if who != "the workflow"} == {
        f"{tmp_path}/prog.py": "train.own.command",
        f"{tmp_path}/data": "train.own.command",
        f"{tmp_path}/more.py": "train.shell.command",
        "/": "train.shell.command",
    }
