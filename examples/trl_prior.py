"""TRL's SFTTrainer with LoRA and a design that looks at a prior: the model itself with its adapter switched off.

python examples/trl_prior.py                       # a tiny random model, seconds on a CPU
python examples/trl_prior.py MODEL rows.jsonl      # a hub id or folder, and rows {"prompt": …, "completion": …}
"""

import sys

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import SFTConfig

from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.trl import QTargetSFTTrainer

if len(sys.argv) > 2:
    model, tokenizer = sys.argv[1], None
    rows = load_dataset("json", data_files=sys.argv[2], split="train")
else:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(len(tokenizer)))
    sums = [(a, b) for a in range(10, 26) for b in range(20, 28)]
    rows = Dataset.from_list([{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in sums])

trainer = QTargetSFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=rows,
    args=SFTConfig(
        output_dir="trl_prior",
        max_steps=30,
        learning_rate=1e-2,
        logging_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    ),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    design="one_minus_prior",  # Q = γ·δ(y) + (1 − γ)·p with γ = 1 − prior(y): learn what the prior doesn't know
    references={"prior": "adapter_off"},
)
trainer.train()
trainer.save_model()
for line in trainer.state.log_history[:-1]:
    print(f"step {line['step']:2d}   nll {line['nll']:.3f}   γ {line['target/reliance']:.3f}")
