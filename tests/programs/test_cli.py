"""The command `jaxway`: what it is for, and how it ends."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from jaxway import cli
from jaxway_shared.errors import CODES, UserError


def jaxway(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "jaxway", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_tells_what_each_command_is_for():
    result = jaxway("--help")
    assert result.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert name in result.stdout and command.summary in result.stdout
        assert command.example in result.stdout


def test_help_takes_no_command_s_imports():
    """They take seconds."""
    code = "import sys; from jaxway import cli; cli.overview(); print(*sys.modules)"
    words = [sys.executable, "-c", code]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert not {"duckdb", "matplotlib", "numpy", "requests", "rich", "yaml"} & {*loaded}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.parse([name, "--help"])
    assert f"jaxway {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if cli.COMMANDS[name].example])
def test_example_of_a_command_is_complete(name):
    cli.parse(shlex.split(cli.COMMANDS[name].example)[1:])


def test_unknown_command_is_named():
    result = jaxway("folow")
    assert result.returncode == 2
    assert "'folow'" in result.stderr and "'follow'" in result.stderr


class Ending:
    """The command `jaxway report`, replaced by a program that ends in some way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, body: str) -> subprocess.Popen[str]:
        program = textwrap.indent(textwrap.dedent(body), "    ")
        (self.folder / "ending.py").write_text(
            "import os, time\nfrom jaxway_shared.errors import UserError\n"
            f"def configure(parser):\n    pass\n\ndef run(args):\n{program}\n"
        )
        code = "from jaxway import cli; import sys; sys.argv = ['jaxway', 'report']\n"
        code += "cli.COMMANDS['report'] = cli.Command('ending', 'end'); cli.main()"
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": f"{self.folder}:{':'.join(sys.path)}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self, body: str) -> tuple[str, int]:
        process = self.start(body)
        _, stderr = process.communicate(timeout=60)
        return stderr, process.returncode


@pytest.fixture
def ending(tmp_path: Path) -> Ending:
    return Ending(tmp_path)


def test_user_error_is_one_sentence_with_its_code(ending):
    assert ending.result("raise UserError('JW001', 'a.json is old')") == (
        "jaxway report: a.json is old [JW001]\n",
        1,
    )


def test_error_of_the_system_is_one_sentence(ending):
    assert ending.result("open('/no/such/file')") == (
        "jaxway report: /no/such/file: No such file or directory [JW551]\n",
        1,
    )
    assert ending.result("raise OSError('broken')") == ("jaxway report: broken [JW551]\n", 1)


@pytest.mark.parametrize("number", cli.SIGNALS)
def test_signal_cleans_up(ending, number):
    """A second signal does not stop the cleaning up."""
    process = ending.start(
        """
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaning", flush=True)
            time.sleep(0.5)
            print("clean", flush=True)
        """
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "clean\n"
    assert stderr == f"jaxway report: ended by {number.name} [JW550]\n"
    assert process.returncode == 1


def test_bug_shows_where_it_is(ending):
    stderr, code = ending.result("raise ValueError('a bug')")
    assert "Traceback" in stderr and code == 1


def test_code_is_no_part_of_the_sentence():
    error = UserError("JW001", "a.json is old")
    assert (str(error), error.line()) == ("a.json is old", "a.json is old [JW001]")
    assert error.code in CODES
