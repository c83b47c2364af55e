"""Models in a GGUF file: converted once into a folder that transformers loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError
from qtarget.files import cache_dir, locked, replacing
from qtarget.model.fingerprint import sampled_digest

SUFFIX, MAGIC = ".gguf", b"GGUF"
PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", re.IGNORECASE)
SAME_MATRIX = 0.9
"""Cosine of two rows from which one is the other, rounded in another way: 0.95 and more at 3 bits a weight, about 0
between an embedding and an output layer that were trained apart."""
ROWS_COMPARED = 256
EACH_DIGIT = frozenset({"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"})
"""Values of tokenizer.ggml.pre by which llama.cpp cuts a text around every digit."""


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file, which need not be there."""
    return name.lower().endswith(SUFFIX)


def check(name: str) -> Path:
    """The file. Raises QTargetError where it is missing, no GGUF file, or one part of several. Loads nothing."""
    path = Path(name).expanduser()
    if not path.is_file():
        place = "" if path.is_absolute() else f" below {Path.cwd()}"
        raise QTargetError(f"no model at {name}: there is no such file{place}. Name a GGUF file, or a model's folder")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise QTargetError(f"{name} is no GGUF file: it doesn't begin with GGUF. Get it again, or name another")
    if PART.search(path.name):
        raise QTargetError(
            f"{name} is one part of a model: join the parts with llama.cpp's llama-gguf-split --merge FIRST_PART "
            "WHOLE.gguf, and name the whole"
        )
    return path


def converted(name: str) -> Path:
    """A folder that transformers loads, made at the first use of a file with this content.

    Raises QTargetError for what `check` refuses, and for a model that transformers can't read.
    """
    source = check(name)
    target = cache_dir() / "models" / f"{source.stem}-{sampled_digest(source)[:12]}"
    convert_once(source, target)
    return target


def convert_once(source: Path, target: Path) -> None:
    """Of several processes one converts, the others wait."""
    if (target / "config.json").is_file():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QTargetError(
            f"can't write the model cache {target.parent}: {error}; set QTARGET_CACHE to a folder"
        ) from error
    with locked(target.with_name(f"{target.name}.lock")):
        if not (target / "config.json").is_file():
            _convert(source, target)


def _convert(source: Path, target: Path) -> None:
    """Dequantise to fp32 safetensors in a temporary folder, then rename: a killed conversion leaves nothing behind."""
    print(f"First use: converting {source.name} to safetensors in {target} (once, about 20 seconds for 135M weights)")
    with replacing(target) as scratch:
        model, tokenizer = _read(source)
        _say_how_digits_are_cut(source, tokenizer)
        _tie_again(model)
        _forget_quantisation(model)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)


def _read(source: Path) -> tuple[Any, Any]:
    import torch  # heavy, and only the first use needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = {"gguf_file": source.name, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **file)
        return model, AutoTokenizer.from_pretrained(source.parent, **file)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise QTargetError(
            f"transformers can't read {source}: {str(error).splitlines()[0]}. Take the model's own folder of "
            "safetensors, or a GGUF file of another architecture or quantisation"
        ) from error


def _say_how_digits_are_cut(source: Path, tokenizer: Any) -> None:
    """transformers 5.23.0 cuts a text as GPT-2 does where it doesn't know the file's rule, and says nothing."""
    from gguf import GGUFReader  # one of transformers' own needs for these files

    field = GGUFReader(source).fields.get("tokenizer.ggml.pre")
    rule = field.contents() if field else None
    if rule in EACH_DIGIT and len(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12")) == 1:
        print(
            f"{source.name} has texts cut as {rule!r}, and transformers cuts them as GPT-2: several spaces before a "
            "digit become other tokens than in training. The model's own folder of safetensors has its own tokenizer"
        )


def _tie_again(model: Any) -> None:
    """One matrix for embedding and output layer, where the file holds it twice.

    Quantised files keep the output layer of a tied model apart, in more bits, and transformers then takes it for a
    matrix of its own. The better copy is kept.
    """
    from torch.nn.functional import cosine_similarity

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embedding.weight or head.weight.shape != embedding.weight.shape:
        return
    step = max(1, len(head.weight) // ROWS_COMPARED)
    alike = cosine_similarity(head.weight.detach()[::step], embedding.weight.detach()[::step], dim=-1)
    if float(alike.median()) < SAME_MATRIX:
        return
    embedding.weight = head.weight
    model.config.tie_word_embeddings = True
    model.tie_weights()


def _forget_quantisation(model: Any) -> None:
    """The weights are plain fp32 by now, but stay marked as quantised; save_pretrained and trainers refuse those."""
    del model.config.quantization_config
    del model.hf_quantizer
    model.is_quantized = False
