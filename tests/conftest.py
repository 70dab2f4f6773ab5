"""The layers of the tests: each is a folder."""

from pathlib import Path
from typing import Any

import pytest

# Minutes after which a test that hangs is ended, by layer.
LAYERS = {"unit": 2, "programs": 10, "plan": 10, "cluster": 30}

CLUSTERS = 2  # processes that begin with tests of the cluster
# What takes longest, mostly waiting, comes first: else one process waits alone at the end.
LONGEST = ("test_chain.py", "test_benchmark_runs.py", "test_killed_run.py", "test_slurm_outage.py")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with its layer."""
    layer = item.path.relative_to(Path(__file__).parent).parts[0]
    item.add_marker(layer)
    item.add_marker(pytest.mark.timeout(60 * LAYERS[layer]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file, or of a folder within a layer, in one process: they share fixtures
    that take long. Clusters wait much, so two run beside a process that computes."""
    from xdist.scheduler import LoadScopeScheduling  # where tests run in a container, there is none

    class ByLayer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            _, layer, path, *_ = nodeid.partition("::")[0].split("/")
            return f"{layer}/{path}"

        def _assign_work_unit(self, node: Any) -> None:
            others = [scope for scope in self.workqueue if not scope.startswith("cluster/")]
            if others and self.nodes.index(node) >= CLUSTERS:
                self.workqueue.move_to_end(others[0], last=False)
            super()._assign_work_unit(node)

    return ByLayer(config, log)
