#!/usr/bin/env bash
# peft 0.21.2: init_lora_weights="pissa_niter_N" takes the leading part of each weight into the adapter by a random
# approximation, and leaves the rest in the base model. save_pretrained writes the adapter alone, and from_pretrained takes
# the leading part out of the base model anew, by another draw of torch's global generator. The loaded model is the trained
# one only where the generator happens to stand where it stood when the adapter was made: here it differs by more than
# training moved it, without a warning, and two loads in one process differ from each other. "pissa", without the
# approximation, and "olora", which change the base model too, load exactly. One would have sworn that a saved adapter and
# its base model are the trained model.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a
# package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "accelerate==1.15.0"
cat >check.py <<'PY'
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

torch.set_num_threads(1)
IDS = torch.arange(3, 19)[None]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SHAPE)).save_pretrained("base")


def base():
    return AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def trained(start):
    """(logits before training, after it); the adapter is saved."""
    torch.manual_seed(1)
    model = get_peft_model(base(), LoraConfig(r=4, init_lora_weights=start, target_modules=["q_proj", "v_proj"]))
    before = logits(model)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(3):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("adapter")
    return before, logits(model)


def loaded(seed):
    torch.manual_seed(seed)
    return logits(PeftModel.from_pretrained(base(), "adapter"))


def largest(difference):
    return difference.abs().max().item()


print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
off = {}
for start in ("pissa", "olora", "pissa_niter_4"):
    before, after = trained(start)
    off[start] = largest(loaded(2) - after)
    print(f"{start}: training moved the logits by {largest(after - before):.4f}, loading is off by {off[start]:.4f}")
print(f"two loads of the last differ by {largest(loaded(2) - loaded(3)):.4f}; at the seed of its making {largest(loaded(1) - after):.4f}")
assert off["pissa"] < 1e-5
assert off["olora"] < 1e-5
assert off["pissa_niter_4"] > largest(after - before) > 0.01
assert largest(loaded(2) - loaded(3)) > 0.01
assert largest(loaded(1) - after) < 1e-5
PY
environment/bin/python -W ignore check.py
echo "as described: an adapter that began with a random approximation loads as another model"
