"""The command `jaxway`: one subcommand for each thing that a user or a rule asks for."""

import contextlib
import importlib
import sys

from jaxway import files

# Module and what it does. Imported only when it is called: some take seconds.
COMMANDS = {
    "pull": ("jaxway.container.pull", "fetch an image and make a container of it"),
    "add-packages": ("jaxway.container.packages", "put packages on top of a container"),
    "verify": ("jaxway.container.verify", "compare a container with its record"),
    "shell": ("jaxway.container.shell", "enter the container, as jobs do"),
    "prepare-data": ("jaxway.data.prepare", "turn text into shards of tokens"),
    "follow": ("jaxway.monitor", "show what the run of this folder does"),
    "cost": ("jaxway.slurm.accounting", "write what the jobs of this folder have used"),
    "run-benchmarks": ("jaxway.run_benchmarks", "run the benchmarks of one allocation"),
    "history": ("jaxway.analysis.history", "add to, compare and query the history of benchmarks"),
    "check-references": (
        "jaxway.analysis.references",
        "compare results with the site's references",
    ),
    "check-nodes": ("jaxway.analysis.node_check", "compare nodes with each other"),
    "describe-config": ("jaxway.configuration", "print config/README.md"),
    "report": ("jaxway.report.page", "write the report"),
}


def main() -> None:
    """Run the subcommand that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
        usage = "\n".join(["usage: jaxway COMMAND ... (COMMAND --help says more)", *lines])
        if sys.argv[1:] in (["--help"], ["-h"]):
            print(usage)
            return
        sys.exit(usage)
    module, _ = COMMANDS[sys.argv[1]]
    sys.argv[:2] = [f"jaxway {sys.argv[1]}"]
    program = importlib.import_module(module).main
    if module == "jaxway.monitor":  # Ctrl-C is how it is ended
        with contextlib.suppress(KeyboardInterrupt):
            program()
    else:
        files.run(program)
