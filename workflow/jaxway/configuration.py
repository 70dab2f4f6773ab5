"""Check the configuration and turn it into jobs; run as a program, print config/README.md.

Knows nothing of Snakemake. Whatever a user can get wrong is a `ConfigurationError` whose message
is one sentence that begins with the path of the key.
"""

import argparse
import ast
import difflib
import functools
import getpass
import glob
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml
import yte

WORKFLOW = Path(__file__).parents[1]
SCRIPTS = WORKFLOW / "scripts"
SECTIONS = ("smoke_test", "train", "benchmark")

Settings = dict[str, Any]


class ConfigurationError(Exception):
    """The configuration or the environment is not usable; the message is one sentence."""


@functools.cache
def load_schema(name: str) -> Settings:
    """The schema workflow/schemas/<name>.schema.yaml."""
    return yaml.safe_load((WORKFLOW / "schemas" / f"{name}.schema.yaml").read_text())


@functools.cache
def literal(module: str, name: str) -> Any:
    """A literal that workflow/scripts/<module>.py assigns to a global name.

    Read without importing, since the program's imports may exist only in the container.
    """
    for statement in ast.parse((SCRIPTS / f"{module}.py").read_text()).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(target)], value=value)
                | ast.AnnAssign(target=ast.Name(target), value=ast.expr() as value)
            ) if target == name:
                try:
                    return ast.literal_eval(value)
                except ValueError as error:
                    raise ConfigurationError(
                        f"workflow/scripts/{module}.py: {name} must be literal, with no "
                        f"expression in it: {error}"
                    ) from None
    raise ConfigurationError(f"workflow/scripts/{module}.py: declares no {name}")


@functools.cache
def options_of(module: str) -> Settings:
    """The JSON-schema properties that workflow/scripts/<module>.py declares in ``OPTIONS``."""
    options = literal(module, "OPTIONS")
    for name, schema in options.items():
        for key in ("type", "default", "description"):
            if key not in schema:
                raise ConfigurationError(
                    f"workflow/scripts/{module}.py: OPTIONS.{name} has no {key}"
                )
    return options


def programs() -> list[str]:
    """Names of the benchmark programs."""
    return sorted(p.stem.removeprefix("benchmark_") for p in SCRIPTS.glob("benchmark_*.py"))


def program_options(section: str, program: str) -> Settings:
    """Properties of the options of the program that runs an entry of ``section``."""
    if section == "benchmark":
        return options_of("jaxway_job/measure") | options_of(f"benchmark_{program}")
    return options_of(program)


def data_options(program: str) -> Settings:
    """Properties of a training's data preparation; none, if its program brings its own data."""
    return options_of("../jaxway/data/prepare") if program == "train" else {}


def nearest(word: str, known: list[str]) -> str:
    """A hint at the known word that was probably meant."""
    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


IN_YAML = {  # what a user of YAML calls a type
    **{"object": "a mapping", "array": "a list", "string": "text"},
    **{"integer": "an integer", "number": "a number"},
}

# Stricter than JSON Schema, for which 100.0 is an integer, and as strict as a command line.
Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ).redefine("number", lambda _, value: type(value) in (int, float) and math.isfinite(value)),
)


