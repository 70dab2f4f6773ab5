"""Two public trainers under `program: command`, each tried by `jaxway check-program`.

Run from the checkout, on a CPU: .venv/bin/python benchmarks/trainers.py PYTHON FOLDER

PYTHON has torch, transformers with accelerate, and lightning. FOLDER gets the programs, which only
start these libraries, and the logs.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRANSFORMERS = """
import sys
import torch, transformers
from transformers.trainer_utils import get_last_checkpoint

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, i):
        row = (torch.arange(32) * (i + 1)) % 64
        return {"input_ids": row, "labels": row}

sizes = dict(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)
sizes |= dict(bos_token_id=0, eos_token_id=0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
options = transformers.HfArgumentParser(transformers.TrainingArguments)
arguments, = options.parse_args_into_dataclasses()
trainer = transformers.Trainer(model, arguments, train_dataset=Rows())
trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
"""
LIGHTNING = """
import sys
import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

save = ModelCheckpoint(sys.argv[1], every_n_train_steps=20, save_top_k=-1, save_last=True)
trainer = lightning.Trainer(accelerator="cpu", max_epochs=200, callbacks=save, logger=False)
trainer.fit(BoringModel(), datamodule=BoringDataModule(), ckpt_path="last")
"""
CONFIG = """
benchmark: {}
train:
  transformers:
    program: command
    command: >-
      PYTHON transformers_trainer.py --output_dir $JAXWAY_STATE/run --save_steps 20
      --save_total_limit 2 --max_steps 5000 --use_cpu true --report_to none
    checkpoints: run/checkpoint-{step}/trainer_state.json
  lightning:
    program: command
    command: PYTHON lightning_trainer.py $JAXWAY_STATE/run
    checkpoints: run/epoch=*-step={step}.ckpt
"""

python, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
folder.mkdir(parents=True)
(folder / "transformers_trainer.py").write_text(TRANSFORMERS)
(folder / "lightning_trainer.py").write_text(LIGHTNING)
(folder / "config.yaml").write_text(CONFIG.replace("PYTHON", str(python)))
failed = []
for name in ("transformers", "lightning"):
    print(name, flush=True)
    words = [sys.executable, "-m", "jaxway", "check-program", name, "--configfile=config.yaml"]
    words += [f"--profile={ROOT}/profiles/local"]
    if subprocess.run(words, cwd=folder).returncode:
        failed.append(name)
    (folder / "logs/check_program.log").rename(folder / f"{name}.log")
sys.exit(f"failed: {failed}" if failed else None)
