"""Data to train on, the program in processes of its own, and runs that several tests compare."""

import random
import signal

import numpy as np
import prepared_bytes
import pytest
from trainings import PROGRAM, SLOWLY, arguments, logged, wait, wait_for


@pytest.fixture(scope="session")
def record(tmp_path_factory):
    """Record of forty documents of sentences from a few words: easy to learn, no two the same."""
    draw = random.Random(0)
    words = "def return import class self print value for in range if else".split()  # noqa: SIM905
    sentences = [[" ".join(draw.choices(words, k=6)) for _ in range(40)] for _ in range(40)]
    some, most, validation = np.split(["\n".join(x).encode() for x in sentences], [5, 39])
    sources = {"some": some.tolist(), "most": most.tolist()}
    return prepared_bytes.write(tmp_path_factory.mktemp("data"), sources, validation.tolist())


@pytest.fixture(scope="session")
def launch(server):
    """Function that starts the program."""
    started = []

    def start(*args, **environment):
        started.append(server.start(PROGRAM, args, environment))
        return started[-1]

    yield start
    for program in started:  # of a test that failed
        program.kill()


@pytest.fixture(scope="session")
def undisturbed(launch, record, tmp_path_factory):
    """A run from start to end; its folder holds ``state`` and ``out``."""
    folder = tmp_path_factory.mktemp("undisturbed")
    profile = '{"first": 27, "steps": 2}'
    wait(launch(*arguments(record, folder / "state", folder / "out", profile=profile)))
    return folder


@pytest.fixture(scope="session")
def halfway(launch, record, tmp_path_factory):
    """A state with two checkpoints and many steps to go."""
    folder = tmp_path_factory.mktemp("halfway")
    command = arguments(record, folder / "state", folder / "out", checkpoint_minutes=60)
    process = launch(*command, **SLOWLY)
    wait_for(lambda: logged(folder / "state") > 5, process)
    process.send_signal(signal.SIGTERM)
    wait(process, 75)
    return folder