def check(value: Any, schema: Settings, path: str) -> None:
    """Raise a sentence for the first way in which ``value`` breaks ``schema``."""
    errors = Validator(schema).iter_errors(value)
    error = min(errors, key=lambda e: [str(part) for part in e.absolute_path], default=None)
    if error is None:
        return
    key = ".".join([path, *map(str, error.absolute_path)]).lstrip(".")
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        word = next(k for k in error.instance if k not in known)
        raise ConfigurationError(
            f"{key}.{word}".lstrip(".") + f": unknown key; {nearest(str(word), known)}"
        )
    found = json.dumps(error.instance, ensure_ascii=False, default=str)
    if "propertyNames" in error.absolute_schema_path:
        raise ConfigurationError(
            f"{key}: a name must be text that matches {error.schema['pattern']}, not {found}"
        )
    wanted = {
        "type": lambda v: (
            f"must be {' or '.join(IN_YAML.get(x, x) for x in ([v] if isinstance(v, str) else v))}"
            + (" (write 1.0e-3 for 1e-3)" if "number" in v else "")
        ),
        "enum": lambda v: f"must be one of {', '.join(str(x or 'null') for x in v)}",
        "minimum": lambda v: f"must be at least {v}",
        "exclusiveMinimum": lambda v: f"must be greater than {v}",
        "maximum": lambda v: f"must be at most {v}",
        "minItems": lambda v: "must not be empty",
        "pattern": lambda v: f"must match {v}",
    }.get(str(error.validator), lambda v: error.message)(error.validator_value)
    raise ConfigurationError(f"{key}: {wanted}, not {found}")


def with_defaults(value: Settings, properties: Settings) -> Settings:
    """``value`` with the default of every property that it does not set."""
    return {k: s["default"] for k, s in properties.items() if "default" in s} | value


