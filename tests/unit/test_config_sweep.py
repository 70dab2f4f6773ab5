"""From entries to jobs: sweeps, allocations that are shared, nodes to check, identities."""

from jaxway.config.load import load


def test_a_list_is_a_sweep(jureca):
    sweep = {"steps": [100, 200], "gpus_per_node": [1, 4], "learning_rate": 0.1}
    jobs = load({"train": {"a": sweep}}, jureca).train
    assert list(jobs) == [
        "a-steps=100-gpus_per_node=1",
        "a-steps=100-gpus_per_node=4",
        "a-steps=200-gpus_per_node=1",
        "a-steps=200-gpus_per_node=4",
    ]
    assert jobs["a-steps=200-gpus_per_node=4"].options["steps"] == 200
    assert jobs["a-steps=200-gpus_per_node=4"].placement.devices == 4


def test_trainings_that_share_a_node_divide_what_it_has(jureca):
    entry = {"trainings_per_node": 2, "seed": [1, 2]}
    for job in load({"train": {"a": entry}}, jureca).train.values():
        assert (job.placement.devices, job.placement.gpus_per_node) == (2, 4)


def test_benchmarks_of_one_placement_share_an_allocation(jureca):
    benchmarks = {
        "memory": {"megabytes": [1, 2], "walltime": 5},
        "compute": {"walltime": 20},
        "collective": {"nodes": [1, 2], "processes_per_node": 4},
        "io": {"partition": "dc-hwai", "gpus_per_node": 1},
    }
    found = load({"benchmark": benchmarks}, jureca).allocations
    assert {name: allocation.benchmarks for name, allocation in found.items()} == {
        "1x4": ("memory-megabytes=1", "memory-megabytes=2", "compute"),
        "1x4-4_processes": ("collective-nodes=1",),
        "2x4-4_processes": ("collective-nodes=2",),
        "1x1-dc-hwai": ("io",),
    }
    assert found["1x4"].placement.walltime == 20


def test_each_node_to_check_gets_the_benchmarks_of_one_node(jureca):
    benchmarks = {"memory": {}, "collective": {"nodes": 2}, "compute": {"gpus_per_node": 1}}
    check = {"nodes": ["jrc0101", "jrc[0098-0099,0101]", "jrc01[00]"]}
    config = load({"benchmark": benchmarks, "node_check": check}, jureca)
    nodes = ("jrc0101", "jrc0098", "jrc0099", "jrc0100")
    assert config.nodes_to_check == [*nodes]
    found = config.node_check_allocations
    assert {name: allocation.benchmarks for name, allocation in found.items()} == {
        **{f"1x4-{node}": ("memory",) for node in nodes},
        **{f"1x1-{node}": ("compute",) for node in nodes},
    }
    assert found["1x1-jrc0098"].placement.node == "jrc0098"
    only = {"benchmarks": ["compute"], "nodes": ["jrc0101"]}
    config = load({"benchmark": benchmarks, "node_check": only}, jureca)
    assert [*config.node_check_allocations] == ["1x1-jrc0101"]
