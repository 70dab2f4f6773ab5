"""The command `jaxway`: one subcommand for each thing that a user, or a rule, asks for.

A command's module has ``configure(parser)``, which declares its arguments, and ``run(args)``; where
a module has several commands, ``configure_<command>`` and ``run_<command>``. It is imported only
when its command is called: rich, duckdb and matplotlib take seconds. A command ends by returning
(exit code 0), by `sys.exit(number)`, or by raising a UserError, whose sentence is printed here.
"""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from jaxway_shared.errors import UserError, with_code

from jaxway.files import SIGNALS


class Command(NamedTuple):
    """A subcommand: where it is, what it is for, and, for those that a user types, an example."""

    module: str
    summary: str
    example: str = ""


JURECA = "--profile profiles/jureca"
COMMANDS = {
    "preflight": Command(
        "jaxway.preflight.command",
        "check whether the site would run all that the configuration asks for",
        f"jaxway preflight {JURECA}",
    ),
    "plan-memory": Command(
        "jaxway.preflight.plan_memory",
        "say whether each training fits a GPU, and how fast it can be",
        f"jaxway plan-memory {JURECA}",
    ),
    "check-program": Command(
        "jaxway.preflight.program",
        "try whether a program of your own starts, stops and resumes as jobs need it",
        "jaxway check-program mine --platform cpu",
    ),
    "follow": Command(
        "jaxway.monitor.follow",
        "show what each job of the run in this folder does",
        f"jaxway follow {JURECA}",
    ),
    "shell": Command(
        "jaxway.container.shell",
        "open a shell in the container, on a GPU node, as jobs run",
        f"jaxway shell {JURECA}",
    ),
    "exec": Command(
        "jaxway.container.shell",
        "run one command in the container, on a GPU node, as jobs run",
        f"jaxway exec {JURECA} -- nvidia-smi -L",
    ),
    "pull": Command(
        "jaxway.container.pull",
        "fetch an image and make a container of it",
        "jaxway pull --image=docker://nvcr.io/nvidia/jax:26.06-py3 --sif=jax.sif",
    ),
    "images": Command(
        "jaxway.container.images",
        "list the containers that users share, and remove those that nobody uses",
        f"jaxway images {JURECA} --prune",
    ),
    "compare": Command(
        "jaxway.analysis.history",
        "compare the benchmarks of two images, commits or months",
        "jaxway compare 2026-10 2026-11",
    ),
    "query": Command(
        "jaxway.analysis.history",
        "ask the history of benchmarks in SQL",
        "jaxway query 'select benchmark, median, unit from history'",
    ),
    "report": Command(
        "jaxway.report.page",
        "write the report of results that are there",
        "jaxway report --out=report.html --site=profiles/jureca/site.yaml --history=history "
        "--smoke-test=results/smoke_test.json --train results/train/*/summary.json",
    ),
    "crate": Command(
        "jaxway.report.crate",
        "write what a run has found, with its provenance, as an RO-Crate",
        "jaxway crate my-results --license=CC-BY-4.0",
    ),
    # Rules call these.
    "add-packages": Command("jaxway.container.packages", "put packages on top of a container"),
    "verify": Command("jaxway.container.verify", "compare a container with its record"),
    "prepare-data": Command("jaxway.data.prepare", "turn text into shards of tokens"),
    "run-benchmarks": Command("jaxway.run_benchmarks", "run the benchmarks of one allocation"),
    "share-node": Command("jaxway.share_node", "run jobs side by side on parts of a node"),
    "record": Command("jaxway.analysis.history", "add results to the history of benchmarks"),
    "check-references": Command(
        "jaxway.analysis.references", "compare results with the site's references"
    ),
    "check-nodes": Command("jaxway.analysis.node_check", "compare nodes with each other"),
    "cost": Command("jaxway.slurm.accounting", "write what the jobs of this folder have used"),
    "describe-config": Command("jaxway.config.documentation", "print config/README.md"),
}


def overview() -> str:
    """What the commands are for, in lines."""
    lines = ["commands:"]
    for name, command in COMMANDS.items():
        if command.example:
            lines += [f"  {name:15}{command.summary}", f"{'':17}{command.example}"]
    lines += ["", "called by the workflow's rules:"]
    lines += [f"  {n:18}{c.summary}" for n, c in COMMANDS.items() if not c.example]
    return "\n".join(lines)


def functions(name: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[..., None]]:
    """What declares a command's arguments, and what runs it."""
    module = importlib.import_module(COMMANDS[name].module)
    suffix = f"_{name}".replace("-", "_")
    if not hasattr(module, f"run{suffix}"):
        suffix = ""
    return getattr(module, f"configure{suffix}"), getattr(module, f"run{suffix}")


def parse(words: Sequence[str]) -> tuple[Callable[..., None], argparse.Namespace]:
    """The function that the command line names, and its arguments."""
    parser = argparse.ArgumentParser(
        prog="jaxway",
        usage="jaxway COMMAND ... (jaxway COMMAND --help says more)",
        description="Commands around a run of the workflow, which `snakemake --profile "
        "profiles/<site>` starts.",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    name = parser.parse_args(words[:1]).command
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"jaxway {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=f"example: {command.example}" if command.example else None,
        allow_abbrev=False,
    )
    configure, run = functions(name)
    configure(parser)
    return run, parser.parse_args(words[1:])


def main() -> None:
    """Run the subcommand that the command line names; whatever ends it, it can clean up."""
    program = " ".join(["jaxway", *sys.argv[1:2]])

    def fail(code: str, sentence: str) -> NoReturn:
        sys.exit(f"{program}: {with_code(code, sentence)}")

    def end(number: int, _: object) -> NoReturn:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one does not stop the cleaning up
        fail("JW550", f"ended by {signal.Signals(number).name}")

    for number in SIGNALS:
        signal.signal(number, end)
    try:
        run, args = parse(sys.argv[1:])
        run(args)
    except UserError as error:
        fail(error.code, str(error))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail("JW551", reason)