def load_site(root: Path) -> Settings:
    """Description of the site whose profile is in use, with its environment variables expanded.

    The profile names itself in $JAXWAY_SITE: what it puts into `configfile` or `config` is lost
    as soon as the user gives those options too.
    """
    path = root / os.environ.setdefault("JAXWAY_SITE", "profiles/local") / "site.yaml"
    os.environ.setdefault("USER", getpass.getuser())
    schema = load_schema("site")
    try:
        site = yaml.safe_load(path.read_text())
        check(site, schema, "site")
    except (ConfigurationError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{path} describes no site: {reason}") from None
    site = with_defaults(site, schema["properties"]) | {"file": str(path)}
    for name, advice in site["required_variables"].items():
        if not os.environ.get(name):
            raise ConfigurationError(f"${name} is not set: {advice}")
    for key in ("sif", "scratch"):
        below_variable = site[key].startswith("$")
        site[key] = expand(site[key], key)
        simple_path(site[key], key)
        if below_variable and not site[key].startswith("/"):
            raise ConfigurationError(f"{key}: must be an absolute path, not {site[key]}")
    site["shared"] = [expand(folder, "shared") for folder in site["shared"]]
    if " " in sys.executable:
        raise ConfigurationError(
            f"Snakemake cannot start Python from a path with spaces: {sys.executable}"
        )
    return site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a program of ours is told what Snakemake is told."""
    for name, default in (("profile", "profiles/local"), ("configfile", "config/config.yaml")):
        path = WORKFLOW.parent / default
        parser.add_argument(f"--{name}", type=Path, default=path, help=f"default: {default}")


def read(args: argparse.Namespace) -> tuple[Settings, Settings, Settings]:
    """Profile, configuration as it is written, and site, that these arguments name."""
    try:
        text = (args.profile / "config.yaml").read_text()
        profile = yte.process_yaml(text, require_use_yte=True)  # names the site
        settings: Any = yaml.safe_load(args.configfile.read_text()) or {}
        if "jaxway" in settings:  # of a workflow that has this one as a module
            settings = settings["jaxway"] or {}
    except Exception as error:  # a profile may run any code
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{args.profile} or {args.configfile} cannot be used: {reason}"
        ) from None
    return profile, settings, load_site(WORKFLOW.parent)


def container(config: Settings, site: Settings) -> Settings:
    """Files of the container that jobs run in.

    ``sif``, its ``record``, ``digest`` (what reruns depend on), and ``packages``: the folder with
    the configured Python packages, or None where there are none or the SIF holds them. ``made`` is
    the last of them to be made, SIF or folder.
    """
    sif, packages = site["sif"], config["packages"]

    def files(sif: str, made: str) -> Settings:
        folder = made if made != sif else None
        record, digest = f"{made}.json", f"{made}.digest"
        return {"sif": sif, "made": made, "record": record, "digest": digest, "packages": folder}

    if not packages:
        return files(sif, sif)
    # Named by its content, so that users of one folder with other packages keep out of each other.
    made = f"{sif.removesuffix('.sif')}-{short_hash(packages)}"
    if site["container_build"]:
        return files(f"{made}.sif", f"{made}.sif")
    if "debian" in packages:
        raise ConfigurationError(
            f"packages.debian: at {site['name']} users cannot build containers, so only Python "
            "packages can be added"
        )
    return files(sif, made)


def prepare_environment(root: Path, site: Settings, container: Settings | None) -> None:
    """Set what jobs inherit, and drop what must not reach the container, if there is one."""
    if container:
        for variable in site["unset_variables"]:
            os.environ.pop(variable, None)
        if folder := container["packages"]:
            binds = [b for b in os.environ.get("APPTAINER_BIND", "").split(",") if b]
            if (bind := f"{folder}:{folder}:ro") not in binds:
                os.environ["APPTAINER_BIND"] = ",".join([*binds, bind])
    else:  # python3 is to be the one that runs this: it has JAX beside it
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if "SLURM_JOB_END_TIME" in os.environ:  # in a job, before the Slurm plugin drops it
        os.environ["JAXWAY_DEADLINE"] = os.environ["SLURM_JOB_END_TIME"]
    git = ["git", "-C", str(root)]
    commit = [*git, "describe", "--always", "--abbrev=40"]
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!config"]  # results tell that one
    try:
        described = subprocess.run(commit, capture_output=True, text=True, check=True)
        dirty = "-dirty" if subprocess.run(changed, capture_output=True).returncode else ""
        os.environ["JAXWAY_COMMIT"] = described.stdout.strip() + dirty
    except (OSError, subprocess.CalledProcessError):  # a compute node may have no git
        os.environ.setdefault("JAXWAY_COMMIT", "unknown")


def job_environment(config: Settings, container: Settings | None) -> dict[str, str]:
    """Environment variables of every computing job."""
    environment = dict(config["environment"])
    if container and container["packages"]:
        paths = [container["packages"], environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = ":".join(filter(None, paths))
    return environment


def expand(text: str, path: str) -> str:
    """``text`` with its environment variables and ~ replaced."""
    result = os.path.expanduser(os.path.expandvars(text))
    if "$" in result:
        raise ConfigurationError(f"{path}: names an environment variable that is not set: {result}")
    return result


def simple_path(path: str, key: str) -> str:
    """The path, if Apptainer can bind it."""
    if not re.fullmatch(r"[\w./+@=-]+", path):
        raise ConfigurationError(
            f"{key}: Apptainer takes no path with spaces or special characters: {path}"
        )
    return path


def load(config: Any, site: Settings) -> Settings:
    """The whole configuration, checked and completed.

    Each section becomes a dictionary of jobs by name. A job has the keys of a placement, its
    ``program`` and that program's ``options``. A training has also ``id``, a hash of what defines
    it, and ``data``, the options with which its data are prepared; none if it brings its own.
    """
    schema = load_schema("config")
    check(config, schema | {"properties": known_sections(schema)}, "")
    config = with_defaults(config, schema["properties"])
    if site["account_variables"] and not config["account"]:
        # In a job Slurm's own variables are gone; ours tells what they said.
        names = [*site["account_variables"], "JAXWAY_ACCOUNT"]
        found = list(filter(None, map(os.environ.get, names)))
        if not found:
            raise ConfigurationError(
                "account: no Slurm account; set it in the configuration, or "
                f"`export {names[0]}=<account>`"
            )
        check(found[0], schema["properties"]["account"], "account")
        config["account"] = os.environ["JAXWAY_ACCOUNT"] = found[0]
    if re.match(r"\w+://[^/]*@", config["image"]):  # not repeated here, nor in any log
        raise ConfigurationError(
            "image: a user or password does not belong in the image's name; set "
            "APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD"
        )
    config["image"] = expand(config["image"], "image")
    if config["temporary"]:
        config["temporary"] = expand(config["temporary"], "temporary")
    for kind, packages in config["packages"].items():
        config["packages"][kind] = [expand(name, f"packages.{kind}") for name in packages]
    config["platform"] = config["platform"] or site["platform"]
    config["environment"] = site["environment"] | config["environment"]
    for section in SECTIONS:
        entries = config[section]
        if section == "smoke_test":
            entries = {section: entries}
        config[section] = {}
        for name, entry in entries.items():
            path = section if section == "smoke_test" else f"{section}.{name}"
            for job_name, job in jobs(section, name, entry or {}, path, site):
                if section == "smoke_test" and job_name != section:
                    raise ConfigurationError(f"{section}: there is one, so no key can be a list")
                if job_name in config[section]:
                    raise ConfigurationError(f"{path}: there are two jobs named {job_name}")
                config[section][job_name] = job
    config["allocation"] = allocations(config["benchmark"], site)
    config["allocation"] |= vettings(config["vetting"], config["benchmark"], site)
    config["history"] = expand(config["history"], "history")
    return config


def allocations(benchmarks: Settings, site: Settings) -> Settings:
    """Placements of the benchmarks, by name: those with the same one share a job.

    Each has the keys of a placement, the longest wall time that is asked for, the names of its
    ``benchmarks``, and the ``node`` that it must be on, if that has a name.
    """
    found: Settings = {}
    for name, job in benchmarks.items():
        label = f"{job['nodes']}x{job['gpus_per_node']}"
        if job["processes_per_node"] > 1:
            label += f"-{job['processes_per_node']}_processes"
        if job["partition"] != site["partitions"].get("benchmark"):
            label += f"-{job['partition']}"
        keys = ("nodes", "gpus_per_node", "processes_per_node", "partition")
        start = {key: job[key] for key in keys} | {"node": None, "walltime": 0, "benchmarks": []}
        place = found.setdefault(label, start)
        place["walltime"] = max(place["walltime"], job["walltime"])
        place["benchmarks"].append(name)
    return found


def vettings(vetting: Settings, benchmarks: Settings, site: Settings) -> Settings:
    """Placements of the benchmarks of one node on each node to vet, by name, as allocations()."""
    if not vetting.get("nodes"):
        return {}
    if not site["launcher"]:
        raise ConfigurationError(
            f"vetting.nodes: the site {site['name']} has no Slurm that reaches a node by its name"
        )
    of_one_node = [name for name, job in benchmarks.items() if job["nodes"] == 1]
    for name in (names := vetting.get("benchmarks") or of_one_node):
        if name not in of_one_node:
            raise ConfigurationError(
                f"vetting.benchmarks: no benchmark of one node is named {name}; "
                + nearest(name, of_one_node)
            )
    if not names:
        raise ConfigurationError("vetting.nodes: there is no benchmark of one node to run there")
    places = allocations({name: benchmarks[name] for name in names}, site)
    return {
        f"{label}-{node}": place | {"node": node}
        for node in dict.fromkeys(name for hosts in vetting["nodes"] for name in expanded(hosts))
        for label, place in places.items()
    }


def expanded(hosts: str) -> list[str]:
    """Names that a Slurm host list stands for: ``jrc[0101-0103,0200]`` for four of them."""
    stem, _, ranges = hosts.rstrip("]").partition("[")
    names = []
    for part in ranges.split(",") if ranges else []:
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ConfigurationError(f"vetting.nodes: {hosts} goes backwards")
        names += [f"{stem}{number:0{len(first)}}" for number in numbers]
    return names or [stem]


def short_hash(value: Any) -> str:
    """A name for a value that JSON can express, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def refuse_repeated_keys(file: Path) -> None:
    """Raise a sentence if a mapping of a YAML file has a key twice: YAML would drop the first."""

    def visit(node: Any) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item)
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    line = key.start_mark.line + 1
                    raise ConfigurationError(f"{file}, line {line}: {name} is there twice")
                seen.add(name)
                visit(value)

    visit(yaml.compose(file.read_text(), yaml.SafeLoader))


