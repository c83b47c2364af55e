#!/usr/bin/env bash
# transformers 5.23.0 (tokenizers 0.23.3): one call of a tokenizer with truncation=True, max_length=N leaves that setting in
# it, and save_pretrained writes it to tokenizer.json. What reads that file with the library tokenizers itself, as servers
# and engines in other languages do, cuts every text to N tokens, and pads it if the call did. AutoTokenizer of the same
# folder sets both anew at each call and shows nothing of it. One would have sworn that arguments of a call concern that call.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "transformers==5.23.0" "tokenizers==0.23.3"
cat >check.py <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = "the answer to this question is a number".split()


def fresh():
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<pad>", *WORDS])}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")


def lengths(folder):
    text = " ".join(WORDS)
    served = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids
    return len(served), len(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])


print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
unused, used = fresh(), fresh()
used(["the answer"], truncation=True, max_length=3)
unused.save_pretrained("unused")
used.save_pretrained("used")
for folder in ("unused", "used"):
    served, auto = lengths(folder)
    print(f"{folder}: of {len(WORDS)} words, tokenizers reads {served}, AutoTokenizer {auto}")
    assert auto == len(WORDS)
    assert served == (3 if folder == "used" else len(WORDS))
PY
environment/bin/python -W ignore check.py
echo "as described: tokenizer.json keeps the truncation of the last call"
