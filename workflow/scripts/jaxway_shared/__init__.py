"""Formats of what passes between login node and container. Python 3.10 and numpy alone."""
