"""Variables of a shell that change what a program does, or its speed.

A job is kept free of the first kind (clean_environment.sh); a result records all that it saw.
"""

import re
from collections.abc import Mapping

# Of the user's shell: an extended regular expression of POSIX, as bash reads it. M_ is MaxText's,
# of CUDA_VISIBLE_DEVICES Slurm decides.
SHELL_RE = (
    "^(APPTAINER|BASH_ENV$|JAX_|LD_|M_|NCCL_|PYTHON|SINGULARITY|TF_|XLA_)"
    "|^(CUBLAS|CUDA_([^V]|V[^I])|CUDNN_|NVIDIA_)"
    "|_(proxy|PROXY)$"
)
# Of the site, of Slurm and of the image, too.
RECORDED_RE = re.compile(f"{SHELL_RE}|^(CUDA_|GLOO_|MAXTEXT_|OMP_|UCX_)")
SECRET_RE = re.compile("PASSWORD|SECRET|TOKEN|KEY")
FOR_COMPILING = {  # of a process that compiles for GPUs that are not there
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no driver
    # There is nothing to try kernels on, and nobody runs what LLVM and ptxas make of them.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_gpu_disable_gpuasm_optimizations=true",
}
CREDENTIALS_RE = re.compile("//[^/]*@")  # of a URL


def recorded(environ: Mapping[str, str]) -> dict[str, str]:
    """What a result records of its program's environment: no password."""
    return {
        name: "..." if SECRET_RE.search(name) else CREDENTIALS_RE.sub("//", value)
        for name, value in sorted(environ.items())
        if RECORDED_RE.search(name)
    }
