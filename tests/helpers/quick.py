"""XLA compiles for CPUs in half of the time or less: most of the time of what is small."""

import platform

import jax
import pytest

ONCE = "--xla_backend_optimization_level=1"  # LLVM optimizes once
OLD_FLAGS = f"{ONCE} --xla_llvm_disable_expensive_passes=true"  # JAX 0.4.33, in the cluster's image
# Newer ones make each fusion by way of MLIR, which takes most of that time. And oneDNN compiles its
# products when they are computed first.
ONEDNN_FLAGS = f"{ONCE} --xla_cpu_use_fusion_emitters=false"
NEW_FLAGS = f"{ONEDNN_FLAGS} --xla_cpu_use_onednn=false"
FLAGS = NEW_FLAGS if jax.__version_info__ >= (0, 10) else OLD_FLAGS
# For programs of few steps, which may each be slow.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "XLA_FLAGS": FLAGS}
needs_onednn = pytest.mark.skipif(
    jax.__version_info__ < (0, 10) or platform.machine() != "x86_64",
    reason="products of a step are XLA's own",
)
