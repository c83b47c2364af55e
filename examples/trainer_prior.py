"""transformers' own Trainer, without TRL, and a design that stays near the model that training started from.

python examples/trainer_prior.py       # a tiny random model, seconds on a CPU
"""

import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

import qtarget
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer


class QTargetTrainer(qtarget.QTargetTrainerMixin, Trainer):
    pass


# With a pretrained model: AutoTokenizer.from_pretrained(NAME), AutoModelForCausalLM.from_pretrained(NAME).
tokenizer = tiny_tokenizer()
model = tiny_model(tiny_config(len(tokenizer)))


def row(a: int, b: int) -> dict[str, list[int]]:
    """The prompt is context, the answer is supervised; labels stand where their tokens do."""
    prompt, answer = (tokenizer.encode(text) for text in (f"{a}+{b}=", f"{a + b}<|end|>"))
    return {"input_ids": prompt + answer, "labels": [qtarget.IGNORE] * len(prompt) + answer}


trainer = QTargetTrainer(
    model,
    TrainingArguments(
        output_dir="trainer_prior",
        max_steps=30,
        learning_rate=1e-2,
        logging_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=[row(a, b) for a in range(10, 26) for b in range(20, 28)],
    data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=qtarget.IGNORE),
    processing_class=tokenizer,
    design="sft_kl",  # SFT + λ·KL(prior ‖ p)
    references={"prior": "frozen"},  # a copy of the model as it is now
)
trainer.train()
trainer.save_model()
for line in trainer.state.log_history[:-1]:
    print(f"step {line['step']:2d}   nll {line['nll']:.3f}   KL to the prior {line['target/kl_prior']:.3f}")
