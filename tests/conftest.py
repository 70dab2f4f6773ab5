"""The layers of the tests: each is a folder."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Minutes after which a test that hangs is ended, by layer.
LAYERS = {"unit": 1, "programs": 5, "plan": 5, "cluster": 15}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its layer. What shares fixtures that take long runs in one process: all
    tests of the cluster, and those of a file or a folder in the other layers."""
    for item in items:
        layer, *path = item.path.relative_to(ROOT / "tests").parts
        group = layer if layer == "cluster" else f"{layer}/{path[0]}"
        item.add_marker(layer)
        item.add_marker(pytest.mark.timeout(60 * LAYERS[layer]))
        item.add_marker(pytest.mark.xdist_group(group))
