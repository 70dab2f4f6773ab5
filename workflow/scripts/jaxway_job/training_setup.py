"""What a training works with and never changes: data, model, optimizer, and how all is sharded."""

import argparse
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxway_shared import presets

from jaxway_job import dataset, flops, model
from jaxway_job.optimization import (
    Tree,
    compile_step,
    make_optimizer,
    make_schedule,
    train_step,
)


class TrainingSetup:
    """Data, model and optimizer of a training, given by its options and devices."""

    def __init__(self, args: argparse.Namespace, data: dataset.Data, mesh: Mesh) -> None:
        self.args, self.data, self.mesh = args, data, mesh
        device = mesh.devices.flat[0]
        on_gpu = device.platform == "gpu"
        self.config = model.Config(
            layers=args.layers,
            width=args.width,
            heads=args.heads,
            kv_heads=args.kv_heads,
            mlp=args.mlp,
            mlp_width=args.mlp_width,
            tied_embeddings=args.tied_embeddings,
            ngram=args.ngram,
            document_end=data.record.end_of_text if args.document_attention else None,
            vocabulary=presets.padded(self.data.record.vocabulary),
            dtype=args.dtype or ("bfloat16" if on_gpu else "float32"),
            remat=args.remat,
            unroll=args.unroll,
            mesh=mesh,
        )
        self.schedule = make_schedule(args)
        self.optimizer = make_optimizer(args, self.schedule)
        self.by_batch = NamedSharding(mesh, model.BATCH)
        self.by_device = NamedSharding(mesh, PartitionSpec(model.AXES))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.shapes = jax.eval_shape(self.initial_state)
        self.shardings = model.shardings(mesh, self.shapes)
        device_peak = flops.peak(device.device_kind)
        self.peak_flops = device_peak and device_peak * mesh.size

    def initial_state(self) -> Tree:
        """The state before the first step."""
        params = model.init(self.config, jax.random.key(self.args.seed))
        return {"params": params, "optimizer": self.optimizer.init(params)}

    def sharded_initial_state(self) -> Tree:
        """The state before the first step, each device's part made on that device."""
        state: Tree = jax.jit(self.initial_state, out_shardings=self.shardings)()
        return state

    def with_new_moments(self, params: Tree) -> Tree:
        """The state before the first step, with these parameters."""
        init = jax.jit(self.optimizer.init, out_shardings=self.shardings["optimizer"])
        return {"params": params, "optimizer": init(params)}

    def sharded_shapes(self) -> Tree:
        """Shape, type and sharding of each array of the state."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.shapes,
            self.shardings,
        )

    def batch(self, step: int) -> jax.Array:
        """Tokens Bx(T+1) of a step; every process reads the rows of its own devices."""
        size, context = self.args.global_batch, self.args.context
        offsets = dataset.window_offsets(self.data, self.args.seed, step, size, context)
        return jax.make_array_from_callback(
            (size, context + 1),
            self.by_batch,
            lambda index: dataset.windows(self.data, offsets[index[0]], context),  # type: ignore[index]
        )

    def actions(self, action: int) -> jax.Array:
        """The action that this process requests, on each of its devices."""
        return jax.make_array_from_callback(
            (self.args.devices,), self.by_device, lambda _: np.full(1, action, np.int32)
        )

    def compile_step(self) -> Any:
        """The function (state, tokens, requested actions) -> (state, result) of a step.

        Needs no array, so it can be compiled for devices that this process does not have.
        """
        shape = self.args.global_batch, self.args.context + 1
        tokens = jax.ShapeDtypeStruct(shape, self.data.validation.dtype, sharding=self.by_batch)
        actions = jax.ShapeDtypeStruct((self.args.devices,), np.int32, sharding=self.by_device)
        step_function = jax.jit(
            partial(train_step, self.config, self.optimizer, self.args.gradient_accumulation_steps),
            out_shardings=(self.shardings, self.replicated),
            donate_argnums=0,
        )
        lowered = step_function.lower(self.sharded_shapes(), tokens, actions)
        return compile_step(lowered, self.mesh, self.args.xla)