def known_sections(schema: Settings) -> Settings:
    """Top-level properties, with the sections reduced to their shape: jobs() checks the rest."""
    entries = {"type": "object", "additionalProperties": {"type": ["object", "null"]}}
    names = schema["$defs"]["entries"]["propertyNames"]
    shapes: Settings = {name: entries | {"propertyNames": names} for name in ("train", "benchmark")}
    return schema["properties"] | shapes | {"smoke_test": {"type": "object"}}


def jobs(section: str, name: str, entry: Settings, path: str, site: Settings):
    """Yield name and settings of each job of an entry: one, or the product of its lists."""
    definitions = load_schema("config")["$defs"]
    placement = dict(definitions["placement"]["properties"])
    program = section
    data: Settings = {}
    if section == "train":
        placement |= definitions["training"]
        program = entry.get("program", section)
        check({"program": program}, {"properties": placement}, path)
        data = data_options(program)
    if section == "benchmark":
        placement |= definitions["program"]
        check(entry.get("program"), definitions["program"]["program"], f"{path}.program")
        program = entry.get("program") or name
        if program not in programs():
            raise ConfigurationError(
                f"{path}.program: there is no workflow/scripts/benchmark_{program}.py; "
                + nearest(str(program), programs())
            )
    options = program_options(section, program)
    properties = placement | options | data

    swept = {
        key: value
        for key, value in entry.items()
        if isinstance(value, list) and "array" not in properties.get(key, {}).get("type", [])
    }
    single = {key: value for key, value in entry.items() if key not in swept}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    check(single, schema, path)
    for key, values in swept.items():
        check(values, {"type": "array", "minItems": 1}, f"{path}.{key}")
        for value in values:
            check({key: value}, schema, path)

    for combination in itertools.product(*swept.values()):
        point = dict(zip(swept, combination, strict=True))
        job = with_defaults(single | point, properties)
        job["gpus_per_node"] = job["gpus_per_node"] or site["gpus_per_node"]
        job["partition"] = job["partition"] or site["partitions"].get(section)
        job["program"] = program
        job["options"] = {key: job.pop(key) for key in options}
        check_placement(job, path, site)
        if section == "train":
            job["data"] = {key: job.pop(key) for key in data}
            if program == "train":
                check_training(job, path)
            if program == "command":
                check_command(job["options"]["command"], f"{path}.command")
            defining = {k: v for k, v in job["options"].items() if options[k].get("same", True)}
            job["id"] = short_hash([program, defining, job["data"]])
        if job.get("sif"):
            job["sif"] = simple_path(expand(job["sif"], f"{path}.sif"), f"{path}.sif")
        label = "-".join([name, *(f"{k}={v}" for k, v in point.items())])
        yield re.sub(r"[^\w.=+-]", "_", label), job


