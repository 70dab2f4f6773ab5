"""Slurm's lists of host names: ``jrc[0101-0103,0200],login1``.

Both sides read them. A library for it cannot be had in the container, so there is none here.
"""

import itertools
import math
import re

MOST_NAMES = 100_000  # of one entry: more than any cluster has, and a slip of a digit makes 10^9


def expand(hosts: str) -> list[str]:
    """Names that a host list stands for, in its order; ValueError, if it is none."""
    names: list[str] = []
    for entry in re.findall(r"(?:[^,\[]|\[[^]]*\])+", hosts):
        parts = re.split(r"\[([\d,-]+)\]", entry)  # odd ones are what stood in brackets
        choices = [numbers(p) if i % 2 else [p] for i, p in enumerate(parts)]
        check_size(math.prod(map(len, choices)), entry)
        names += map("".join, itertools.product(*choices))
    return names


def numbers(ranges: str) -> list[str]:
    """``0098-0100,0200``: four numbers, each as wide as the first of its range."""
    found: list[str] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise ValueError(f"[{ranges}] is a descending range")
        check_size(len(span), f"[{ranges}]")
        found += [f"{number:0{len(first)}}" for number in span]
    return found


def check_size(names: int, text: str) -> None:
    """ValueError where a text stands for too many names."""
    if names > MOST_NAMES:
        raise ValueError(f"{text} are more than {MOST_NAMES:,} names")
