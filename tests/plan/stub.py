#!/usr/bin/env python3
"""A stub of every command that the plan calls: records its arguments, then does the least that
lets the plan go on. Its name decides which command it is. For tests of the plan only.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

RESULT = {  # what is needed of a smoke test, of a training and of a benchmark
    "provenance": {
        **dict.fromkeys(("container", "commit", "site", "job", "platform", "device_kind")),
        **dict.fromkeys(("backend", "driver")),
        **dict.fromkeys(("time", "nodes", "python", "jax", "jaxlib", "numpy"), ""),
        **{"devices": 1, "processes": 1},
        "arguments": {"global_batch": 1, "context": 1},
    },
    "cases": [],
    "transports": {},
    "passed": True,
    "checks": [],
    "versions": {},
    "data": {
        **dict.fromkeys(("documents", "train_bytes", "train_tokens", "validation_bytes"), 1),
        **dict.fromkeys(("vocabulary", "validation_tokens"), 1),
        **dict.fromkeys(("unigram_bits_per_byte", "gzip_bits_per_byte"), 8.0),
        **{"special_tokens": 0, "unknown_tokens": 0, "lossless": True},
        **{"tokenizer": "bytes", "tokenizer_sha256": None, "dtype": "uint8"},
        **{
            "shards": [1],
            "sources": {"": 1},
            "end_of_text": None,
            "header_bytes": 0,
            "sha256": "",
            "folder": "",
        },
    },
    "program": "train",
    "mfu": None,
    "mfu_causal": None,
    "segments": [],
    "sample": "",
    "steps": 1,
    "parameters": 1,
    "flops_per_token": 6,
    "seconds": 1.0,
    "tokens_per_second": 1.0,
    "train_nats_per_token": 5.5,
    "validation_nats_per_token": 5.5,
    "train_bits_per_byte": 8.0,
    "validation_bits_per_byte": 8.0,
    "unigram_bits_per_byte": 8.0,
    "gzip_bits_per_byte": 8.0,
}

name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
folder = Path(os.environ["STUB_FOLDER"])
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([name, *arguments]) + "\n")


def after_sif() -> list[str]:
    """What apptainer is to run in the container."""
    return arguments[next(i for i, a in enumerate(arguments) if a.endswith(".sif")) + 1 :]


def value(flag: str) -> str:
    """Value of --flag=value."""
    return next(a.split("=", 1)[1] for a in arguments if a.startswith(f"{flag}="))


if name == "sbatch" and "--test-only" in arguments:
    print("sbatch: Job 1 to start at 2000-01-01T00:00:00 using 128 processors", file=sys.stderr)
elif name == "sbatch":  # runs the job before it returns
    with (folder / "jobs").open("a+") as jobs:
        jobs.seek(0)
        job = len(jobs.readlines()) + 1
        log = arguments[arguments.index("--output") + 1].replace("%j", str(job))
        job_name = arguments[arguments.index("--job-name") + 1]
        cancelled = any(os.environ.get("STUB_CANCELLED", "\0") in word for word in arguments)
        with open(log, "w") as output:
            # Its Snakemake comes from a process that has imported it (forked.py).
            job_line = re.sub(r"\S+ -m snakemake ", os.environ["STUB_SNAKEMAKE"], sys.stdin.read())
            run = subprocess.run(
                "exit 1" if cancelled else job_line,
                shell=True,
                env=os.environ | {"SLURM_JOB_ID": str(job)},
                stdout=output,
                stderr=output,
            )
        state = "CANCELLED" if cancelled else "FAILED" if run.returncode else "COMPLETED"
        jobs.write(f"{job}|{job_name}|{state}|jrc0101\n")
    print(job)
elif name == "squeue" and any(word.startswith("--name=") for word in arguments):
    names = value("--name").split(",")
    lines = (folder / "jobs").read_text().splitlines()
    print("\n".join(line for line in lines if line.split("|")[1] in names))
elif name == "squeue":  # jobs that have not ended: none
    pass
elif name == "scontrol" and "partition" in arguments:
    print("State=UP AllowAccounts=ALL MaxNodes=UNLIMITED MaxTime=1-00:00:00")
elif name == "scontrol":
    print("MinJobAge = 300 sec")
elif name == "sacctmgr" and "qos" in arguments:
    print("normal||||")
elif name == "sacctmgr":
    print("training")
elif name == "sshare":
    print("|cpu=6000|cpu=0")
elif name == "sacct":  # every job took a minute
    for number in value("--jobs").split(","):
        print(f"{number}|COMPLETED|2100-01-01T00:00:00|2100-01-01T00:00:09|60|1|30")
elif name == "sinfo":
    if "--format=%D %G" in arguments:
        print("100 gpu:a100:4(S:0-1)")
    elif "--Node" in arguments:
        print("\n".join(f"{node} idle" for node in value("--nodes").split(",")))
    else:
        print("dc-gpu* dc-gpu-devel")
elif name == "apptainer" and arguments == ["--version"]:
    print("apptainer version 1.4.5")
elif name == "apptainer" and "shell" in arguments[:2]:
    pass  # nobody types into it
elif name == "apptainer" and "exec" in arguments[:2]:
    sys.exit(subprocess.run(after_sif()).returncode)
elif name == "apptainer" and arguments[:2] == ["sif", "header"]:
    pass  # it is a SIF
elif name == "apptainer" and arguments[0] == "build":
    Path(arguments[-2]).write_bytes(bytes(2**21))  # Snakemake takes no checksum of so large a file
elif name == "srun":
    command = next(i for i, a in enumerate(arguments) if not a.startswith("-"))
    sys.exit(subprocess.run(arguments[command:]).returncode)
elif name == "python3" and arguments == ["-V"]:
    pass
elif name == "python3":  # a program: leaves what it was asked for
    with (folder / "environments").open("a") as seen:
        seen.write(json.dumps(dict(os.environ)) + "\n")
    out = Path(value("--out"))
    version = {"schema_version": 3 if out.name == "summary.json" else 2}
    out.write_text(json.dumps(version | RESULT))
    if out.name == "summary.json":
        out.with_name("metrics.jsonl").write_text('{"step": 1, "loss": 8.0}\n')
else:
    sys.exit(f"stub: no such call: {name} {arguments}")
