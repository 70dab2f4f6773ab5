"""Variables of a shell that change what a program does, or its speed.

A job is kept free of the first kind (clean_environment.sh); a result records all that it saw.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

# Of the user's shell: an extended regular expression of POSIX, as bash reads it. M_ is MaxText's,
# of CUDA_VISIBLE_DEVICES Slurm decides.
SHELL_RE = (
    "^(APPTAINER|BASH_ENV$|GLOO_|JAX_|LD_|M_|MAXTEXT_|NCCL_|OMP_|PYTHON|SINGULARITY|TF_|UCX_|XLA_)"
    "|^(CUBLAS|CUDA_([^V]|V[^I])|CUDNN_|NVIDIA_)"
    "|_(proxy|PROXY)$"
)
# Of the site, of Slurm and of the image, too.
RECORDED_RE = re.compile(f"{SHELL_RE}|^CUDA_")
SECRET_RE = re.compile("PASSWORD|SECRET|TOKEN|KEY")
NO_PTXAS = Path(__file__).parents[1] / "no_ptxas"
CREDENTIALS_RE = re.compile("//[^/]*@")  # of a URL


def recorded(environ: Mapping[str, str]) -> dict[str, str]:
    """What a result records of its program's environment: no password."""
    return {
        name: "..." if SECRET_RE.search(name) else CREDENTIALS_RE.sub("//", value)
        for name, value in sorted(environ.items())
        if RECORDED_RE.search(name)
    }


def for_compiling(environ: Mapping[str, str], packages: str) -> dict[str, str]:
    """Environment of a process that compiles for GPUs that are not there. ``packages``: folders of
    Python's with JAX's CUDA plugin."""
    return {
        **environ,
        "PYTHONPATH": packages,
        "PATH": f"{NO_PTXAS}:{environ.get('PATH', os.defpath)}",
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no driver
        # There is nothing to try kernels on, and nobody runs what LLVM makes of them.
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    }
