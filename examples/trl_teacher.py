"""TRL's SFTTrainer with a teacher: on wrong rows it pulls less, and where the mass goes instead is the teacher's say.

python examples/trl_teacher.py                            # tiny models, seconds on a CPU
python examples/trl_teacher.py MODEL TEACHER rows.jsonl   # hub ids or folders that share a tokenizer
"""

import sys

import torch
from datasets import Dataset, load_dataset
from trl import SFTConfig, SFTTrainer

import qtarget
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.trl import QTargetSFTTrainer


def arguments(folder: str) -> SFTConfig:
    """packing=True, completion_only_loss, gradient_accumulation_steps and the rest of TRL's work as ever."""
    return SFTConfig(
        output_dir=folder,
        max_steps=30,
        learning_rate=1e-2,
        logging_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )


if len(sys.argv) > 3:
    model, teacher, tokenizer = sys.argv[1], sys.argv[2], None
    rows = load_dataset("json", data_files=sys.argv[3], split="train")
else:
    tokenizer = tiny_tokenizer()
    model, teacher = (tiny_model(tiny_config(len(tokenizer))) for _ in range(2))
    sums = [(a, b) for a in range(10, 26) for b in range(20, 28)]
    clean = Dataset.from_list([{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in sums])
    rows = Dataset.from_list([{"prompt": f"{a}+{b}=", "completion": str(a + b + b % 2)} for a, b in sums])
    SFTTrainer(teacher, arguments("trl_teacher/teacher"), train_dataset=clean, processing_class=tokenizer).train()

trainer = QTargetSFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=rows,
    args=arguments("trl_teacher/student"),
    # Q = p(y)·δ(y) + (1 − p(y))·π̃ with π̃ ∝ p^0.75·teacher^0.25
    design=qtarget.load_design("target_sft", **{"residual.eta": 0.25}),
    references={"teacher": teacher},
)
trainer.train()
trainer.save_model()
for line in trainer.state.log_history[:-1]:
    print(f"step {line['step']:2d}   nll {line['nll']:.3f}   trust {line['target/trust']:.3f}")
