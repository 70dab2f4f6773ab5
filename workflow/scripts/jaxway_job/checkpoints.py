"""Checkpoints of a training: written by Orbax in the background, and checked when read."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxway_shared import training
from jaxway_shared.errors import fail

from jaxway_job import runtime

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what is its own business


@jax.jit
def checksums(tree: Any) -> Any:
    """For each array, of 4-byte numbers, the sum of its bits as integers modulo 2**32.

    Exact, so the same for every way of splitting an array over devices. A flipped bit changes it.
    """
    return jax.tree.map(
        lambda x: jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32), tree
    )


class Checkpoints:
    """Checkpoints in a training's state, each in a folder that its step names: the newest ``keep``,
    those of every ``keep_every``-th step, and the best."""

    def __init__(self, state: Path, keep: int, keep_every: int | None = None) -> None:
        self.state, self.folder = state, state / training.CHECKPOINTS
        self.keep, self.keep_every = keep, keep_every
        options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.saving, self.save_start, self.finished = False, 0.0, False
        self.longest_save = 0.0  # seconds

    def restore(self, like: Any) -> tuple[int, Any]:
        """Step and content of the newest intact checkpoint; 0 and None, there are none.

        ``like`` is a tree of jax.ShapeDtypeStruct with shardings, not necessarily those of the
        processes that wrote it. Newer ones, which are damaged, are named and moved aside. Ends the
        program if there are checkpoints, and none is intact.
        """
        damaged, aside = [], self.state / "damaged"
        for step in sorted(self.manager.all_steps(), reverse=True):
            content, problem = self.read(step, like)
            if not problem:
                break
            damaged.append(step)
            if runtime.first_process():
                print(f"checkpoint of step {step} is damaged: {problem}", flush=True)
        else:
            if damaged:  # they stay: the cause may be another, such as a file system's failure
                fail(
                    "JW304",
                    f"no checkpoint in {self.folder} can be read, for the reasons above: remove "
                    f"their cause, or delete {self.state} to start over",
                )
            return 0, None
        if damaged:
            if runtime.first_process():
                aside.mkdir(exist_ok=True)
                for number in damaged:
                    shutil.rmtree(aside / str(number), ignore_errors=True)  # damaged before
                    (self.folder / str(number)).rename(aside / str(number))
            multihost_utils.sync_global_devices("damaged checkpoints moved")
            self.manager.reload()
        return step, content

    def read(self, step: int, like: Any) -> tuple[Any, str]:
        """Content of a checkpoint and what is wrong with it, the same in all processes."""
        return read(self.folder / str(step), like)

    def save(self, step: int, content: Any) -> None:
        """Begin to write a checkpoint; returns as soon as ``content`` may be donated.

        Ends the program if this one, or one before it, cannot be written.
        """
        if self.saving:  # Orbax would wait for the one before, too
            self.finish_save()
        self.saving, self.save_start = True, time.perf_counter()
        try:
            # On the CPU it would be written from the very memory that is donated.
            if jax.local_devices()[0].platform == "cpu":
                content = jax.tree.map(jnp.copy, content)
            tree = {"state": content, "checksums": checksums(content)}
            self.manager.save(step, args=ocp.args.StandardSave(tree))
        except Exception as error:  # Orbax wraps a full disk in many ways
            self.fail_save(error)

    def save_finished(self) -> bool:
        """Whether a checkpoint has been finished since the last call."""
        if self.saving and not self.manager.is_saving_in_progress():
            self.finish_save()
        finished, self.finished = self.finished, False
        return finished

    def finish_save(self) -> None:
        """Wait until a checkpoint is finished, and note that it is."""
        self.wait()
        self.saving, self.finished = False, True
        self.longest_save = max(self.longest_save, time.perf_counter() - self.save_start)

    def newest(self) -> int:
        """Step of the newest finished checkpoint; 0 where there is none."""
        return max(training.checkpoint_steps(self.state), default=0)

    def delete_old(self, best: int | None = None) -> None:
        """Delete what is not to be kept. ``best``: step of the best checkpoint."""
        if runtime.first_process():
            trash = self.state / "deleted"
            for step in training.checkpoint_steps(self.state)[: -self.keep]:
                if step != best and not training.is_due(step, self.keep_every):
                    # Half of one is not to be found here after a kill.
                    shutil.rmtree(trash, ignore_errors=True)
                    (self.folder / str(step)).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def wait(self) -> None:
        """Wait until all is written. Ends the program if something cannot be."""
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except Exception as error:
            self.fail_save(error)

    def fail_save(self, error: Exception) -> NoReturn:
        """End the program with the reason why a checkpoint was not written."""
        fail(
            "JW303",
            f"checkpoint not written to {self.folder}: {runtime.first_line(error)}; last "
            f"checkpoint: step {self.newest()}",
        )


def read(checkpoint: Path, like: Any) -> tuple[Any, str]:
    """Content of a checkpoint and what is wrong with it, the same in all processes.

    ``like`` may be a part of what it has.
    """
    restored: Any = None
    problem = ""
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=NamedSharding(mesh, P()))
    expected = {"state": like, "checksums": jax.tree.map(lambda _: number, like)}
    try:
        problem = misfit(checkpoint, like)  # Orbax 0.6 would cut arrays or fill them up
        if not problem:
            restored = ocp.PyTreeCheckpointer().restore(
                checkpoint / "default",
                args=ocp.args.PyTreeRestore(
                    expected,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(expected),
                    transforms={},  # what else is there is not read
                ),
            )
    except Exception as error:  # whatever a file that was cut or changed makes Orbax raise
        problem = runtime.first_line(error)
    if np.any(multihost_utils.process_allgather(np.array(bool(problem)))):
        return None, problem or "another process cannot read it"
    # On the CPU these arrays may lie in memory that is not JAX's own, and training donates
    # them: JAX 0.4.33 then corrupts the heap.
    content = jax.tree.map(jnp.copy, restored["state"])
    same = jax.tree.map(np.array_equal, checksums(content), restored["checksums"])
    changed = [path for path, ok in jax.tree_util.tree_leaves_with_path(same) if not ok]
    return content, f"{jax.tree_util.keystr(changed[0])} has changed" if changed else ""


def misfit(checkpoint: Path, like: Any) -> str:
    """How arrays of a checkpoint differ from those of ``like``, in the parts of the state that this
    has: the first that does; empty, if none does."""
    there, here = saved_shapes(checkpoint), shapes(like)
    parts = {name.partition("/")[0] for name in here}
    for name in {**here, **there}:
        sizes = [each.get(name, "none") for each in (there, here)]
        if sizes[0] != sizes[1] and name.partition("/")[0] in parts:
            return f"{name} is {sizes[0]} there, and {sizes[1]} here"
    return ""


def saved_shapes(checkpoint: Path) -> dict[str, str]:
    """The shape of each array of a checkpoint's state, by its path."""
    metadata = ocp.PyTreeCheckpointHandler().metadata(checkpoint / "default")
    return shapes(getattr(metadata, "tree", metadata)["state"])  # Orbax 0.6 has no .tree


def shapes(tree: Any) -> dict[str, str]:
    """The shape of each array of a tree, by its path."""

    def word(key: Any) -> str:  # Orbax makes dictionaries of tuples with names
        return str(
            next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))
        )

    return {
        "/".join(map(word, path)): "x".join(map(str, leaf.shape)) or "a number"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
