"""A folder to plan in, and a Snakemake whose Slurm and Apptainer are stubs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import yaml
from jaxway.config.containers import digest_path, record_path
from jaxway.container import store, verify
from jaxway_shared.container_record import ContainerRecord

ROOT = Path(__file__).parents[2]
IMAGE = "docker://nvcr.io/nvidia/jax:24.10-maxtext-py3"  # the default
DIGEST = f"sha256:{1:064}"
STUBS = (
    *("apptainer", "python3", "sacct", "sacctmgr", "sbatch", "scontrol", "sinfo", "squeue"),
    *("srun", "sshare"),
)


def blocks(heading: str) -> list[str]:
    """Code blocks of a section of docs/usage.md."""
    section = (ROOT / "docs/usage.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)


def placed(sbatch: list[str]) -> list[str]:
    """Arguments of sbatch that say where and for how long a job runs."""
    folder = sbatch.index("-D")
    return [*sbatch[sbatch.index("-A") : folder], *sbatch[folder + 2 : folder + 4]]


class Plan:
    """A folder in which Snakemake runs this workflow."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.profiles = folder, ROOT / "profiles"
        self.snakefile = ROOT / "Snakefile"
        self.scratch = folder / "scratch"
        self.shared = self.scratch / "jureca_containers/jax.sif"  # the site's link
        self.sif = folder / "results/container/jax.sif"  # that of the run
        self.record, self.digest = record_path(self.sif), digest_path(self.sif)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "USER": "alice",
            "SCRATCH": str(self.scratch),
            "SBATCH_ACCOUNT": "training",
        }

    def configure(self, **config) -> None:
        """Write the configuration file."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))

    def words(self, profile: str) -> list[str]:
        """Arguments of Snakemake."""
        words = ["--snakefile", str(self.snakefile), "--profile", str(self.profiles / profile)]
        return [*words, "--configfile=config.yaml"]  # with a space it would swallow targets

    def start(self, *arguments: str, profile: str = "jureca") -> subprocess.Popen[str]:
        """Start Snakemake in a process group of its own; all that it prints is in ``stdout``."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *self.words(profile), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def snakemake(self, *arguments: str, profile: str = "jureca", check: bool = True):
        """Run Snakemake; returns the completed process, standard error in ``stderr``."""
        words = [*self.words(profile), *arguments]
        result = forked.snakemake(*words, folder=self.folder, environment=self.environment)
        if check:
            assert result.returncode == 0, result.stderr
        return result

    def planned(self, *arguments: str, **options) -> list[str]:
        """Names of the jobs that a dry-run lists: the rule, or rule and job."""
        listing = self.snakemake("--dry-run", "--verbose", *arguments, **options).stderr
        names, lines = [], listing.splitlines()
        for i, line in enumerate(lines):
            if "Would run" in line:
                rule = line.split("Would run ")[1].split()[0]
                wildcards = [w for w in lines[i + 1 : i + 4] if "Wildcards: name=" in w]
                names.append(rule + (f" {wildcards[0].split('name=')[1]}" if wildcards else ""))
        return sorted(n for n in names if n != "all")

    def use_stubs(self) -> None:
        """Put stubs of Slurm, Apptainer and the container's Python first in PATH."""
        binaries = self.folder / "bin"
        binaries.mkdir()
        self.scratch.mkdir(exist_ok=True)
        for name in STUBS:
            stub = (ROOT / "tests/plan/stub.py").read_text()
            (binaries / name).write_text(stub.replace("/usr/bin/env python3", sys.executable))
            (binaries / name).chmod(0o755)
        self.environment["PATH"] = f"{binaries}:{self.environment['PATH']}"
        self.environment["STUB_FOLDER"] = str(self.folder)
        self.environment["STUB_SNAKEMAKE"] = forked.asking()
        # What compute nodes would do is done here, so they see every folder.
        self.profiles = Path(shutil.copytree(ROOT / "profiles", self.folder / "profiles"))
        copies = os.path.relpath(self.profiles, ROOT / "profiles")
        for pattern, old, new in (
            ("*/config.yaml", 'slurm_profile("', f'slurm_profile("{copies}/'),
            ("*/site.yaml", "shared: [/p]", "shared: [/]"),
        ):
            for file in self.profiles.glob(pattern):
                file.write_text(file.read_text().replace(old, new))

    def make_container(self) -> None:
        """Leave what pull makes."""
        self.shared.parent.mkdir(parents=True, exist_ok=True)
        container = store.path_of(self.shared, IMAGE, DIGEST)
        self.make_sif(container)
        store.lead(self.shared, container.name)
        store.lock(self.sif, container, IMAGE)

    def make_sif(self, sif: Path) -> None:
        """Leave a container with its record and digest."""
        sif.write_text("a container")
        record = ContainerRecord(
            image=IMAGE,
            digest=DIGEST,
            **verify.fingerprint(sif),
            apptainer="1.4.5",
            date="2026-11-26T08:00:00Z",
            labels={},
            layers=(),
        )
        for file, text in store.record_texts(sif, record).items():
            file.write_text(text)

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each call of a stub; sbatch that only looks does not count."""
        calls = map(json.loads, (self.folder / "calls.jsonl").read_text().splitlines())
        return [call[1:] for call in calls if call[0] == name and "--test-only" not in call]
