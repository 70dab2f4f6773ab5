"""The configuration: defaults, sweeps, and one sentence for each way in which it can be wrong."""

import os
import subprocess

import pytest
from jaxway import configuration
from plan import ROOT

BROKEN = {
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
        "smoke_test: there is one, so no key can be a list",
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
    "processes that do not divide the GPUs": (
        {"train": {"a": {"processes_per_node": 3}}},
        "train.a.processes_per_node: 3 processes cannot share 4 GPUs equally",
    ),
    "no time": ({"smoke_test": {"walltime": 0}}, "smoke_test.walltime: must be at least 1"),
    "a batch that does not divide": (
        {"train": {"a": {"global_batch": 6}}},
        "train.a.global_batch: must be a multiple of 4, GPUs that share it x microbatches",
    ),
    "a width that does not divide": (
        {"train": {"a": {"width": 100, "heads": 3}}},
        "train.a.width: must be an even multiple of heads, not 100",
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
    "a tokenizer that is not there": (
        {"train": {"a": {"tokenizer": "/nowhere/tokenizer.json"}}},
        "train.a.tokenizer: nothing matches /nowhere/tokenizer.json",
    ),
    "a warm-up longer than the training": (
        {"train": {"a": {"steps": 10, "warmup_steps": 10}}},
        "train.a.warmup_steps: must be fewer than the 10 steps, not 10",
    ),
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
    # Nodes to vet.
    "a node that is none": ({"vetting": {"nodes": ["jrc 1"]}}, "vetting.nodes.0: must match"),
    "nodes that go backwards": (
        {"vetting": {"nodes": ["jrc[0103-0101]"]}, "benchmark": {"memory": {}}},
        "vetting.nodes: jrc[0103-0101] goes backwards",
    ),
    "nothing to run on a node": (
        {"vetting": {"nodes": ["jrc0101"]}, "benchmark": {"memory": {"nodes": 2}}},
        "vetting.nodes: there is no benchmark of one node to run there",
    ),
    "a benchmark that vetting does not know": (
        {"vetting": {"nodes": ["jrc0101"], "benchmarks": ["memor"]}, "benchmark": {"memory": {}}},
        "vetting.benchmarks: no benchmark of one node is named memor; did you mean 'memory'?",
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
    "data in an unset variable": (
        {"train": {"a": {"data": ["$NOT_SET/x"]}}},
        "train.a.data: names an environment variable that is not set",
    ),
}


@pytest.fixture
def jureca(monkeypatch, tmp_path):
    """JURECA's site, with what its users have in their environment."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("SBATCH_ACCOUNT", "training")
    monkeypatch.setenv("JAXWAY_SITE", "profiles/jureca")
    monkeypatch.delenv("JAXWAY_ACCOUNT", raising=False)
    return configuration.load_site(ROOT)


@pytest.mark.parametrize(("config", "sentence"), BROKEN.values(), ids=BROKEN)
def test_broken_configuration_is_one_sentence(jureca, config, sentence):
    with pytest.raises(configuration.ConfigurationError) as error:
        configuration.load(config, jureca)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {a: {steps: -1}}", "train.a.steps: must be at least 1, not -1"),
        ("tarin: {}", "tarin: unknown key; did you mean 'train'?"),
        ("train: {a: {data: [/nowhere/a b/ü]}}", "train.a.data: nothing matches /nowhere/a b/ü"),
        ("train: {größe: {}}", "größe"),
        ("train: {a: {}, b: {}, a: {}}", "config.yaml, line 1: a is there twice"),
        ("- 1", "onfig"),
        ("train: [", "onfig"),
    ],
)
def test_snakemake_says_it_in_one_sentence(plan, text, sentence):
    (plan.folder / "config.yaml").write_text(text)
    result = plan.snakemake("--dry-run", check=False)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_unreadable_data_is_one_sentence(jureca, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("text")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    with pytest.raises(configuration.ConfigurationError, match="cannot be read by this user"):
        configuration.load({"train": {"a": {"data": [f"{tmp_path}/*"]}}}, jureca)


def test_relative_scratch_is_one_sentence(monkeypatch, jureca):
    monkeypatch.setenv("SCRATCH", "scratch")
    with pytest.raises(configuration.ConfigurationError, match="must be an absolute path"):
        configuration.load_site(ROOT)


def test_missing_site_is_one_sentence(monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "profiles/nowhere")
    with pytest.raises(configuration.ConfigurationError, match="describes no site"):
        configuration.load_site(ROOT)


def test_one_process_where_there_is_no_launcher(monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "profiles/local")
    site = configuration.load_site(ROOT)
    with pytest.raises(configuration.ConfigurationError, match="has no launcher"):
        configuration.load({"train": {"a": {"nodes": 2}}}, site)


def test_the_users_environment_wins_over_the_sites(jureca):
    config = configuration.load({"environment": {"NCCL_SOCKET_IFNAME": "eth0"}}, jureca)
    assert config["environment"]["NCCL_SOCKET_IFNAME"] == "eth0"
    assert config["environment"]["UCX_RC_TIMEOUT"] == "4s"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("{'a': {'type': 'integer', 'default': 2**14, 'description': ''}}", "must be literal"),
        ("{'a': {'type': 'integer', 'description': ''}}", "OPTIONS.a has no default"),
    ],
)
def test_a_programs_bad_options_are_one_sentence(monkeypatch, tmp_path, options, sentence):
    (tmp_path / "benchmark_bad.py").write_text(f"OPTIONS = {options}")
    monkeypatch.setattr(configuration, "SCRIPTS", tmp_path)
    with pytest.raises(configuration.ConfigurationError, match=sentence):
        configuration.options_of.__wrapped__("benchmark_bad")


def test_data_with_spaces_and_beyond_ascii(jureca, tmp_path):
    (tmp_path / "mein Text ü.txt").write_text("text")
    config = {"train": {"a": {"data": ["$SCRATCH/mein Text*"]}}}
    job = configuration.load(config, jureca)["train"]["a"]
    assert job["data"]["data"] == [f"{tmp_path}/mein Text*"]


def test_scratch_with_a_space_is_one_sentence(monkeypatch, jureca):
    monkeypatch.setenv("SCRATCH", "/p/my scratch")
    with pytest.raises(configuration.ConfigurationError, match="takes no path with spaces"):
        configuration.load_site(ROOT)


def test_a_list_is_a_sweep(jureca):
    sweep = {"steps": [100, 200], "gpus_per_node": [1, 4], "learning_rate": 0.1}
    jobs = configuration.load({"train": {"a": sweep}}, jureca)["train"]
    assert list(jobs) == [
        "a-steps=100-gpus_per_node=1",
        "a-steps=100-gpus_per_node=4",
        "a-steps=200-gpus_per_node=1",
        "a-steps=200-gpus_per_node=4",
    ]
    assert jobs["a-steps=200-gpus_per_node=4"]["options"]["steps"] == 200
    assert jobs["a-steps=200-gpus_per_node=4"]["gpus_per_node"] == 4


def test_benchmarks_of_one_placement_share_an_allocation(jureca):
    benchmarks = {
        "memory": {"megabytes": [1, 2], "walltime": 5},
        "compute": {"walltime": 20},
        "collective": {"nodes": [1, 2], "processes_per_node": 4},
        "io": {"partition": "dc-hwai", "gpus_per_node": 1},
    }
    found = configuration.load({"benchmark": benchmarks}, jureca)["allocation"]
    assert {name: place["benchmarks"] for name, place in found.items()} == {
        "1x4": ["memory-megabytes=1", "memory-megabytes=2", "compute"],
        "1x4-4_processes": ["collective-nodes=1"],
        "2x4-4_processes": ["collective-nodes=2"],
        "1x1-dc-hwai": ["io"],
    }
    assert found["1x4"]["walltime"] == 20


def test_nodes_to_vet(jureca):
    """Each gets the benchmarks of one node; names as Slurm writes them."""
    benchmarks = {"memory": {}, "collective": {"nodes": 2}, "compute": {"gpus_per_node": 1}}
    vetting = {"nodes": ["jrc0101", "jrc[0098-0100,0101]"]}
    found = configuration.load({"benchmark": benchmarks, "vetting": vetting}, jureca)["allocation"]
    vetted = {name: place["benchmarks"] for name, place in found.items() if place["node"]}
    nodes = ("jrc0101", "jrc0098", "jrc0099", "jrc0100")
    assert vetted == {
        **{f"1x4-{node}": ["memory"] for node in nodes},
        **{f"1x1-{node}": ["compute"] for node in nodes},
    }
    only = {"benchmarks": ["compute"], "nodes": ["jrc0101"]}
    found = configuration.load({"benchmark": benchmarks, "vetting": only}, jureca)["allocation"]
    assert [name for name, place in found.items() if place["node"]] == ["1x1-jrc0101"]


def test_id_is_what_defines_a_training_and_not_where_it_runs(jureca):
    def identity(entry):
        config = {"train": {"a": entry}}
        return configuration.load(config, jureca)["train"]["a"]["id"]

    elsewhere = {"nodes": 2, "walltime": 600, "fsdp": 4, "checkpoint_minutes": 1}
    assert identity({}) == identity(elsewhere)
    assert identity({}) != identity({"steps": 170})
    assert identity({}) != identity({"validation_bytes": 1000})


def test_site_with_an_unknown_key_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text("nmae: x")
    monkeypatch.setenv("JAXWAY_SITE", str(tmp_path))
    with pytest.raises(configuration.ConfigurationError, match="did you mean 'name'"):
        configuration.load_site(ROOT)


def test_readme_is_up_to_date():
    """`make config/README.md` makes it from the schema and the programs' OPTIONS."""
    assert (ROOT / "config/README.md").read_text() == configuration.readme()


def test_code_is_dirty_when_it_has_changed_and_not_when_its_configuration_has(
    tmp_path, monkeypatch
):
    for name in ("PATH", "JAXWAY_COMMIT"):
        monkeypatch.setenv(name, os.environ["PATH"])
    (tmp_path / "config").mkdir()
    files = tmp_path / "config/config.yaml", tmp_path / "code.py"
    for file in files:
        file.touch()
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    for file, dirty in zip(files, (False, True), strict=True):
        file.write_text("changed")
        configuration.prepare_environment(tmp_path, {}, None)
        assert os.environ["JAXWAY_COMMIT"].endswith("-dirty") == dirty
