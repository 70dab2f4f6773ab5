"""Checks before the first submission, with stubs of what Slurm says; the cluster's tests ask it."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import tokenizers
from example_records import data_record, write_container_record
from examples import make_config, make_job, make_placement, make_site, make_training
from jaxway import preflight
from jaxway.config import containers, jobs
from jaxway.config.site import Site
from jaxway.container import registry
from jaxway.preflight import FAULT, NOTE, OK
from jaxway.slurm import commands
from jaxway_job import model
from jaxway_shared import presets

UP = "PartitionName=gpu State=UP AllowAccounts=ALL MaxNodes=UNLIMITED MaxTime=1-00:00:00"
JOB = make_job()
NONE = containers.Container("/none", "/none")


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """What other tests' folders of the same relative path held."""
    preflight.files_of.cache_clear()


@pytest.fixture
def machine(monkeypatch) -> dict[str, str]:
    """What each command says, by the words it begins with; what is not there has failed."""
    says = {
        "scontrol --all --oneliner show partition gpu": UP,
        "sinfo --noheader --format=%a": "up gpu\nup other\ninact closed",
        "sinfo --noheader --format=%P": "other\ngpu*",
        "sinfo --noheader --partition": "2 gpu:a100:no_consume:4(S:0)\n1 gpu:2\n1 (null)",
        "sacctmgr --noheader --parsable2 show": "training\nother",
        "sbatch --test-only": "",
    }

    def ask(*words: str, **more: Any) -> CompletedProcess[str]:
        line = " ".join(words)
        answers = [answer for key, answer in says.items() if line.startswith(key)]
        answer = answers[0] if answers else "!no such thing"
        failed = answer.startswith("!")
        return CompletedProcess(words, failed, "" if failed else answer, answer.removeprefix("!"))

    monkeypatch.setattr(preflight, "run_query", ask)
    return says


def partition(**job: Any) -> list[preflight.Finding]:
    return [*preflight.partition("gpu", {"train.big": make_job(**job)})]


def test_healthy_partition(machine) -> None:
    (finding,) = partition()
    assert finding == (OK, "partition", "gpu: 4 nodes with 4 GPUs, at most 24 h")


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        ({"nodes": 3}, "train.big.nodes: gpu gives at most 2 to a job, not 3"),
        ({"gpus_per_node": 8}, "train.big.gpus_per_node: a node of gpu has 4, not 8"),
        ({"walltime": 1441}, "train.big.walltime: gpu allows 1440 minutes, not 1441"),
    ],
)
def test_jobs_that_a_partition_does_not_take(machine, job, sentence) -> None:
    assert partition(**job) == [(FAULT, "partition", sentence)]


def test_longest_and_widest_jobs_are_taken(machine) -> None:
    (finding,) = partition(walltime=1440, nodes=2)
    assert finding.verdict == OK


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (
            {"UP": "DRAIN"},
            "train.big.partition: gpu is DRAIN and starts no job; open are gpu, other",
        ),
        (
            {"MaxNodes=UNLIMITED": "MaxNodes=0"},
            "train.big.nodes: gpu gives at most 0 to a job, not 1",
        ),
    ],
)
def test_partitions_that_take_no_job(machine, limits, sentence) -> None:
    for old, new in limits.items():
        machine["scontrol --all --oneliner show partition gpu"] = UP.replace(old, new)
    assert partition() == [(FAULT, "partition", sentence)]


def test_limit_above_what_there_is_does_not_count(machine) -> None:
    key = "scontrol --all --oneliner show partition gpu"
    machine[key] = UP.replace("MaxNodes=UNLIMITED", "MaxNodes=9")
    (finding,) = partition(nodes=3)
    assert "gives at most 2 to a job, not 3" in finding.text


def test_partition_that_is_down_is_no_fault(machine) -> None:
    machine["scontrol --all --oneliner show partition gpu"] = UP.replace("UP", "DOWN", 1)
    note = "gpu is down, and jobs wait there until it is up"
    assert partition() == [(NOTE, "partition", note)]


