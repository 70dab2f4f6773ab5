"""Errors that a user can cause: each has a code, and a row in docs/troubleshooting.md.

The code stands behind the sentence wherever that is printed: ``pull: no space left [JW103]``.
"""

import os
import re
import socket
import sys
from pathlib import Path
from typing import NoReturn

# What each code is about. A code never changes its meaning; one that was removed is not used again.
CODES = {
    # Configuration, sweeps and site: 001 to 099.
    "JW001": "result file of another schema version",
    "JW002": "unknown configuration key",
    "JW003": "value of a wrong type or out of range",
    "JW004": "name that cannot be one",
    "JW005": "configuration key given twice",
    "JW006": "no job of that name",
    "JW007": "environment variable in the configuration is not set",
    "JW008": "sweep that cannot be one",
    "JW009": "job that the site cannot place",
    "JW010": "sizes of a training do not fit together",
    "JW011": "data or tokenizer cannot be read",
    "JW012": "command cannot be run",
    "JW013": "no such benchmark program",
    "JW014": "nodes or benchmarks of a node check",
    "JW015": "no Slurm account",
    "JW016": "password in the image's name",
    "JW017": "packages cannot be added at this site",
    "JW018": "container settings where jobs run without one",
    "JW019": "configuration key that has another name now",
    "JW020": "invalid site file",
    "JW021": "variable that the site requires is not set",
    "JW022": "path that cannot be used",
    "JW023": "Python in a path with spaces",
    "JW024": "profile or configuration file cannot be used",
    "JW025": "options of a program are not declared as they must be",
    "JW026": "workflow is not checked out",
    "JW027": "environment of another checkout",
    "JW028": "no profile on a machine that has one",
    "JW029": "options of data that do not fit together",
    "JW030": "no training of that name to begin from, or one of another shape",
    #
    # Container and packages: 100 to 179.
    "JW110": "name of an image",
    "JW111": "Apptainer does not run",
    "JW112": "no permission to use Apptainer",
    "JW113": "Apptainer failed",
    "JW114": "package that does not fit the image's",
    "JW120": "unauthorized at the registry",
    "JW121": "not in the registry",
    "JW122": "registry does not deliver",
    "JW123": "unknown registry",
    "JW124": "proxy does not work",
    "JW125": "certificate that is not trusted",
    "JW126": "invalid answer of a registry",
    "JW127": "image for another architecture",
    "JW128": "not a SIF",
    "JW129": "image without the signature that the site asks for",
    "JW130": "no space left for a pull",
    "JW131": "tmpdir cannot be used",
    "JW140": "container differs from its record",
    "JW141": "container of another image",
    "JW142": "container that this user may not read",
    #
    # Preparation of data: 180 to 199.
    "JW180": "no text to learn",
    "JW181": "too little text",
    "JW182": "text changed while it was read",
    "JW183": "file that is neither text in UTF-8 nor a table",
    "JW184": "tokenizer cannot be used",
    "JW185": "no space left for prepared data",
    "JW186": "prepared data missing or changed",
    "JW187": "table without text",
    "JW188": "shards of tokens that cannot be used",
    #
    # Slurm, its executor, and a run as a whole: 200 to 299.
    "JW200": "second run in a folder",
    "JW201": "second Ctrl-C",
    "JW202": "job refused by Slurm",
    "JW203": "job not submitted",
    "JW204": "training stopped",
    "JW205": "job failed",
    "JW206": "job not cancelled",
    "JW209": "missing file that cannot be restored",
    "JW210": "no answer of Slurm's accounting",
    "JW212": "run interrupted",
    "JW213": "file system without locks",
    "JW214": "executor that is not the profile's",
    "JW215": "jobs that the executor does not submit",
    #
    # Training programs and their state: 300 to 379.
    "JW300": "training's state is in use",
    "JW301": "training's state cannot be written",
    "JW302": "training's state is of other settings or another version",
    "JW303": "checkpoint not written",
    "JW304": "no checkpoint can be read",
    "JW305": "loss or gradient is not finite",
    "JW306": "step does not end, or a process is gone",
    "JW307": "options of a training do not fit together",
    "JW308": "prepared data cannot be read",
    "JW309": "data too short for the context",
    "JW310": "program of the user cannot be run",
    "JW311": "program of the user failed",
    "JW312": "metrics of the user's program cannot be read",
    "JW313": "no MaxText in the container",
    "JW314": "settings of MaxText",
    "JW315": "checkpoint to begin from cannot be used",
    "JW316": "model that cannot be exported or imported",
    "JW317": "option of XLA that this version does not take",
    "JW318": "attention that XLA cannot compute deterministically",
    #
    # Devices and processes: 380 to 399.
    "JW380": "devices cannot be shared equally",
    "JW381": "JAX cannot use the platform",
    "JW382": "JAX sees another number of devices",
    "JW383": "job runs in a container of another image",
    "JW384": "file of a program cannot be written",
    #
    # Smoke test: 400 to 449.
    "JW400": "failed check of the smoke test",
    #
    # Benchmarks, history and report: 450 to 499.
    "JW450": "too little device memory",
    "JW451": "failed benchmark case",
    "JW452": "benchmark sizes that do not fit the devices",
    "JW453": "wrong result of a benchmark",
    "JW454": "benchmark that did not end in time",
    "JW455": "benchmark program that failed",
    "JW460": "value outside its reference",
    "JW461": "unexpected NCCL transport",
    "JW462": "benchmarks that did not pass",
    "JW463": "node that left no result",
    "JW464": "no nodes to compare",
    "JW470": "empty history",
    "JW471": "version that the history does not know",
    "JW472": "versions that cannot be compared",
    "JW473": "query that DuckDB refuses",
    "JW480": "result file that is missing or unreadable",
    "JW481": "damaged metrics",
    "JW482": "crate that cannot be written",
    #
    # Preflight: 500 to 549.
    "JW500": "a check of the plan has failed",
    "JW501": "account of somebody else",
    "JW502": "budget is used up",
    "JW503": "unknown partition",
    "JW504": "closed partition",
    "JW505": "limit of a partition",
    "JW506": "refused by Slurm",
    "JW507": "node that starts no job",
    "JW508": "file system is not mounted",
    "JW509": "folder cannot be written",
    "JW510": "too little disk space",
    "JW511": "no file of data",
    "JW512": "file of data cannot be read",
    "JW513": "too little data",
    "JW514": "compute nodes do not see a folder",
    "JW515": "run in $HOME",
    "JW516": "container does not see a file",
    "JW517": "training that does not fit a GPU's memory",
    "JW518": "step that cannot be compiled",
    "JW519": "site without a known GPU",
    #
    # The command line `jaxway`: 550 to 599.
    "JW550": "ended by a signal",
    "JW551": "refused by the operating system",
    "JW552": "no Slurm to follow",
    "JW553": "no container to enter",
    "JW554": "program to enter a container is missing",
    "JW555": "no command for the container",
    "JW556": "no TensorBoard to write for",
    "JW557": "program that does not start, stop or resume as jobs need it",
}