def check_placement(job: Settings, path: str, site: Settings) -> None:
    """Raise a sentence if the site cannot place the job."""
    gpus, processes = job["gpus_per_node"], job["processes_per_node"]
    if gpus > site["gpus_per_node"]:
        raise ConfigurationError(
            f"{path}.gpus_per_node: a node of {site['name']} has {site['gpus_per_node']}, "
            f"not {gpus}"
        )
    if gpus % processes:
        raise ConfigurationError(
            f"{path}.processes_per_node: {processes} processes cannot share {gpus} GPUs equally"
        )
    for key in ("nodes", "processes_per_node"):
        if job[key] > 1 and not site["launcher"]:
            raise ConfigurationError(
                f"{path}.{key}: must be 1, since the site {site['name']} has no launcher "
                "for several processes"
            )


def check_training(job: Settings, path: str) -> None:
    """Raise a sentence if the training cannot start: its data, or sizes that do not divide."""
    options, data, devices = job["options"], job["data"], job["nodes"] * job["gpus_per_node"]
    fsdp, tensor = options["fsdp"], options["tensor"]
    shared = devices // tensor * options["microbatches"]
    steps = options["steps"]
    rules = [
        ("fsdp", devices % (fsdp * tensor) == 0, f"such that fsdp x tensor divides {devices} GPUs"),
        (
            "global_batch",
            options["global_batch"] % max(1, shared) == 0,
            f"a multiple of {shared}, GPUs that share it x microbatches",
        ),
        ("tensor", 128 % tensor == 0, "a power of 2, at most 128"),
        ("warmup_steps", options["warmup_steps"] < steps, f"fewer than the {steps} steps"),
    ]
    if options["width"] and options["heads"]:
        even = options["width"] % (2 * options["heads"]) == 0
        rules.append(("width", even, "an even multiple of heads"))
    for key, kept, wanted in rules:
        if not kept:
            value = options[key]
            default = ", its default" if value == options_of("train")[key]["default"] else ""
            raise ConfigurationError(f"{path}.{key}: must be {wanted}, not {value}{default}")
    if data["tokenizer"] != "bytes":
        data["tokenizer"] = expand(data["tokenizer"], f"{path}.tokenizer")
        readable(data["tokenizer"], f"{path}.tokenizer")
    data["data"] = [expand(pattern, f"{path}.data") for pattern in data["data"]]
    for pattern in data["data"]:
        if pattern != "python":
            readable(pattern, f"{path}.data")


