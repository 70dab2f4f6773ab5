"""Loading the configuration: one sentence for each way in which it can be wrong."""

import os
from typing import Any

import pytest
from examples import make_config
from jaxway.config.load import load
from jaxway.config.schema import ConfigurationError

BROKEN: dict[str, tuple[Any, str]] = {
    # Wrong shape or type.
    "a list at the top": ([1, 2], "must be a mapping"),
    "a section that is text": ({"train": "tiny"}, "train: must be a mapping"),
    "an entry that is a number": ({"train": {"a": 3}}, "train.a: must be a mapping"),
    "text for a number": ({"train": {"a": {"steps": "many"}}}, "train.a.steps: must be an integer"),
    "a fraction for a count": (
        {"train": {"a": {"steps": 1.5}}},
        "train.a.steps: must be an integer",
    ),
    "true for a count": ({"train": {"a": {"steps": True}}}, "train.a.steps: must be an integer"),
    "a whole number with a point": (
        {"train": {"a": {"steps": 100.0}}},
        "train.a.steps: must be an integer",
    ),
    "not a number": (
        {"train": {"a": {"learning_rate": float("nan")}}},
        "train.a.learning_rate: must be a number or null",
    ),
    "a number without a point before its exponent": (
        {"train": {"a": {"learning_rate": "1e-3"}}},
        "train.a.learning_rate: must be a number or null (write 1.0e-3 for 1e-3)",
    ),
    "a sweep of smoke tests": (
        {"smoke_test": {"memory_mb": [1, 2]}},
        "smoke_test cannot be swept, so no key can be a list",
    ),
    "a list of programs": (
        {"benchmark": {"a": {"program": ["compute"]}}},
        "benchmark.a.program: must be text or null",
    ),
    "data that looks like an option": (
        {"train": {"a": {"data": ["--out=x"]}}},
        "train.a.data.0: must match",
    ),
    "null for a count": ({"train": {"a": {"steps": None}}}, "train.a.steps: must be an integer"),
    "an account that is a number": ({"account": 7}, "account: must be text or null"),
    "an account with a space": ({"account": "a b"}, "account: must match"),
    "an empty image": ({"image": ""}, "image: must match"),
    "an account with a line break": ({"account": "a\n"}, "account: must match"),
    "an environment that is a list": ({"environment": ["A=1"]}, "environment: must be a mapping"),
    "a variable that is a number": ({"environment": {"A": 1}}, "environment.A: must be text"),
    "a variable's name with a space": ({"environment": {"A B": "1"}}, "environment: "),
    # Unknown names.
    "a section misspelt": ({"tarin": {}}, "tarin: unknown key; did you mean 'train'?"),
    "an option misspelt": (
        {"train": {"a": {"learning_rat": 1}}},
        "train.a.learning_rat: unknown key; did you mean 'learning_rate'?",
    ),
    "a placement misspelt": (
        {"smoke_test": {"gpu_per_node": 1}},
        "smoke_test.gpu_per_node: unknown key; did you mean 'gpus_per_node'?",
    ),
    "an option of another program": (
        {"benchmark": {"compute": {"steps": 1}}},
        "benchmark.compute.steps: unknown key",
    ),
    "a program misspelt": (
        {"benchmark": {"computer": {}}},
        "benchmark.computer.program: there is no workflow/scripts/benchmark_computer.py; "
        "did you mean 'compute'?",
    ),
    "a platform that is none": ({"platform": "tpu"}, "platform: must be one of cuda, cpu"),
    "a dtype that is none": (
        {"benchmark": {"compute": {"dtypes": ["int3"]}}},
        "benchmark.compute.dtypes.0: must be one of",
    ),
    # Names that keys had once.
    "a training's allocations": (
        {"train": {"small": {"allocations": 3}}},
        "train.small.allocations is called max_jobs now",
    ),
    "a sweep of microbatches": (
        {"train": {"a": {"microbatches": [1, 2]}}},
        "train.a.microbatches is called gradient_accumulation_steps now",
    ),
    "a benchmark's minutes": (
        {"benchmark": {"io": {"minutes": 1}}},
        "benchmark.io.minutes is called timeout_minutes now",
    ),
    "a temporary folder": ({"temporary": "/tmp"}, "temporary is called tmpdir now"),
    "vetting": ({"vetting": {"nodes": ["n1"]}}, "vetting is called node_check now"),
    "an old name of another section": (
        {"smoke_test": {"allocations": 3}},
        "smoke_test.allocations: unknown key; known: ",
    ),
    # Out of range.
    "negative steps": ({"train": {"a": {"steps": -1}}}, "train.a.steps: must be at least 1"),
    "no learning": (
        {"train": {"a": {"learning_rate": 0}}},
        "train.a.learning_rate: must be greater than 0",
    ),
    "zero nodes": ({"train": {"a": {"nodes": 0}}}, "train.a.nodes: must be at least 1"),
    "zero GPUs": ({"smoke_test": {"gpus_per_node": 0}}, "smoke_test.gpus_per_node: must be at"),
    "more GPUs than a node has": (
        {"train": {"a": {"gpus_per_node": 5}}},
        "train.a.gpus_per_node: a node of jureca has 4, not 5",
    ),
    "trainings that do not divide the GPUs": (
        {"train": {"a": {"trainings_per_node": 3}}},
        "train.a.trainings_per_node: 3 trainings cannot share 4 GPUs equally",
    ),
    "trainings that do not fill the GPUs in each turn": (
        {"train": {"a": {"trainings_per_node": 6}}},
        "train.a.trainings_per_node: 6 trainings cannot share 4 GPUs equally",
    ),
    "several processes of trainings on a node": (
        {"train": {"a": {"trainings_per_node": 2, "processes_per_node": 2}}},
        "train.a.trainings_per_node: only trainings of one process share a node",
    ),
    "processes that do not divide the GPUs": (
        {"train": {"a": {"processes_per_node": 3}}},
        "train.a.processes_per_node: 3 processes cannot share 4 GPUs equally",
    ),
    "no time": ({"smoke_test": {"walltime": 0}}, "smoke_test.walltime: must be at least 1"),
    "a batch that does not divide": (
        {"train": {"a": {"global_batch": 6}}},
        "train.a.global_batch: must be a multiple of 4, GPUs that share it x "
        "gradient_accumulation_steps",
    ),
    "a width that does not divide": (
        {"train": {"a": {"width": 100, "heads": 3}}},
        "train.a.width: must be an even multiple of heads, not 100",
    ),
    "a width that fsdp does not divide": (
        {"train": {"a": {"width": 66, "heads": 1, "fsdp": 4}}},
        "train.a.width: must be a multiple of fsdp 4, not 66",
    ),
    "heads of the preset that tensor does not divide": (
        {"train": {"a": {"tensor": 4}}},
        "train.a.heads: must be a multiple of tensor 4, not 2",
    ),
    "a tensor that does not divide": (
        {"train": {"a": {"tensor": 3}}},
        "train.a.fsdp: must be such that fsdp x tensor divides 4 GPUs",
    ),
    "no such training program": (
        {"train": {"a": {"program": "tarin"}}},
        "train.a.program: must be one of train, command, maxtext",
    ),
    "an option of our own for a command": (
        {"train": {"a": {"program": "command", "layers": 2}}},
        "train.a.layers: unknown key",
    ),
    "no command": ({"train": {"a": {"program": "command"}}}, "a.command: must say what to run"),
    "a command with one quotation mark": (
        {"train": {"a": {"program": "command", "command": "bash -c 'echo"}}},
        "train.a.command: No closing quotation",
    ),
    **{
        f"a command with {word}, and no shell": (
            {"train": {"a": {"program": "command", "command": f"python3 x.py {word}"}}},
            f"train.a.command: no shell reads it, so {word.split()[0]} stays as it is",
        )
        for word in ("$SCRATCH/x", "--out=${HOME}/y", "~/x", "> log", "2>&1", "| tee", "$(nproc)")
    },
    "a tokenizer that is not there": (
        {"train": {"a": {"tokenizer": "/nowhere/tokenizer.json"}}},
        "train.a.tokenizer: nothing matches /nowhere/tokenizer.json",
    ),
    "a warm-up longer than the training": (
        {"train": {"a": {"steps": 10, "warmup_steps": 10}}},
        "train.a.warmup_steps: must be fewer than the 10 steps of the schedule, not 10",
    ),
    "a training that outlasts its schedule": (
        {"train": {"a": {"steps": 200, "schedule_steps": 100}}},
        "train.a.steps: must be at most schedule_steps 100, where the learning rate is 0, not 200",
    ),
    "a learning rate that would rise": (
        {"train": {"a": {"learning_rate": 0.1, "min_learning_rate": 0.2}}},
        "train.a.min_learning_rate: must be at most learning_rate 0.1, not 0.2",
    ),
    "a decay that begins in the warm-up": (
        {"train": {"a": {"steps": 100, "schedule": "wsd", "decay_steps": 80}}},
        "train.a.decay_steps: must be at most the 50 steps after warm-up, not 80",
    ),
    "a training that begins at none": (
        {"train": {"a": {}, "b": {"from": "c@5"}}},
        "train.b.from: no training of program train is named c; known: a, b; or name",
    ),
    "a training that begins at one of another shape": (
        {"train": {"a": {"mlp": "gated"}, "b": {"from": "a", "mlp_width": 384}}},
        "train.b.from: parameters have other shapes in a, where mlp is gated, not relu2; options",
    ),
    "a training that begins at one with another tokenizer": (
        {"train": {"a": {"tokenizer": __file__}, "b": {"from": "a"}}},
        f"in a, where tokenizer is {__file__}, not bytes",
    ),
    "trainings that begin at each other": (
        {"train": {"a": {"from": "b"}, "b": {"from": "a"}}},
        "train.b.from: a would begin at itself",
    ),
    "a profile that does not end": (
        {"train": {"a": {"steps": 100, "profile": {"first": 99, "steps": 3}}}},
        "train.a.profile: must be of steps up to 100, not {'first': 99, 'steps': 3}",
    ),
    "a restart of nothing": ({"train": {"a": {"restart": True}}}, "restart: must be false without"),
    "a mean that stays": ({"train": {"a": {"beta1": 1}}}, "train.a.beta1: must be less than 1"),
    "a profile of no steps": ({"train": {"a": {"profile": {"first": 20}}}}, "train.a.profile: "),
    # Sweeps.
    "one bad value of a sweep": (
        {"benchmark": {"memory": {"megabytes": [64, -1]}}},
        "benchmark.memory.megabytes: must be at least 1, not -1",
    ),
    "an empty sweep": (
        {"benchmark": {"memory": {"megabytes": []}}},
        "megabytes: must not be empty",
    ),
    "a sweep with the same value twice": (
        {"benchmark": {"memory": {"megabytes": [64, 64]}}},
        "benchmark.memory: there are two jobs named memory-megabytes=64",
    ),
    # Nodes to check.
    "a node that is none": ({"node_check": {"nodes": ["jrc 1"]}}, "node_check.nodes.0: must match"),
    "nodes that go backwards": (
        {"node_check": {"nodes": ["jrc[0103-0101]"]}, "benchmark": {"memory": {}}},
        "node_check.nodes: [0103-0101] is a descending range",
    ),
    "nothing to run on a node": (
        {"node_check": {"nodes": ["jrc0101"]}, "benchmark": {"memory": {"nodes": 2}}},
        "node_check.nodes: there is no benchmark of one node to run there",
    ),
    "a benchmark that node_check does not know": (
        {
            "node_check": {"nodes": ["jrc0101"], "benchmarks": ["memor"]},
            "benchmark": {"memory": {}},
        },
        "node_check.benchmarks: no benchmark of one node is named memor; did you mean 'memory'?",
    ),
    # Names.
    "a name with a space": ({"train": {"a b": {}}}, "train: a name must be text that"),
    "a name with a slash": ({"train": {"../a": {}}}, 'not "../a"'),
    "a name beyond ASCII": ({"train": {"größe": {}}}, "größe"),
    "a name that is a number": ({"train": {1: {}}}, "train: "),
    # Data.
    "missing data": (
        {"train": {"a": {"data": ["/nowhere/a b/ü*.txt"]}}},
        "train.a.data: nothing matches /nowhere/a b/ü*.txt",
    ),
    "no data": ({"train": {"a": {"data": []}}}, "train.a.data: must not be empty"),
    "data that is text": ({"train": {"a": {"data": "python"}}}, "train.a.data: must be a list"),
    "no source": ({"train": {"a": {"data": {}}}}, "train.a.data: must not be empty"),
    "source without files": (
        {"train": {"a": {"data": {"web": []}}}},
        "train.a.data.web: must not be empty",
    ),
    "source whose name is none of a file": (
        {"train": {"a": {"data": {"a/b": ["python"]}}}},
        "train.a.data: a name must be text that matches",
    ),
    "source that is missing": (
        {"train": {"a": {"data": {"web": ["/nowhere"]}}}},
        "train.a.data.web: nothing matches /nowhere",
    ),
    "validation text that is missing": (
        {"train": {"a": {"validation": ["/nowhere"]}}},
        "train.a.validation: nothing matches /nowhere",
    ),
    "mixture of other sources": (
        {"train": {"a": {"data": {"web": ["python"]}, "mixture": {"code": 1}}}},
        "train.a.mixture: must name all sources of data (web)",
    ),
    "mixture of one list": (
        {"train": {"a": {"mixture": {"code": 1}}}},
        "train.a.mixture: must name all sources of data (none: data is a list",
    ),
    "share that is nothing": (
        {"train": {"a": {"data": {"web": ["python"]}, "mixture": {"web": 0}}}},
        "train.a.mixture.web: must be greater than 0",
    ),
    "mixture of nothing": ({"train": {"a": {"mixture": {}}}}, "train.a.mixture: must not be empty"),
    "share that is too small": (
        {"train": {"a": {"data": {"a": ["python"], "b": ["."]}, "mixture": {"a": 1, "b": 1.0e-4}}}},
        "train.a.mixture.b: less than 1 in 4096",
    ),
    "byte for a tokenizer's token": (
        {"train": {"a": {"tokenizer": __file__, "end_of_text": 0}}},
        "train.a.end_of_text: must name a token of the tokenizer, not 0",
    ),
    "token for bytes": (
        {"train": {"a": {"end_of_text": "<eos>"}}},
        "train.a.end_of_text: must be a byte, 0 to 255, not '<eos>'",
    ),
    "shards of tokens without their tokenizer": (
        {"train": {"a": {"token_shards": "uint16", "validation": ["."]}}},
        "train.a.token_shards: needs the tokenizer.json that made them",
    ),
    "shards of tokens without some to validate on": (
        {"train": {"a": {"token_shards": "uint16", "tokenizer": __file__}}},
        "train.a.token_shards: needs validation",
    ),
    "attention within documents that have no end": (
        {"train": {"a": {"document_attention": True}}},
        "train.a.document_attention: needs end_of_text",
    ),
    "no byte": ({"train": {"a": {"end_of_text": 256}}}, "train.a.end_of_text: must be at most 255"),
    "data in an unset variable": (
        {"train": {"a": {"data": ["$NOT_SET/x"]}}},
        "train.a.data: names an environment variable that is not set",
    ),
}