def test_controller_that_does_not_answer_is_no_fault(machine) -> None:
    key = "scontrol --all --oneliner show partition gpu"
    machine[key] = "!Unable to contact slurm controller (connect failure)"
    (finding,) = partition()
    assert finding.verdict == NOTE


def test_without_a_name_it_is_the_default_one(machine) -> None:
    (finding,) = preflight.partition(None, {"train.big": make_job(nodes=3)})
    assert finding.verdict == FAULT
    assert "gpu gives at most 2 to a job" in finding.text
    machine["sinfo --noheader --format=%P"] = "gpu\nother"
    assert not [*preflight.partition(None, {"train.big": JOB})]


def test_unknown_partition_names_those_that_are_there(machine) -> None:
    machine["scontrol --all --oneliner show partition gpu"] = "!Partition gpu not found"
    assert partition() == [
        (FAULT, "partition", "train.big.partition: Partition gpu not found; open are gpu, other")
    ]


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-00:00:00", 1440), ("02:00:30", 120.5), ("UNLIMITED", float("inf"))],
)
def test_time_limits(limit, minutes) -> None:
    assert preflight.minutes(limit) == minutes


def account(name: str = "training") -> preflight.Finding:
    site = make_site(cores_per_node=128, budget_command="jutil")
    (finding,) = preflight.account(name, 0.5, site)
    return finding


def test_account_of_another(machine) -> None:
    verdict, _, text = account("forbidden")
    assert verdict == FAULT
    assert "to one of other, training" in text
    assert account("Training").verdict == OK  # Slurm keeps them in lower case


def test_budget_that_slurm_does_not_tell(machine) -> None:
    assert account().text.endswith("what is left of its budget Slurm does not tell; `jutil` does")


def test_silent_accounting_is_no_fault(machine) -> None:
    machine["sacctmgr --noheader --parsable2 show"] = "!slurmdbd is down"
    assert account() == (NOTE, "account", "training: Slurm does not tell (slurmdbd is down)")


@pytest.mark.parametrize(
    ("used", "verdict", "said"),
    [  # of 100 core-h; the job may take 64
        (0, OK, "training has 100 CPU-h left"),
        (60 * 50, NOTE, "training has 50 CPU-h left, less than this may take"),
        (60 * 100, FAULT, "training has 0 CPU-h left, and its jobs would wait"),
    ],
)
def test_budget(machine, used, verdict, said) -> None:
    machine["sshare"] = f"CLUSTER: x\nalice|cpu=6|cpu=6\n|cpu=6000,gres/gpu=1|cpu={used},mem=3"
    finding = account()
    assert finding.verdict == verdict
    assert finding.text.startswith(said)


def test_queue_says_when_or_why_not(machine) -> None:
    jobs = {"train.a": JOB, "train.b": JOB, "smoke_test": make_job(walltime=5)}
    jobs["benchmark.c"] = make_job(node="jrc0101", walltime=7)  # its node is checked instead
    kinds = "sbatch --test-only --nodes=1 --gres=gpu:4 --time="
    del machine["sbatch --test-only"]
    machine[f"{kinds}30 --partition=gpu --account=training"] = (
        "sbatch: Job 7 to start at 2099-01-01T10:00:00 using 128 processors"
    )
    machine[f"{kinds}5"] = "!allocation failure: Invalid qos specification"
    assert [*preflight.queue(jobs, "training")] == [
        (OK, "queue", "train.a and 1 more could start 2099-01-01 10:00:00"),
        (FAULT, "queue", "smoke_test: Slurm would refuse it: Invalid qos specification"),
    ]


def test_nodes_to_vet(machine) -> None:
    states = "n1 idle\nn2 drained\nn3 mixed\nn5 down\nn6 failing\nn7 idle*"
    machine["sinfo --all --noheader --Node"] = states
    assert [f.verdict for f in preflight.nodes(["n1", "n3", "n1"])] == [OK]
    (finding,) = preflight.nodes([f"n{number}" for number in range(1, 8)])
    assert finding.verdict == FAULT
    no = "n2 (drained), n4 (unknown), n5 (down), n6 (failing), n7 (idle*)"
    assert f"on {no};" in finding.text