class UserError(Exception):
    """An error that a user can cause and correct; ``str()`` is one sentence, without the code."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    def line(self) -> str:
        """The sentence and its code, as it is printed."""
        return with_code(self.code, str(self))


def with_code(code: str, sentence: str) -> str:
    """A sentence and its code, as it is printed."""
    return f"{sentence} [{code}]"


def parse(line: str) -> UserError | None:
    """The error of a line that ``with_code`` made; None, the line has no code."""
    found = re.fullmatch(r"(.*?)\.? \[(JW\d+)\]", line, re.DOTALL)
    return UserError(found[2], found[1]) if found else None


def fail(code: str, sentence: str) -> NoReturn:
    """End the program with exit code 1 and one sentence on standard error."""
    sys.exit(f"{this_program()}: {with_code(code, sentence)}")


def this_program() -> str:
    """The program and, in a job of Slurm, its node: what other processes say is in the same log."""
    name = Path(sys.argv[0]).name
    return f"{name} on {socket.gethostname()}" if "SLURM_JOB_ID" in os.environ else name


def from_exit(stop: SystemExit) -> UserError:
    """The error that ``fail`` ended a program with."""
    sentence, _, code = str(stop.code).partition(": ")[2].rpartition(" [")
    return UserError(code.rstrip("]"), sentence)
