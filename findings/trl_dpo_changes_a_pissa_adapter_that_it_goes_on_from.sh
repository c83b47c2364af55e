#!/usr/bin/env bash
# trl 1.16.0 with peft 0.21.2: adapters that begin with init_lora_weights="pissa" or "olora" take their start out of the base
# model's weights, each time that one is added. DPOTrainer's reference of an adapter that was trained before is a second
# adapter of the same configuration: adding it takes that part out of the weights once more, and the policy, which shares them,
# is no longer the model that was handed over. Loss log 2 and margins 0 look as they should, since both sides are wrong alike.
# GRPO and KTO make their reference in the same way. With peft_config, where the adapter is new, the reference is the model
# with its adapter off, which is not the model that training starts from: the first loss is not log 2. One would have sworn that
# DPO starts from the model that it is given, and that a reference changes nothing. Plain LoRA does so.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile \
    "torch==2.13.0" "transformers==5.23.0" "peft==0.21.2" "trl==1.16.0" "datasets==5.2.0" "accelerate==1.15.0"
cat >check.py <<'PY'
import math

import datasets
import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()

WORDS = [f"w{place}" for place in range(57)] + ["<pad>", "<end>", "<unknown>"]
words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unknown>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
)
PAIRS = Dataset.from_list(
    [{"prompt": f"w{n} w{n + 1} ", "chosen": f"w{n + 2} w{n + 3}", "rejected": f"w{n + 4} w{n + 5}"} for n in range(8)]
)
TEXT = torch.arange(10)[None]

torch.manual_seed(0)
AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=60, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, initializer_range=0.1, pad_token_id=57, eos_token_id=58, bos_token_id=None,
    )
).save_pretrained("base")


def base():
    return AutoModelForCausalLM.from_pretrained("base")


def lora(start):
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    return LoraConfig(r=8, init_lora_weights=start, target_modules=targets, task_type="CAUSAL_LM")


@torch.no_grad()
def logits(model):
    return model.eval()(TEXT).logits


def save_trained(start):
    """An adapter that has moved, in the folder `adapter`; its model's logits."""
    model = get_peft_model(base(), lora(start))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained("adapter")
    return logits(model)


def dpo(model, config=None):
    arguments = DPOConfig(
        "out", max_steps=1, logging_steps=1, learning_rate=0.0, per_device_train_batch_size=8, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )
    return DPOTrainer(model, args=arguments, train_dataset=PAIRS, processing_class=TOKENIZER, peft_config=config)


def first_step(trainer):
    trainer.train()
    step = trainer.state.log_history[0]
    return step["loss"], step["rewards/margins"]


print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__, "trl", trl.__version__)
for start in (True, "pissa", "olora"):
    trained = save_trained(start)
    loaded = PeftModel.from_pretrained(base(), "adapter", is_trainable=True)
    reread = float((logits(loaded) - trained).abs().max())
    trainer = dpo(loaded)
    moved = float((logits(trainer.model) - trained).abs().max())
    loss, margin = first_step(trainer)
    new_loss, _ = first_step(dpo(base(), lora(start)))
    print(f"init_lora_weights={start}: loaded, logits are off by {reread:.1e}; inside DPOTrainer by {moved:.1e}")
    print(f"    first loss {loss:.4f}, margin {margin:.4f}; of a new adapter the first loss is {new_loss:.4f}")
    assert reread < 1e-4
    assert abs(loss - math.log(2)) < 1e-5 and abs(margin) < 1e-5
    assert moved < 1e-4 if start is True else moved > 0.5
    assert (abs(new_loss - math.log(2)) < 1e-5) == (start is True)
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py | grep -v "^{"
echo "as described: a PiSSA or OLoRA adapter that DPO goes on from is another model, and looks right"
