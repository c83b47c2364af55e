#!/usr/bin/env bash
# transformers 5.23.0: two rows packed into one, with position_ids that start again at the second, are kept apart by the
# attention mask only if the call carries no attention_mask AND use_cache=False. By default use_cache is True, and with it
# the second row reads the first, in training and in evaluation; so it does if an attention_mask of ones is passed, as
# collators do. Nothing is said. One would have sworn that the same position_ids mean the same rows in each of the calls:
# neither a cache that is empty nor a mask that masks nothing takes part in the mathematics.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.23.0"
cat >check.py <<'PY'
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.1,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = AutoModelForCausalLM.from_config(config)
first, second = torch.arange(3, 11)[None], torch.arange(20, 30)[None]
packed = torch.cat([first, second], dim=1)
positions = torch.cat([torch.arange(8), torch.arange(10)])[None]
ones = torch.ones_like(packed)
CALLS = {
    "the default": {},
    "use_cache=False": {"use_cache": False},
    "a mask of ones": {"attention_mask": ones},
    "a mask of ones, use_cache=False": {"attention_mask": ones, "use_cache": False},
}


def apart(training, **more):
    model.train(training)
    with torch.no_grad():
        alone = model(second).logits
        beside = model(packed, position_ids=positions, **more).logits[:, first.shape[1] :]
    return float((alone - beside).abs().max())


print("torch", torch.__version__, "transformers", transformers.__version__, model.config._attn_implementation)
for name, more in CALLS.items():
    distances = [apart(training, **more) for training in (True, False)]
    print(f"{name}: the second row's logits are off by {distances[0]:.1e} (training), {distances[1]:.1e} (evaluation)")
    assert all((distance < 1e-5) == (name == "use_cache=False") for distance in distances), name
PY
environment/bin/python -W ignore check.py
echo "as described: packed rows are kept apart without a mask and without a cache alone"