def test_many_jobs_with_one_fault_are_one_line(machine) -> None:
    jobs = {f"train.{k}": make_job(nodes=3) for k in range(1000)}
    (finding,) = preflight.partition("gpu", jobs)
    assert finding.text.startswith("train.0.nodes: gpu gives at most 2 to a job, not 3 (and 999")


@pytest.mark.parametrize("silent", ["scontrol", "sinfo", "sbatch"])
def test_silence_is_no_fault(machine, monkeypatch, silent) -> None:
    """Of a Slurm that has much to do; the other answers are those of a healthy one."""
    answer = preflight.run_query

    def ask(*words: str, **more: Any) -> CompletedProcess[str]:
        said = answer(*words)
        if words[0] == silent:
            said = CompletedProcess(words, commands.EXIT_TIMEOUT, "", f"{silent} has not answered")
        return said

    monkeypatch.setattr(preflight, "run_query", ask)
    for found in (
        preflight.partition("gpu", {"train.a": JOB}),
        preflight.queue({"train.a": JOB}, "training"),
        preflight.nodes(["n1"]) if silent == "sinfo" else [],
    ):
        assert FAULT not in [finding.verdict for finding in found]


@pytest.mark.parametrize(
    "said",
    [
        "Requested node configuration is not available",
        "Requested partition configuration not available now",
        "Requested nodes are busy",
        "Job can not start due to maintenance reservation.",
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
    ],
)
def test_what_keeps_slurm_from_saying_when_is_no_fault(machine, said) -> None:
    machine["sbatch --test-only"] = f"!sbatch: error: allocation failure: {said}"
    (finding,) = preflight.queue({"train.a": JOB}, "training")
    assert finding.verdict == NOTE


# ------------------------------------------------------------------------------------- container


def test_image(tmp_path) -> None:
    sif, name = tmp_path / "jax.sif", "docker-archive:one.tar"
    container = containers.Container(str(sif), str(sif))
    assert preflight.image(name, container, False)[1].text.startswith(f"{name} is going to be made")
    sif.write_text("a container")
    write_container_record(sif, name)
    whole = (0, (OK, "image", f"{sif}, as it was pulled"))
    assert preflight.image(name, container, False) == whole
    other = "docker-archive:two.tar"
    assert preflight.image(other, container, False)[1].verdict == FAULT
    assert preflight.image(other, container, True)[1].verdict == OK  # it is pulled now
    sif.write_text("another one")
    (_, finding) = preflight.image(name, container, False)
    assert finding.verdict == FAULT
    assert "has changed since it was made" in finding.text


def test_image_of_no_registry() -> None:
    """`.invalid` never has an address (RFC 2606)."""
    (_, finding) = preflight.image("docker://registry.invalid/jax:1", NONE, True)
    assert finding.verdict == FAULT
    assert "registry.invalid is unknown" in finding.text


