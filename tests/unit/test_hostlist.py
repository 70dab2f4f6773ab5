"""Slurm's lists of host names."""

import pytest
from jaxway_shared import hostlist


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("jrc0101", ["jrc0101"]),
        ("jrc0101,jrc0200", ["jrc0101", "jrc0200"]),
        ("jrc[0098-0100,0200]", ["jrc0098", "jrc0099", "jrc0100", "jrc0200"]),
        ("jrc[0101-0102],login1", ["jrc0101", "jrc0102", "login1"]),
        ("jpbo-[001,003]-[09-10]", ["jpbo-001-09", "jpbo-001-10", "jpbo-003-09", "jpbo-003-10"]),
        ("n[1-2].ib,n[9]", ["n1.ib", "n2.ib", "n9"]),
    ],
)
def test_names_that_a_list_stands_for(hosts: str, names: list[str]) -> None:
    assert hostlist.expand(hosts) == names


@pytest.mark.parametrize("hosts", ["jrc[1-1000000001]", "a[1-400]-[1-400]"])
def test_more_names_than_a_cluster_has_are_an_error(hosts: str) -> None:
    with pytest.raises(ValueError, match="are more than 100,000 names"):
        hostlist.expand(hosts)


def test_descending_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="is a descending range"):
        hostlist.expand("jrc[0103-0101]")
