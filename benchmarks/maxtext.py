"""Whether workflow/scripts/maxtext.py runs a real MaxText as it runs the stub of its tests.

Run from the checkout, on a CPU: .venv/bin/python benchmarks/maxtext.py PYTHON FOLDER [CHECKOUT]

PYTHON has JAX and what MaxText needs: the package `maxtext`; or CHECKOUT is one of MaxText as of
October 2024. FOLDER, which must not exist, gets texts, a tokenizer, states and logs.

One process trains on JSON lines, two on synthetic data; each is stopped and resumed. Checked are
the exit codes, that no step is missing or twice, that the end is saved, and the evaluations.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "workflow/scripts/maxtext.py"
STEPS, PERIOD = 300, 120  # so that the MaxText of 2024 does not save the end by itself
EVALUATE = 50  # steps between two evaluations
TOKENIZER = """
import sys, transformers, tokenizers
from tokenizers import models, pre_tokenizers, decoders, trainers
tokenizer = tokenizers.Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = ["<pad>", "<s>", "</s>", "<unk>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
tokenizer.train_from_iterator(open(sys.argv[1]), trainer)
names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special))
fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
fast.save_pretrained(sys.argv[2])
"""
# Processes on CPUs compute together by this, which JAX 0.4.33 takes from no variable or argument.
WITH_GLOO = """
import runpy, sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
sys.path[0] = {folder!r}
runpy.run_path({folder!r} + "/train.py", run_name="__main__")
"""


def with_gloo(checkout: Path) -> Path:
    """A folder that stands for a checkout."""
    stand_in, folder = FOLDER / "checkout", checkout / "MaxText"
    (stand_in / "MaxText").mkdir(parents=True)
    (stand_in / "MaxText/configs").symlink_to(folder / "configs")
    (stand_in / "MaxText/train.py").write_text(WITH_GLOO.format(folder=str(folder)))
    return stand_in


def start(name: str, processes: int, options: dict[str, Any]) -> list[subprocess.Popen[bytes]]:
    """Start a job: its processes."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "JAX"))}
    words = [PYTHON, PROGRAM, "--platform=cpu", f"--devices={2 * processes}", f"--steps={STEPS}"]
    words += [f"--{key}={value}" for key, value in options.items()]
    words += [f"--state={FOLDER}/{name}/state", f"--out={FOLDER}/{name}/summary.json"]
    job = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
    job |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": str(time.monotonic_ns() % 4096)}
    started = []
    for rank in range(processes):
        own = job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        environment = outer | {"MAXTEXT_HOME": str(HOME)} | (own if processes > 1 else {})
        with (FOLDER / f"{name}.{rank}.log").open("a") as log:
            started.append(
                subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    return started


def lines(name: str) -> list[dict[str, Any]]:
    """Metrics of a training so far."""
    file = FOLDER / name / "state/metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train(name: str, processes: int, **options: Any) -> None:
    """Stop a training when it has logged some steps, resume it, and check what it leaves."""
    job = start(name, processes, options)
    while len(lines(name)) < 20 and all(each.poll() is None for each in job):
        time.sleep(0.1)
    for each in job:
        each.send_signal(signal.SIGTERM)
    codes = [each.wait() for each in job]
    saved = int((FOLDER / name / "state/last_checkpoint_step").read_text())
    if not check(f"{name}: stopped at step {saved}", codes == [75] * processes and saved < STEPS):
        return
    codes = [each.wait() for each in start(name, processes, options)]
    if not check(f"{name}: resumed, exit codes {codes}", codes == [0] * processes):
        return
    summary = json.loads((FOLDER / name / "summary.json").read_text())
    logs = (FOLDER / f"{name}.0.log").read_text()
    print(f"{name}: finished with JAX {summary['provenance']['jax']}")
    check(f"{name}: the end is saved", summary["steps"] == STEPS)
    segments = [(x["first_step"], x["last_step"]) for x in summary["segments"]]
    check(f"{name}: segments {segments}", segments == [(1, saved), (saved + 1, STEPS)])
    steps = [line["step"] for line in lines(name) if "loss" in line]
    # A MaxText that is stopped does not log its last step or two.
    missing = {*range(1, STEPS + 1)} - {*steps}
    unique = len({*steps}) == len(steps)
    check(f"{name}: each step once, but {missing}", unique and missing <= {saved - 1, saved})
    losses = [line["validation_loss"] for line in lines(name) if "validation_loss" in line]
    print(f"{name}: loss {summary['loss']}, tokens/s {summary['tokens_per_second']}, {losses=}")
    expected = STEPS // EVALUATE if "eval_interval" in options.get("settings", "") else 0
    check(f"{name}: {len(losses)} evaluations", abs(len(losses) - expected) <= 1)
    print(f"{name}: MaxText was started {logs.count('Num_devices')} times", flush=True)


def check(what: str, holds: bool) -> bool:
    """Print what was checked, and remember it if it does not hold."""
    print("ok  " if holds else "FAIL", what, flush=True)
    if not holds:
        failed.append(what)
    return holds


PYTHON, FOLDER = sys.argv[1], Path(sys.argv[2]).absolute()
failed: list[str] = []
FOLDER.mkdir(parents=True)
HOME = with_gloo(Path(sys.argv[3]).absolute()) if sys.argv[3:] else Path("/nowhere")
words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "dark", "woods"]
texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 60)) for i in range(1, 800)]
for part, some in (("train", texts[:700]), ("eval", texts[700:])):
    rows = [json.dumps({"text": text}) for text in some]
    (FOLDER / f"{part}.jsonl").write_text("\n".join(rows))
(FOLDER / "text").write_text("\n".join(texts))
subprocess.run([PYTHON, "-c", TOKENIZER, FOLDER / "text", FOLDER / "tokenizer"], check=True)
small = {"max-target-length": 64, "per-device-batch-size": 1}
data = f"hf_path=json hf_train_files={FOLDER}/train.jsonl hf_eval_files={FOLDER}/eval.jsonl "
data += f"tokenizer_path={FOLDER}/tokenizer "
if not HOME.exists():
    data += "tokenizer_type=huggingface "
data += f"eval_interval={EVALUATE} eval_steps=2"
options = small | {"dataset-type": "hf", "checkpoint-period": PERIOD, "settings": data}
train("one", 1, **options)
train("two", 2, **small, **{"checkpoint-period": STEPS - 1})
sys.exit(f"{len(failed)} checks failed" if failed else None)
