"""XLA compiles for CPUs in a tenth of the time: most of the time of what is small."""

import jax

# Newer ones than JAX 0.4.33 make each fusion by way of MLIR, which takes most of that time.
FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ >= (0, 10) else ""
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", "XLA_FLAGS": FLAGS}
