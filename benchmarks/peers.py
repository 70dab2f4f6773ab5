"""Tokens/s, and CPU time a token, of our training step beside other models of the same size.

Run from the checkout: PYTHON benchmarks/peers.py NANOGPT [WIDTH] [LAYERS] [CONTEXT] [ROUNDS]

PYTHON has JAX, optax, flax and torch (and, for torch.compile, a C++ compiler); NANOGPT is model.py
of PyTorch's nanoGPT. Each model, in float32 and by AdamW after clipping, has a process of its own,
and all take turns. Theirs have learned positions, LayerNorm and GELU; the flax model is written as
plainly as flax allows. On a machine that others use, CPU time says more than tokens/s.
"""

import importlib.util
import multiprocessing
import os
import sys
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow/scripts"))
VOCABULARY, HEAD, TOKENS = 256, 64, 2048  # TOKENS: of a batch
SECONDS = 4.0  # that a model computes in a round, about


def batches(context):
    draw = np.random.default_rng(0)
    while True:
        yield draw.integers(0, VOCABULARY, (TOKENS // context, context + 1))


def ours(width, layers, context):
    import jax
    import optax
    from jaxway_job import model, optimization, runtime

    runtime.keep_memory()
    config = model.Config(layers, width, width // HEAD, VOCABULARY, unroll=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4))
    step = jax.jit(partial(optimization.train_step, config, optimizer, 1), donate_argnums=0)
    params = model.init(config, jax.random.key(0))
    state = {"params": params, "optimizer": optimizer.init(params)}
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    one = next(batches(context)).astype(np.uint8), np.zeros(1, np.int32)
    step = optimization.compile_step(step.lower(state, *one), mesh, None)
    for batch in batches(context):
        state, result = step(state, batch.astype(np.uint8), np.zeros(1, np.int32))
        yield float(result["loss"])


def in_flax(width, layers, context):
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            mask = nn.make_causal_mask(tokens)
            x = nn.Embed(VOCABULARY, width)(tokens)
            x += nn.Embed(context, width)(jnp.arange(tokens.shape[1]))
            for _ in range(layers):
                attention = nn.MultiHeadDotProductAttention(width // HEAD, use_bias=False)
                x += attention(nn.LayerNorm()(x), mask=mask)
                hidden = nn.gelu(nn.Dense(4 * width, use_bias=False)(nn.LayerNorm()(x)))
                x += nn.Dense(width, use_bias=False)(hidden)
            return nn.Dense(VOCABULARY, use_bias=False)(nn.LayerNorm()(x))

    model, optimizer = Transformer(), optax.chain(optax.clip_by_global_norm(1), optax.adamw(3e-4))

    @partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        def loss(params):
            logits = model.apply(params, batch[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

        value, gradient = jax.value_and_grad(loss)(state[0])
        updates, moments = optimizer.update(gradient, state[1], state[0])
        return (optax.apply_updates(state[0], updates), moments), value

    params = jax.jit(model.init)(jax.random.key(0), next(batches(context))[:, :-1])
    state = params, optimizer.init(params)
    for batch in batches(context):
        state, loss = step(state, batch.astype(np.int32))
        yield float(loss)


def in_torch(compiled, width, layers, context):
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt", sys.argv[1])
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    torch.manual_seed(0)
    config = nanogpt.GPTConfig(
        context, VOCABULARY, layers, width // HEAD, width, dropout=0.0, bias=False
    )
    model = nanogpt.GPT(config)
    optimizer = model.configure_optimizers(0.1, 3e-4, (0.9, 0.95), "cpu")
    run = torch.compile(model) if compiled else model
    for batch in batches(context):
        batch = torch.from_numpy(batch)
        _, loss = run(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


MODELS = {
    "ours": ours,
    "flax": in_flax,
    "nanoGPT": partial(in_torch, False),
    "nanoGPT, compiled": partial(in_torch, True),
}


def serve(name: str, sizes: tuple[int, ...], pipe: Connection) -> None:
    """Train so many steps as asked for, and answer how many seconds they took, and of CPUs."""
    sys.stdout = sys.stderr
    losses = MODELS[name](*sizes)
    next(losses)  # compiles
    pipe.send(None)
    while steps := pipe.recv():
        start = np.array([time.monotonic(), time.process_time()])
        for _ in range(steps):
            next(losses)
        pipe.send((time.monotonic(), time.process_time()) - start)


def main() -> None:
    width, layers, context, rounds = map(
        int, [*sys.argv[2:], *("512", "4", "256", "9")[len(sys.argv) - 2 :]]
    )
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for name in MODELS:
        pipes[name], end = spawn.Pipe()
        sizes = (width, layers, context)
        spawn.Process(target=serve, args=(name, sizes, end), daemon=True).start()
        pipes[name].recv()

    def seconds(name: str, steps: int) -> np.ndarray:
        """Seconds that a token takes, and of CPUs."""
        time.sleep(0.3)  # the threads of the one before are asleep
        pipes[name].send(steps)
        return pipes[name].recv() / steps / TOKENS

    steps = {name: max(2, round(SECONDS / TOKENS / seconds(name, 3)[0])) for name in MODELS}
    taken = {name: [] for name in MODELS}
    for number in range(rounds):
        for name in [*MODELS][:: 1 if number % 2 else -1]:
            taken[name].append(seconds(name, steps[name]))
    for pipe in pipes.values():
        pipe.send(0)
    print(
        f"{layers} layers of width {width}, {TOKENS // context} x {context} tokens, {rounds} "
        f"rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ours by theirs in brackets"
    )
    for name, each in taken.items():
        wall, cpu = np.median(each, axis=0)
        faster, cheaper = np.median(np.divide(each, taken["ours"]), axis=0)
        print(
            f"{name:18} {1 / wall:8.0f} tokens/s ({faster:.2f}), "
            f"{cpu * 1e6:8.1f} us of CPU a token ({1 / cheaper:.2f})"
        )


if __name__ == "__main__":
    main()
