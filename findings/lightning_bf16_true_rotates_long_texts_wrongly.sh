#!/usr/bin/env bash
# lightning 2.6.6 with transformers 5.23.0: precision="bf16-true" casts a model by module.to(torch.bfloat16), and that rounds its
# buffers too. One of them is inv_freq, the frequencies of rotary position embeddings, which from_pretrained(dtype=bfloat16)
# keeps in fp32. A frequency that is off by 1/500 is off by a whole radian at token 500 and by eight at token 4096. The longer
# a text is, the further its logits are from the model's: the same bf16 weights are within a few percent as transformers
# loads them, at any length. inv_freq is in no checkpoint, so whoever loads what was trained has another model than the one
# that was trained and validated. One would have sworn that both are "the model in bf16". model.bfloat16() and model.half()
# do the same without lightning.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.23.0" "lightning==2.6.6"
cat >check.py <<'PY'
import logging

import lightning
import torch
import transformers
from lightning.pytorch import LightningModule, Trainer
from transformers import AutoModelForCausalLM, LlamaConfig

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
LENGTHS = (64, 512, 4096)
LAST = 32  # tokens of a text whose logits are compared

torch.manual_seed(0)
AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=8192, initializer_range=0.3,  # attention that looks at places
    )
).save_pretrained("model")
TEXTS = [torch.randint(0, 100, (length,)) for length in LENGTHS]


class Reader(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)

    def predict_step(self, text, index):
        return self.model.dtype, self.model.model.rotary_emb.inv_freq.dtype, logits(self.model, text[0])


@torch.no_grad()
def logits(model, text):
    return model(text[None]).logits[0, -LAST:].float()


def by_lightning(precision):
    trainer = Trainer(
        precision=precision, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )
    return trainer.predict(Reader(), torch.utils.data.DataLoader(TEXTS))


def distance(one, other):
    return float((one - other).abs().mean() / other.abs().mean())


print("torch", torch.__version__, "transformers", transformers.__version__, "lightning", lightning.__version__)
whole = [values for _, _, values in by_lightning("32-true")]
loaded = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
as_loaded = [distance(logits(loaded, text), exact) for text, exact in zip(TEXTS, whole)]
cast = by_lightning("bf16-true")
as_cast = [distance(values, exact) for (_, _, values), exact in zip(cast, whole)]
frequencies = loaded.model.rotary_emb.inv_freq.dtype, cast[0][1]
print("weights:", loaded.dtype, "and", cast[0][0], "- inv_freq:", *frequencies)
for length, one, other in zip(LENGTHS, as_loaded, as_cast):
    print(f"{length} tokens: logits are off by {one:.1%} from from_pretrained(dtype=bfloat16), by {other:.1%} from bf16-true")
assert loaded.dtype == cast[0][0] == torch.bfloat16
assert frequencies == (torch.float32, torch.bfloat16)
assert max(as_loaded) < 0.06
assert as_cast[0] < 0.06 < 2 * as_cast[0] < as_cast[1] < as_cast[2]
assert as_cast[2] > 10 * as_loaded[2]
PY
environment/bin/python -W ignore check.py
echo "as described: bf16-true rounds the frequencies of position embeddings, and long texts are read as by another model"
