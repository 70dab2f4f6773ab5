"""A shell, or one command, in the container, where and as the jobs run.

At a site with Slurm that is on a GPU node, with the smoke test's partition, GPUs and time limit.
"""

import argparse
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from jaxway_shared.errors import UserError

from jaxway.config.jobs import Config
from jaxway.config.load import add_arguments, load, read
from jaxway.config.schema import WORKFLOW
from jaxway.config.site import Site
from jaxway.container import verify
from jaxway.launch import Launch, prepare_environment, slurm_options


def command_line(args: argparse.Namespace) -> list[str]:
    """The command line that enters the container."""
    profile, settings, site = read(args)
    # On this machine no account is charged.
    config = load(settings, replace(site, account_variables=[]) if args.here else site)
    launch = Launch(WORKFLOW.parent, config, site, True, profile.get("apptainer-args", ""))
    container = launch.container
    prepare_environment(launch.root, contained=True)
    sif = Path(container.sif)
    for file in (sif, Path(container.output)):
        if not verify.exists(file):
            raise UserError(
                "JW553",
                f"{file} does not exist: `snakemake --profile {args.profile} "
                f"--configfile={args.configfile} verify_container` makes it",
            )
    if problem := verify.find_problem(sif, full=False, image=config.image):
        raise problem
    words = [] if args.here else launcher(config, site)
    words += ["apptainer", "--quiet", "exec" if args.command else "shell", "--home", os.getcwd()]
    words += [*launch.apptainer_words(container), str(sif), *args.command]
    if not shutil.which(words[0]):
        raise UserError("JW554", f"there is no {words[0]} in PATH")
    return [*launch.environment(container), *words]


def launcher(config: Config, site: Site) -> list[str]:
    """What starts one process on a node, as the smoke test's would; nothing, without Slurm."""
    if not site.launcher:
        return []
    one_node = replace(config.smoke_test.placement, nodes=1)
    words = [*site.launcher.split(), *slurm_options(one_node, config.account)]
    words += ["--ntasks=1", f"--cpus-per-task={site.cores_per_node or 1}"]
    return words + (["--pty"] if sys.stdin.isatty() else [])


def configure_shell(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("--here", action="store_true", help="on this machine, without Slurm")
    parser.set_defaults(command=[])


def configure_exec(parser: argparse.ArgumentParser) -> None:
    configure_shell(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")


def run_shell(args: argparse.Namespace) -> None:
    words = command_line(args)
    os.execvp(words[0], words)


def run_exec(args: argparse.Namespace) -> None:
    if args.command[:1] == ["--"]:
        del args.command[0]
    if not args.command:
        raise UserError("JW555", "no command is given; `jaxway shell` opens a shell")
    run_shell(args)
