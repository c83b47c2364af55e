#!/usr/bin/env bash
# transformers 5.23.0: a model's input embedding is made with padding_idx=config.pad_token_id, and torch gives the row of
# padding_idx no gradient. Where the config pads with the end token (many checkpoints do, as their tokenizers have no
# other), the end of a turn, which is an input of every later turn, has an input embedding that full fine-tuning never
# changes, and in a model made from a config it is zero for good. One would have sworn that padding is a matter of the
# attention mask and the labels: with pad_token_id=0, the same rows, which hold no padding, train that embedding.
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
END = 2
TURNS = torch.tensor([[1, 5, 6, END, 7, 8, END, 9, 10, END]])  # no padding in it


def trained(pad):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, bos_token_id=1, eos_token_id=END, pad_token_id=pad, tie_word_embeddings=False,
        )
    )
    rows = model.get_input_embeddings().weight
    before = rows.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        model(TURNS, labels=TURNS, attention_mask=torch.ones_like(TURNS)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (rows.detach() - before).norm(dim=1)
    return before[END].norm(), moved[END], moved[5]


print("torch", torch.__version__, "transformers", transformers.__version__)
for pad in (0, END):
    start, end, other = map(float, trained(pad))
    print(f"pad_token_id={pad}: the end token's embedding starts at norm {start:.3f}, 20 steps move it by {end:.4f}")
    print(f"    another token's moves by {other:.4f}")
    assert other > 0.01
    assert (end > 0.01) == (start > 0) == (pad != END)
PY
environment/bin/python -W ignore check.py
echo "as described: an end token that is the padding token too has an input embedding without a gradient"