def check_command(command: str | None, path: str) -> None:
    """Raise a sentence if a command cannot be split into words."""
    try:
        if not shlex.split(command or ""):
            raise ConfigurationError(f"{path}: must say what to run")
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}: {command}") from None


def readable(pattern: str, path: str) -> None:
    """Raise a sentence if a pattern matches no file, or one that this user cannot read."""
    files = glob.glob(pattern, recursive=True)
    if not files:
        raise ConfigurationError(f"{path}: nothing matches {os.path.abspath(pattern)}")
    for file in files:
        if not os.access(file, os.R_OK):
            raise ConfigurationError(f"{path}: {file} cannot be read by this user")


def main() -> None:
    """Print config/README.md."""
    print(readme(), end="")


def readme() -> str:
    """config/README.md: every key in a table, from the schema and the programs' OPTIONS."""
    schema = load_schema("config")

    def table(properties: Settings) -> list[str]:
        rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for key, s in properties.items():
            kind = s.get("type", "object")  # a $ref is to an object
            kind = kind if isinstance(kind, str) else " or ".join(kind)
            if "enum" in s:
                kind = " or ".join(v or "null" for v in s["enum"])
            rows.append(f"| `{key}` | {kind} | `{json.dumps(s['default'])}` | {s['description']} |")
        return [*rows, ""]

    placement = schema["$defs"]["placement"]["properties"]
    lines = ["# Configuration", ""]
    lines += ["Made from the schema by `make config/README.md`; do not edit.", ""]
    lines += ["`config.yaml` is read unless `--configfile` names others. A list in place of a"]
    lines += ["single value is a sweep: the entry becomes one job for each combination.", ""]
    lines += table(schema["properties"])
    lines += ["## Placement: keys of every job", "", *table(placement)]
    lines += ["## smoke_test", "", *table(options_of("smoke_test"))]
    lines += ["## train.&lt;name&gt;", "", *table(schema["$defs"]["training"])]
    for program in schema["$defs"]["training"]["program"]["enum"]:
        lines += [f"### program: {program}", ""]
        lines += table(data_options(program) | options_of(program))
    lines += ["## benchmark.&lt;name&gt;", ""]
    lines += table(schema["$defs"]["program"] | options_of("jaxway_job/measure"))
    for program in programs():
        lines += [f"### program: {program}", "", *table(options_of(f"benchmark_{program}"))]
    return "\n".join(lines).rstrip() + "\n"
