"""Checkpoints at which trainings begin: whether they are there, or are going to be."""

from collections.abc import Mapping
from pathlib import Path

from jaxway_shared import training
from jaxway_shared.training import TrainingState

from jaxway.config.jobs import TrainJob
from jaxway.launch import state_link
from jaxway.preflight.finding import Findings, failure


def check_origins(
    trainings: Mapping[str, TrainJob], configured: Mapping[str, TrainJob]
) -> Findings:
    """What is wrong with the checkpoints of ``from``. ``trainings``: by label, of all that are
    ``configured``, by name."""
    for label, job in trainings.items():
        if name := job.options["from"]:
            run, word = training.split_origin(name)
            problem = problem_of_state(run, word)
            if problem and run in configured:
                problem = problem_of_run(configured[run], word)
            if problem:
                yield failure("JW315", f"{label}.from: {problem}")


def problem_of_state(run: str, word: str | None) -> str | None:
    """Why a training cannot begin at a state that is there now; None, it can."""
    state = TrainingState.find(Path(run if "/" in run else state_link(run)))
    steps = training.checkpoint_steps(state.folder) if state else []
    if not steps:
        return f"no checkpoints in {run}"
    if word in (None, "best") or int(word) in steps:
        return None
    return f"{run} has no checkpoint of step {word}, but of {', '.join(map(str, steps))}"


def problem_of_run(job: TrainJob, word: str | None) -> str | None:
    """Why a training cannot begin at one that is configured; None, it can."""
    steps, every = job.options["steps"], job.options["keep_every"]
    if word == "best":
        return None if job.options["validate_every"] else f"{job.name} has no validate_every"
    if word is None or int(word) == steps:
        return None
    if int(word) < steps and training.is_due(int(word), every):
        return None
    kept = f", and those of every {every}" if every else "; set keep_every"
    return f"{job.name} keeps no checkpoint of step {word}, but that of its last, {steps}{kept}"