@pytest.mark.parametrize(("config", "sentence"), BROKEN.values(), ids=BROKEN)
def test_broken_configuration_is_one_sentence(jureca, config, sentence):
    with pytest.raises(ConfigurationError) as error:
        load(config, jureca)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_data_is_one_sentence(jureca, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("text")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(ConfigurationError, match="cannot be read by this user"):
        load({"train": {"a": {"data": [f"{tmp_path}/*"]}}}, jureca)


def test_the_users_environment_wins_over_the_sites(jureca):
    config = load({"environment": {"NCCL_SOCKET_IFNAME": "eth0"}}, jureca)
    assert config.environment["NCCL_SOCKET_IFNAME"] == "eth0"
    assert config.environment["UCX_RC_TIMEOUT"] == "4s"


def test_data_with_spaces_and_beyond_ascii(jureca, tmp_path):
    (tmp_path / "mein Text ü.txt").write_text("text")
    config = {"train": {"a": {"data": ["$SCRATCH/mein Text*"]}}}
    job = load(config, jureca).train["a"]
    assert job.data
    assert job.data.sources == (("", (f"{tmp_path}/mein Text*",)),)


def test_sources_by_name_and_their_mixture(jureca):
    sources = {"web": ["python"], "code": ["python", "."]}
    entry = {"data": sources, "mixture": [{"web": 1, "code": 2}, {"web": 0.5, "code": 1}]}
    jobs = load({"train": {"a": entry | {"validation": ["."], "end_of_text": 0}}}, jureca).train
    first, second = jobs.values()
    assert first.options["mixture"] == {"web": 1, "code": 2}
    assert first.data and first.data == second.data  # prepared once
    assert first.data.sources == (("web", ("python",)), ("code", ("python", ".")))
    assert first.data.entries == ("python", "python", ".", ".")
    assert (first.data.validation, first.data.end_of_text) == ((".",), "0")


@pytest.mark.parametrize(
    "command",
    [
        "python3 x.py --out=$JAXWAY_STATE ${JAXWAY_STATE}/a --pattern=^a$ --price=5$ <eos> a~",
        "bash -c 'python3 x.py --out=$SCRATCH > log'",
        "/bin/sh -c 'cd ~; python3 x.py | tee log'",
    ],
)
def test_commands_that_mean_what_they_say(command, jureca):
    load({"train": {"a": {"program": "command", "command": command}}}, jureca)


@pytest.mark.parametrize("pattern", ["text", "text/[1]", "text/**/*.txt", "**/*.txt", "{here}/**"])
def test_data_are_looked_for_without_following_links_round(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text/[1]").mkdir(parents=True)
    for number in range(3):  # in which glob.glob() does not end
        (tmp_path / f"text/loop{number}").symlink_to("../text")
    entry = pattern.format(here=tmp_path)
    config = make_config(train={"a": {"data": [entry]}})
    assert [options.entries for options in config.data.values()] == [(entry,)]


def test_raw_is_no_path_of_a_tokenizer():
    config = make_config(train={"a": {"tokenizer": ["raw", "bytes"]}})
    assert {job.data.tokenizer for job in config.train.values() if job.data} == {"raw", "bytes"}


def test_section_without_entries_has_no_jobs(jureca) -> None:
    """As YAML reads one whose entries are all comments."""
    config = load({"train": None, "benchmark": None}, jureca)
    assert not config.train and not config.benchmark


def test_no_job_may_use_an_excluded_node() -> None:
    """Only a check of a node by its name goes there."""
    settings: dict[str, Any] = {"train": {"a": {}}, "benchmark": {"memory": {}}}
    settings["node_check"] = {"nodes": ["n1"]}
    config = make_config(**settings, exclude=["n1", "n[3-4]"])
    placements = [config.smoke_test.placement, config.train["a"].placement]
    placements += [each.placement for each in config.benchmark_allocations.values()]
    assert {placement.options for placement in placements} == {("--exclude=n1,n[3-4]",)}
    (check,) = config.node_check_allocations.values()
    assert (check.placement.node, check.placement.options) == ("n1", ())
    assert make_config(**settings).train["a"].placement.options == ()
