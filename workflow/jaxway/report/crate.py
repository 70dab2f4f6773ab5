"""`jaxway crate`: what a run has found, as a Research Object Crate: for an archive, or a reader.

A folder with the results, logs, configuration and workflow, and ro-crate-metadata.json, which says
by the profile Provenance Run Crate which program made which file, when, in which job and image.
Checkpoints, shards of tokens and containers are named there, but not copied.
"""

import argparse
import getpass
import json
import mimetypes
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from jaxway_shared import training
from jaxway_shared.benchmark import AllocationResult
from jaxway_shared.container_record import ContainerRecord
from jaxway_shared.errors import UserError
from jaxway_shared.provenance import Provenance
from jaxway_shared.smoke_test import SmokeTestResult
from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from jaxway.config.schema import WORKFLOW
from jaxway.container import image_name
from jaxway.container.verify import sha256
from jaxway.launch import commit_of
from jaxway.report.page import load
from jaxway.report.provenance import origin_of
from jaxway.slurm.accounting import read_cost

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
RO_CRATE = "1.1"  # on which these profiles build
TERMS = "https://w3id.org/ro/terms/workflow-run"
RESULTS = Path("results")
CODE = ("Snakefile", "rules", "workflow", "LICENSE")  # of the checkout
Files = dict[str, Path]  # by their names in the crate

# ------------------------------------------------------------------------------ what has been run


@dataclass(frozen=True)
class Execution:
    """A program that ran once."""

    name: str
    program: str
    provenance: Provenance
    end: datetime
    results: Sequence[Path] = field(default=())  # from the run's folder
    state: str | None = None  # folder of a training's checkpoints

    @property
    def begin(self) -> datetime:
        return datetime.fromisoformat(self.provenance.time)


def executions() -> Iterator[Execution]:
    """All programs that left a result in this folder."""
    ends = job_ends()

    def execution(name: str, program: str, provenance: Provenance, file: Path) -> Execution:
        written = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
        return Execution(name, program, provenance, ends.get(provenance.job, written), (file,))

    file = RESULTS / "smoke_test.json"
    smoke_test = load(SmokeTestResult.read, file)
    if smoke_test.provenance:
        yield execution("smoke test", "smoke_test", smoke_test.provenance, file)
    for file in sorted(RESULTS.glob("train/*/summary.json")):
        yield from training_jobs(file, ends)
    for file in sorted(RESULTS.glob("benchmark/*.json")):
        for each in load(AllocationResult.read, file).benchmarks:
            if each.provenance:
                name = f"benchmark {each.name} on {file.stem}"
                yield execution(name, f"benchmark_{each.program}", each.provenance, file)


def training_jobs(file: Path, ends: Mapping[str | None, datetime]) -> Iterator[Execution]:
    """The jobs of a training, of which the last one wrote this summary."""
    summary = load(training.read_summary, file)
    link = file.with_name("state")
    last = len(summary.segments)
    for number, segment in enumerate(summary.segments, 1):
        provenance = segment.provenance
        saved = datetime.fromisoformat(provenance.time) + timedelta(seconds=segment.seconds)
        yield Execution(
            name=f"training {file.parent.name}, job {number} of {last}",
            program=summary.program,
            provenance=provenance,
            end=ends.get(provenance.job, saved),
            results=(file, file.with_name(training.METRICS)) if number == last else (),
            state=Path(os.readlink(link)).name if link.is_symlink() else None,
        )


def job_ends() -> dict[str | None, datetime]:
    """When jobs ended, by Slurm's accounting, whose times are those of this machine's clock."""
    file = RESULTS / "cost.json"
    jobs = load(read_cost, file).jobs if file.exists() else ()
    return {
        each.job: datetime.fromisoformat(each.submitted).astimezone()
        + timedelta(seconds=each.queue_seconds + each.seconds)
        for each in jobs
    }


# ---------------------------------------------------------------------------------- what is copied


def tree(path: Path) -> Iterator[Path]:
    """A file, or those below a folder, without links, as to containers, and what tools leave."""
    if path.is_file():
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        files = (Path(folder, name) for name in names if not name.startswith("."))
        yield from (file for file in files if not file.is_symlink())


def copied(configuration: Path, done: Iterable[Execution]) -> tuple[Files, Files]:
    """What the crate has: results, logs and settings; and the workflow's code."""
    root = WORKFLOW.parent
    data = {str(file): file for name in ("results", "logs") for file in sorted(tree(Path(name)))}
    data[f"config/{configuration.name}"] = configuration
    try:
        "".join(data).encode()
    except UnicodeEncodeError as error:
        name = next(each for each in data if error.object[error.start] in each)
        raise UserError("JW482", f"{name!r} is no name in UTF-8: rename it") from None
    for site in {Path(each.provenance.site or "").name for each in done}:
        if (file := root / f"profiles/{site}/site.yaml").is_file():
            data[str(file.relative_to(root))] = file
    code = {str(x.relative_to(root)): x for name in CODE for x in sorted(tree(root / name))}
    return data, code


# ------------------------------------------------------------------------------- what is described


def add(crate: ROCrate, id_: str, kind: str, **properties: Any) -> ContextEntity:
    """An entity that is no file; without the properties that are not known."""
    known = {key: value for key, value in properties.items() if value is not None}
    return crate.add(ContextEntity(crate, quote(id_, safe="#:/"), {"@type": kind, **known}))


def some(*values: Any) -> Any:
    """Those that are known: a list, or as RO-Crate has it the only one itself."""
    known = [value for value in values if value]
    return known if len(known) > 1 else known[0] if known else None