def test_registry_that_is_silent_is_not_waited_for(monkeypatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(preflight, "PATIENCE", 0.1)
    monkeypatch.setattr(registry.Repository, "image", lambda *_: waiting.wait(60))
    size, finding = preflight.image("docker://h.org/jax:1", NONE, True)
    waiting.set()
    assert (size, finding.verdict) == (0, NOTE)


# ------------------------------------------------------------------------------------ all of them


@pytest.fixture
def plan(machine, monkeypatch, tmp_path) -> Callable[..., list[tuple[str, str]]]:
    """Verdicts and subjects of a plan's checks; the container is already there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setattr(preflight, "apptainer_version", lambda: "1.4")
    sif, name = tmp_path / "jax.sif", "docker-archive:one.tar"
    sif.write_text("a container")
    write_container_record(sif, name)
    about = site(tmp_path, shared=["/"], small_home=True, sif=str(sif), cores_per_node=128)

    def found(jobs: Any, **settings: Any) -> list[tuple[str, str]]:
        config = make_config(about, **{"image": name, "account": "training"} | settings)
        both = [containers.container(each, about) for each in ({}, config.packages)]
        checks = preflight.findings(config, about, both, False, jobs)
        return [(finding.verdict, finding.subject) for finding in checks]

    return found


CONTAINER = [(OK, "apptainer"), (OK, "image")]
PLACES = [(OK, "room"), (OK, "data"), (OK, "shared"), (OK, "home")]


def test_checks_of_a_plan(plan, machine) -> None:
    machine["sbatch --test-only"] = "Job 7 to start at 2020-01-01T10:00:00 using 128 processors"
    machine["sinfo --all --noheader --Node"] = "n1 idle"
    jobs = {"train.a": make_training(context=10), "benchmark.b": make_job(node="n1")}
    asked = [(OK, each) for each in ("account", "partition", "queue", "nodes", "folders")]
    assert plan(jobs) == [*CONTAINER, *asked, *PLACES]


def test_a_pull_needs_no_slurm(plan) -> None:
    assert plan({}, account="forbidden") == [*CONTAINER, (OK, "folders")]


def test_what_is_refused_already_is_not_asked_again(plan, machine) -> None:
    machine["sbatch --test-only"] = "!Invalid account"
    jobs = {"train.a": make_training(context=10)}
    assert (FAULT, "queue") in plan(jobs)
    assert "queue" not in dict(map(reversed, plan(jobs, account="forbidden")))
    jobs = {"train.a": make_training(context=10, placement=make_placement(nodes=3))}
    assert "queue" not in dict(map(reversed, plan(jobs)))


def test_image_with_packages_is_the_one_looked_at(plan, tmp_path) -> None:
    """Where it is still to be made, its base; no registry is asked for that."""
    packages = {"python": ["einops"]}
    assert plan({}, packages=packages) == [*CONTAINER, (OK, "folders")]
    made = tmp_path / f"jax-{jobs.short_hash(packages)}.sif"
    made.write_text("of nothing known")
    assert plan({}, packages=packages)[1] == (FAULT, "image")


def test_check_that_stumbles_stops_nothing(plan, monkeypatch) -> None:
    def stumbles(*_: Any) -> preflight.Findings:
        yield preflight.Finding(FAULT, "folders", "found before")
        raise IndexError

    monkeypatch.setattr(preflight, "folders", stumbles)
    assert plan({}) == [*CONTAINER, (FAULT, "folders"), (NOTE, "folders")]


# --------------------------------------------------------------------------------------- folders


def site(tmp_path: Path, **more: Any) -> Site:
    variables = {"SCRATCH": ""}
    return make_site(scratch=str(tmp_path / "alice/jaxway"), required_variables=variables, **more)


def test_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    containers = tmp_path / "containers"
    containers.mkdir()
    assert [f.verdict for f in preflight.folders(site(tmp_path), containers)] == [OK]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != containers)
    # Somebody else's folder is no fault as long as nothing is made there.
    assert [f.verdict for f in preflight.folders(site(tmp_path), None)] == [OK]
    assert [*preflight.folders(site(tmp_path), containers)] == [
        (FAULT, "folders", f"{containers}: you cannot write there")
    ]
    here = os.getcwd()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.realpath(path) != here)
    (finding,) = preflight.folders(site(tmp_path), None)
    assert finding.verdict == FAULT
    monkeypatch.setenv("SCRATCH", str(tmp_path / "gone"))
    (finding,) = preflight.folders(site(tmp_path), None)
    assert finding.text.startswith(f"$SCRATCH: there is no folder {tmp_path / 'gone'}")


@pytest.mark.parametrize("preset", ["tiny", "124M", "7B"])
def test_size_of_a_checkpoint_is_that_of_the_models_arrays(preset) -> None:
    sizes = presets.PRESETS[preset]
    shape = {key: getattr(sizes, key) for key in ("layers", "width", "heads", "ngram")}
    params = jax.eval_shape(lambda: model.init(model.Config(**shape), jax.random.key(0)))
    size = 12 * sum(x.size for x in jax.tree.leaves(params))
    assert preflight.checkpoint_bytes(make_training(preset=preset)) == size


def test_checkpoint_holds_the_tokenizers_vocabulary(tmp_path) -> None:
    words = {f"w{number}": number for number in range(1000)}
    file = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(file))
    small, large = make_training(ngram=1), make_training(ngram=1, tokenizer=str(file))
    width = presets.PRESETS["tiny"].width
    more = preflight.checkpoint_bytes(large) - preflight.checkpoint_bytes(small)
    assert more == 12 * width * 2 * (1000 - 256)


@pytest.mark.parametrize(
    ("free", "inodes", "verdict"),
    [(10**12, 10**6, OK), (10**6, 10**6, FAULT), (10**12, 10, FAULT), (10**12, None, OK)],
)
def test_room(tmp_path, monkeypatch, free, inodes, verdict) -> None:
    status = SimpleNamespace(f_bavail=free, f_frsize=1, f_favail=inodes or 0, f_files=inodes or 0)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    (finding,) = preflight.room(site(tmp_path), {"train.a": make_training()}, None, 0, None)
    assert finding.verdict == verdict


def test_training_that_goes_on_has_its_room(tmp_path, monkeypatch) -> None:
    status = SimpleNamespace(f_bavail=10**6, f_frsize=1, f_favail=10, f_files=10)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    monkeypatch.setattr(preflight, "record_of", lambda data: data_record(train_tokens=1))
    step = tmp_path / "alice/jaxway/train/a-0123-feed/step"
    step.parent.mkdir(parents=True)
    (finding,) = preflight.room(site(tmp_path), {"train.a": make_training()}, None, 0, None)
    assert finding.verdict == FAULT
    step.touch()
    assert not [*preflight.room(site(tmp_path), {"train.a": make_training()}, None, 0, None)]


def test_room_for_the_image(tmp_path, monkeypatch) -> None:
    status = SimpleNamespace(f_bavail=10**6, f_frsize=1000, f_favail=10**6, f_files=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    sif = tmp_path / "jax.sif"
    for size, verdicts in (
        (10**9 // 8, [OK]),
        (10**9, [NOTE, OK]),  # to pull takes more than the image
        (10**9 + 1, [NOTE, FAULT]),
    ):
        assert [f.verdict for f in preflight.room(site(tmp_path), {}, sif, size, None)] == verdicts


def test_room_of_several_things_is_added_up(tmp_path, monkeypatch) -> None:
    one = preflight.checkpoint_bytes(make_training())
    status = SimpleNamespace(f_bavail=6 * one, f_frsize=1, f_favail=10**6, f_files=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    monkeypatch.setattr(preflight, "record_of", lambda data: data_record(train_tokens=1))
    trainings = {f"train.{name}": make_training() for name in "abc"}  # of 3 checkpoints each
    for count, verdict in ((2, OK), (3, FAULT)):
        jobs = dict([*trainings.items()][:count])
        (finding,) = preflight.room(site(tmp_path), jobs, None, 0, None)
        assert finding.verdict == verdict


def test_data_that_are_prepared_need_no_room(tmp_path, monkeypatch) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(bytes(10**6))
    job = make_training((str(text),), layers=1, width=64, heads=1, ngram=1)
    free = 3 * preflight.checkpoint_bytes(job)
    status = SimpleNamespace(f_bavail=free, f_frsize=1, f_favail=10**6, f_files=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    for record, verdict in ((None, FAULT), (data_record(train_tokens=1), OK)):
        monkeypatch.setattr(preflight, "record_of", lambda data, record=record: record)
        (finding,) = preflight.room(site(tmp_path), {"train.a": job}, None, 0, None)
        assert finding.verdict == verdict


# ------------------------------------------------------------------------------------------ data


def test_data_are_counted_once_for_all_that_read_them(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for name in "ab":
        (tmp_path / f"text/{name}.txt").write_bytes(bytes(1000))
    text = ("text",)
    jobs = {"train.a": make_training(text, context=10), "train.b": make_training(text, context=100)}
    # b reads 10 steps x 4 x 100 of the 1000 bytes that validation leaves.
    what = "train.a and 1 more: 0.0 MB in 2 files, read 4 times at most"
    assert [*preflight.texts(jobs)] == [(OK, "data", what)]
    jobs["train.b"] = make_training(text, context=1000)
    (finding,) = preflight.texts(jobs)
    assert finding.verdict == FAULT
    assert finding.text.startswith("train.a.data: 0.0 MB in 2 files are too short for 1,000 bytes")
    (tmp_path / "empty").mkdir()
    jobs["train.b"] = make_training(("empty",), context=10)
    finding = [*preflight.texts(jobs)][-1]
    assert finding == (FAULT, "data", "train.b.data: no file in empty")
    jobs["train.b"] = make_training(text, context=1000)
    (tmp_path / "text/b.txt").unlink()
    (tmp_path / "text/a.txt").write_bytes(bytes(9999))
    preflight.files_of.cache_clear()
    jobs["train.b"] = make_training(text, context=10)
    (finding,) = preflight.texts(jobs)
    assert finding.verdict == FAULT  # it is held out
    assert "0.0 MB in 1 files are too short" in finding.text


def test_data_that_this_user_may_not_read(tmp_path, monkeypatch) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for name in "ab":
        (text / name).write_bytes(bytes(9999))
    job = make_training((str(text),), context=10)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b")
    (finding,) = preflight.texts({"train.a": job})
    what = f"train.a.data: {text / 'b'} cannot be read by this user"
    assert finding == (FAULT, "data", what)


def test_broken_tokenizer_is_a_fault_of_its_training(tmp_path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{")
    job = make_training(tokenizer=str(file), context=10)
    (finding,) = preflight.texts({"train.a": job})
    assert finding.verdict == FAULT
    assert finding.text.startswith("train.a: tokenizer: ")


def test_broken_record_is_none(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = jobs.DataOptions(("python",), "bytes", 1000)
    file = tmp_path / f"results/data/{data.id}.json"
    file.parent.mkdir(parents=True)
    for text in ("{", "{}", "[]"):
        file.write_text(text)
        assert preflight.record_of(data) is None


def test_prepared_data_are_not_read_again(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_training(("gone",), context=10)
    (tmp_path / "train-00000.bin").write_bytes(bytes(50))
    (tmp_path / "validation.bin").write_bytes(bytes(5))
    record = data_record(folder=str(tmp_path)).to_json()
    (tmp_path / "data.json").write_text(json.dumps(record))
    data = jobs.DataOptions(("gone",), "bytes", 1000)
    file = tmp_path / f"results/data/{data.id}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record))
    (finding,) = preflight.texts({"train.a": job})
    assert finding.text == "train.a: 0.0 M tokens, read 8 times at most"


# ------------------------------------------------------------------------ where things are kept


def test_what_compute_nodes_see(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not [*preflight.seen_by_nodes(site(tmp_path))]
    assert [f.verdict for f in preflight.seen_by_nodes(site(tmp_path, shared=["/"]))] == [OK]
    texts = [f.text for f in preflight.seen_by_nodes(site(tmp_path, shared=[str(tmp_path)]))]
    assert len(texts) == 2  # the environment and the workflow
    assert all("is on this node only" in text for text in texts)
    link = tmp_path / "link"
    link.symlink_to("/")
    assert [f.verdict for f in preflight.seen_by_nodes(site(tmp_path, shared=[str(link)]))] == [OK]


def test_caches_stay_out_of_home(tmp_path, monkeypatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in preflight.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(elsewhere)
    assert [f.verdict for f in preflight.home({})] == [OK]
    caches = ("APPTAINER_CACHEDIR", "HF_HOME", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    for name in caches:
        (finding,) = preflight.home({name: f"{home}/cache"})
        assert finding.verdict == NOTE
        assert finding.text.startswith(f"${name} is in $HOME")
    monkeypatch.chdir(home)
    (finding,) = preflight.home({})
    assert finding.verdict == FAULT
    assert finding.text.startswith("this folder is in $HOME")
