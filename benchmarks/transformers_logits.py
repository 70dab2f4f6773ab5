"""Whether transformers computes the logits of exported models as we do.

Run after `make setup`: .venv/bin/python benchmarks/transformers_logits.py PYTHON, where PYTHON is
one that has transformers and torch.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests/helpers", "workflow/scripts")]
import exported  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jaxway_job import model  # noqa: E402

COMPARE = """
import sys, numpy, torch, transformers
folder = sys.argv[1]
tokens, ours = (torch.tensor(numpy.load(f"{folder}/{name}.npy")) for name in ("tokens", "logits"))
model = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
with torch.no_grad():
    logits = model(tokens).logits
print(type(model).__name__, "of transformers", transformers.__version__, "torch", torch.__version__)
print(f"largest difference {(logits - ours).abs().max():.2g}, spread {ours.std():.2g}")
assert torch.allclose(logits, ours, rtol=0, atol=1e-4)
"""


def main() -> None:
    for name, config in exported.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            params = exported.make_state(Path(folder, "state"), config)
            words = [f"{folder}/state@7", f"{folder}/model"]
            subprocess.run(
                [sys.executable, ROOT / "workflow/scripts/export.py", *words], check=True
            )
            tokens = exported.tokens()
            np.save(f"{folder}/tokens.npy", tokens)
            logits = model.logits(config, params, jnp.asarray(tokens))
            np.save(f"{folder}/logits.npy", logits)
            print(name, flush=True)
            subprocess.run([sys.argv[1], "-c", COMPARE, folder], check=True)


if __name__ == "__main__":
    main()