def add_image(crate: ROCrate, record: ContainerRecord) -> ContextEntity:
    """The SIF in which a program ran, and what it was made from."""
    parts = image_name.parse(record.image)
    if record.base:
        origin = add_image(crate, record.base)
    else:
        origin = add(
            crate,
            f"#image-{record.identity.removeprefix('sha256:')}",
            "ContainerImage",
            additionalType={"@id": f"{TERMS}#DockerImage"},
            name=parts.repository if parts else record.image,
            registry=parts.host if parts else None,
            tag=parts.reference if parts else None,
            sha256=record.digest and record.digest.removeprefix("sha256:"),
        )
    return add(
        crate,
        f"#sif-{record.sha256}",
        "ContainerImage",
        additionalType={"@id": f"{TERMS}#SIFImage"},
        name=record.image,
        description=f"with {' '.join(record.installed)}" if record.installed else None,
        sha256=record.sha256,
        isBasedOn=origin,
    )


def add_execution(
    crate: ROCrate, execution: Execution, agent: ContextEntity, files: Mapping[str, Any]
) -> ContextEntity:
    """A program that ran: what it took, what it made, and the program itself."""
    provenance = execution.provenance
    commit = provenance.commit or "unknown"
    program = add(
        crate,
        f"#{execution.program}-{commit}",
        "SoftwareApplication",
        name=f"{execution.program}.py",
        softwareVersion=commit,
    )
    state = execution.state and add(
        crate,
        f"#state-{execution.state}",
        "CreativeWork",
        name=execution.state,
        description="checkpoints of a training, which are not in this crate",
    )
    job = provenance.job and add(
        crate, f"#job-{provenance.job}", "PropertyValue", name="Slurm job", value=provenance.job
    )
    record = files.get(str(provenance.arguments.get("data_record")))
    made = [files.get(str(file)) for file in execution.results]
    return add(
        crate,
        f"#{execution.name}",
        "CreateAction",
        name=execution.name,
        description=json.dumps(provenance.arguments),
        instrument=program,
        agent=agent,
        startTime=execution.begin.isoformat(timespec="seconds"),
        endTime=execution.end.isoformat(timespec="seconds"),
        identifier=some(job),
        containerImage=provenance.container and add_image(crate, provenance.container),
        object=some(record, state),
        result=some(*made, state),
    )


def describe(done: Sequence[Execution], args: argparse.Namespace) -> ROCrate:
    """The crate of what has been run in this folder."""
    crate = ROCrate(version=RO_CRATE)
    crate.metadata.extra_contexts.append(f"{TERMS}/context")
    sites = {str(each.provenance.site) for each in done}
    crate.name = f"Results of {Path.cwd().name}"
    crate.description = f"JAX on a supercomputer: programs ran on {', '.join(sites)}"
    license_url = f"https://spdx.org/licenses/{args.license}"
    crate.license = add(crate, license_url, "CreativeWork", name=args.license)
    crate.root_dataset["conformsTo"] = [
        add(crate, url, "CreativeWork", name=name, version=url.rpartition("/")[2])
        for url, name in PROFILES.items()
    ]
    agent = add(crate, args.orcid or f"#{getpass.getuser()}", "Person", name=args.author)
    crate.root_dataset["author"] = agent
    data, code = copied(args.configfile, done)
    files = {
        name: crate.add_file(file, name, **described(name, file)) for name, file in data.items()
    }
    source = code.pop("Snakefile")
    for name, file in code.items():
        crate.add_file(file, name, **described(name, file))
    workflow = crate.add_workflow(
        source,
        "Snakefile",
        main=True,
        lang="snakemake",
        lang_version=version("snakemake"),
        **described("Snakefile", source, version=commit_of(WORKFLOW.parent) or "unknown"),
    )
    steps = [add_execution(crate, each, agent, files) for each in done]
    workflow["hasPart"] = [*{each["instrument"].id: each["instrument"] for each in steps}.values()]
    whole = add(
        crate,
        "#run",
        "CreateAction",
        name="run of the workflow",
        description="from the first program that left a result here to the last",
        instrument=workflow,
        agent=agent,
        startTime=min(each.begin for each in done).isoformat(timespec="seconds"),
        endTime=max(each.end for each in done).isoformat(timespec="seconds"),
        object=[file for name, file in files.items() if not name.startswith(("results", "logs"))],
        result=[file for name, file in files.items() if name.startswith("results")],
    )
    crate.root_dataset["mentions"] = [whole, *steps]
    return crate


def described(name: str, source: Path, **more: str) -> dict[str, Any]:
    """What ROCrate is told of a file that it is to copy."""
    kind = mimetypes.guess_type(name)[0] or "text/plain"
    properties = {"name": name, "encodingFormat": kind, "sha256": sha256(source), **more}
    return {"properties": properties, "record_size": True}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    path = WORKFLOW.parent / "config/config.yaml"
    parser.add_argument("out", type=Path, help="folder to write, which must not be there")
    parser.add_argument("--license", required=True, help="of your results, as CC-BY-4.0 (SPDX)")
    parser.add_argument("--configfile", type=Path, default=path, help="as for Snakemake")
    parser.add_argument("--author", default=getpass.getuser(), help="your name")
    parser.add_argument("--orcid", help="https://orcid.org/0000-...")


def run(args: argparse.Namespace) -> None:
    """Write the crate."""
    out = args.out.absolute()
    if out.exists():
        raise UserError("JW482", f"{out} is there already")
    done = list(executions())
    if not done:
        raise UserError("JW482", "no result here says where it comes from")
    crate = describe(done, args)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        part = Path(folder, out.name)
        crate.write(part)
        part.rename(out)
    for warning in origin_of([(each.name, each.provenance) for each in done]).warnings:
        print(warning)
    size = sum(file.stat().st_size for file in tree(out))
    print(f"{out}: {size / 1e6:,.1f} MB; checkpoints and containers are named, not copied")
