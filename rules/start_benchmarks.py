"""Become `jaxway run-benchmarks`, whose plan can be too long for a command line."""

import json
import os
import sys
from pathlib import Path

Path(snakemake.output.plan).write_text(json.dumps(snakemake.params.plan, indent=1) + "\n")
log = os.open(snakemake.log[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(log, sys.stdout.fileno())
os.dup2(log, sys.stderr.fileno())
jaxway = Path(snakemake.input.script).parent
files = [f"--plan={snakemake.output.plan}", f"--out={snakemake.output.result}"]
os.execv(sys.executable, [sys.executable, str(jaxway), "run-benchmarks", *files])
