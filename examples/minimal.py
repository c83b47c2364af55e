"""Fine-tuning with a target design and no framework: a model, a batch, a design, the loss, an optimizer.

python examples/minimal.py
"""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qtarget

IGNORE = qtarget.IGNORE  # the label of a token that is context

torch.manual_seed(0)

# A model. With a pretrained one: AutoModelForCausalLM.from_pretrained(NAME).
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
)
policy = LlamaForCausalLM(config)
prior = copy.deepcopy(policy).eval().requires_grad_(False)  # what the model knew before

# A batch: prompts are context, answers are supervised. The label of a position is the token behind it.
rows = [(f"{a}+{b}=".encode(), f"{a + b}\n".encode()) for a in range(10, 18) for b in range(20, 28)]
ids = torch.full((len(rows), 16), 10)
labels = torch.full((len(rows), 16), IGNORE)
for row, (prompt, answer) in enumerate(rows):
    text = torch.tensor(list(prompt + answer))
    ids[row, : len(text)] = text
    labels[row, len(prompt) - 1 : len(text) - 1] = text[len(prompt) :]

# A design: Q = γ·δ(y) + (1 − γ)·p with γ = 1 − prior(y): learn what the prior does not know.
design = qtarget.load_design("one_minus_prior")

optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
for step in range(61):
    hidden = policy.model(ids).last_hidden_state  # [B, T, D]
    with torch.no_grad():
        logp = prior(ids).logits.float().log_softmax(-1)  # [B, T, V]
    references = {"prior": qtarget.Reference.full(logp)}
    out = qtarget.linear_loss(hidden, policy.lm_head.weight, labels, design, references=references)
    loss = out.total / len(out.nll)  # one mean over the N supervised tokens
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step:2d}   loss {loss.item():.3f}   nll {out.nll.mean():.3f}   trust {out.trust.mean():.3f}")
