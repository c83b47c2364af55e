#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: apply_chat_template(return_assistant_tokens_mask=True) asks the tokenizer which token
# holds the first and the last character of a {% generation %} block. A byte-level tokenizer with trim_offsets=True, the
# library's default, leaves spaces out of its tokens' places, so no token holds a space. Then
#   - a block that ends with a space has no last token, and its mask goes on to the end of the conversation: the turns of
#     the user behind it are taught as the assistant's;
#   - a block that begins with a space has no first token, and it and all blocks behind it are left out: nothing is taught.
# Neither is said. The ids are the same for trim_offsets=True and False; one would have sworn that the masks are, too.
# assistant_only_loss of TRL trains by this mask.
#
# The tokenizer is trained here, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10
# or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "transformers==5.23.0" "tokenizers==0.23.3" "jinja2==3.1.6"
cat >check.py <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
)
SPACED = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %} {{ m.content }}<|end|>"
    "{% endgeneration %}{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
QUESTION, SECRET = "How are you?", "Why not better?"


def turns(first_answer):
    contents = [("user", QUESTION), ("assistant", first_answer), ("user", SECRET), ("assistant", "It rains.")]
    return [{"role": role, "content": content} for role, content in contents]


def tokenizer(template, trim_offsets):
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|user|>", "<|assistant|>", "<|end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    model.train_from_iterator(["user: How are you? assistant: I am fine."] * 3, trainer)
    model.post_processor = processors.ByteLevel() if trim_offsets else processors.ByteLevel(trim_offsets=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = template
    return wrapped


def taught(template, messages):
    """What the mask covers with the library's default and with trim_offsets=False."""
    ids, texts = [], []
    for trim_offsets in (True, False):
        own = tokenizer(template, trim_offsets)
        row = own.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids.append(row["input_ids"])
        texts.append(own.decode([token for token, one in zip(row["input_ids"], row["assistant_masks"]) if one]))
    assert ids[0] == ids[1]
    return texts


print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
plain = taught(MARKED, turns("I am fine."))
trailing = taught(MARKED, turns("I am fine. "))
leading = taught(SPACED, turns("I am fine."))
for name, texts in (("no space at an edge", plain), ("an answer ends with one", trailing), ("a block begins with one", leading)):
    print(f"{name}:\n    trimmed offsets {texts[0]!r}\n    whole offsets   {texts[1]!r}")
assert plain == ["I am fine.It rains."] * 2
assert trailing[1] == "I am fine. It rains."
assert SECRET in trailing[0]
assert leading == ["", " I am fine.<|end|> It rains.<|end|>"]
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py 2>&1 | grep -v "PyTorch was not found"
echo "as described: a space at the edge of an answer gives the mask the user's turns, or nothing at all"
