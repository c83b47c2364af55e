#!/usr/bin/env bash
# transformers 5.23.0: a model with rope_type "longrope" (Phi-3.5, Phi-4-mini) or "dynamic" gives a short row other
# logits when a longer row stands beside it in the batch, padded and masked as usual. Its rotary factors are chosen
# once for the whole batch, from the largest position in it. With rope_type "default" a row's logits are its own.
# So scores of a data set depend on how it was batched, and a batch in which rows of unequal length are generated is not
# the rows generated one by one.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet "torch==2.13.0" "transformers==5.23.0"
cat >rows.py <<'PY'
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

transformers.logging.set_verbosity_error()
SIZES = dict(vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
SHORT, LONG = list(range(3, 13)), list(range(3, 43))


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 16}
CONFIGS = {
    "default": LlamaConfig(max_position_embeddings=64, rope_parameters=rope("default"), **SIZES, **SPECIAL),
    "dynamic": LlamaConfig(max_position_embeddings=16, rope_parameters=rope("dynamic", factor=4.0), **SIZES, **SPECIAL),
    "longrope": Phi3Config(
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters=rope("longrope", **factors),
        num_key_value_heads=4,
        **SIZES,
        **SPECIAL,
    ),
}


@torch.no_grad()
def first_row(model, rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return model(input_ids=ids, attention_mask=mask).logits[0, : len(rows[0])]


print("torch", torch.__version__, "transformers", transformers.__version__)
for kind, config in CONFIGS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    apart = float((first_row(model, [SHORT]) - first_row(model, [SHORT, LONG])).abs().max())
    print(f"{kind}: the short row's logits beside a longer row are off by at most {apart:.1e}")
    assert (apart < 1e-5) == (kind == "default"), kind
PY
environment/bin/python rows.py
echo "as described: rotary factors follow the longest row of a batch"
