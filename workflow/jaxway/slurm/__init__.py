"""Slurm: its commands, its accounting, and the executor that submits jobs to it."""
