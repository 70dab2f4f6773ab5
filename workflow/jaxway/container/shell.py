"""Step into the container: a shell, or any command, where and as the jobs run.

    python workflow/container.py --profile profiles/jureca [--here] [COMMAND ...]

On a site with Slurm it is on a GPU node, with the smoke test's partition, GPUs and time limit.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from jaxway import configuration

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow/scripts"))
from jaxway.container import verify  # noqa: E402


def launcher(config: configuration.Settings, site: configuration.Settings) -> list[str]:
    """How one process gets onto a node of the site, as the smoke test's would."""
    job = config["smoke_test"]["smoke_test"]
    words = site["launcher"].split()
    words += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={site['cores_per_node'] or 1}"]
    words += [f"--gres=gpu:{job['gpus_per_node']}", f"--time={job['walltime']}"]
    words += [f"--partition={job['partition']}"] if job["partition"] else []
    words += [f"--account={config['account']}"] if config["account"] else []
    return words + (["--pty"] if sys.stdin.isatty() else [])


def command(args: argparse.Namespace) -> list[str]:
    """The command line that steps in; sets the environment it needs."""
    profile, settings, site = configuration.read(args)
    # Here nobody has to pay.
    config = configuration.load(settings, site | {"account_variables": []} if args.here else site)
    container = configuration.container(config, site)
    configuration.prepare_environment(ROOT, site, container)
    os.environ.update(configuration.job_environment(config, container))

    sif = Path(container["sif"])
    for file in (sif, Path(container["made"])):
        if not file.exists():
            raise configuration.ConfigurationError(
                f"{file} is not there: `snakemake --profile {args.profile} "
                f"--configfile={args.configfile} verify_container` makes it"
            )
    if problem := verify.problem(sif, full=False, image=config["image"]):
        raise configuration.ConfigurationError(problem)
    words = launcher(config, site) if site["launcher"] and not args.here else []
    words += ["apptainer", "--quiet", "exec" if args.command else "shell", "--home", os.getcwd()]
    words += os.path.expandvars(profile.get("apptainer-args", "")).split()
    words += [str(sif), *args.command]
    if not shutil.which(words[0]):
        raise configuration.ConfigurationError(f"there is no {words[0]} in PATH")
    return words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    configuration.add_arguments(parser)
    parser.add_argument("--here", action="store_true", help="on this machine, without Slurm")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="none: a shell")
    args = parser.parse_args()
    if args.command[:1] == ["--"]:
        del args.command[0]
    try:
        words = command(args)
    except configuration.ConfigurationError as error:
        sys.exit(f"container: {error}")
    os.execvp(words[0], words)
