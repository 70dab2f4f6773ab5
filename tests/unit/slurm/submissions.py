"""A submission for tests that need one and do not mind which."""

from dataclasses import replace

from jaxway.slurm.journal import Submission


def make_submission(name: str = "train_run_small-1", **values: object) -> Submission:
    """A job that was not submitted yet, but for these values."""
    default = Submission(
        name=name,
        label="train_run small",
        work="abc",
        outputs=("results/train/small/summary.json",),
        log="slurm/%j.log",
        run="run1",
    )
    return replace(default, **values)  # type: ignore[arg-type]
