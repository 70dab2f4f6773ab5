"""Look, before anything is submitted, for what would stop the plan.

Asks the machine itself: Slurm for its limits, the registry for the image's size, file systems for
their space. Changes nothing there. Knows nothing of Snakemake.
"""
