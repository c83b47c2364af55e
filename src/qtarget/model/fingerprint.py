"""Which folder a model name stands for, and what its files are, whatever they are called."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

from qtarget.errors import QTargetError

PEFT_CONFIG = "adapter_config.json"
NAMED = 3
"""Checkpoints that a message names, the latest ones."""
EXPECTED = (
    "Name a folder with config.json (as save_pretrained writes), a run's folder, a folder with one finished run, a "
    "GGUF file, or a model of the hub, OWNER/NAME"
)
OUTPUTS = ("outputs",)
"""Where runs lie unless output_dir says otherwise: a name below it is never asked of the hub."""


def names_a_folder(name: str) -> bool:
    """A path, rather than the name of a hub model (OWNER/NAME): it exists here, or is written as only a path is."""
    path = Path(name)
    is_written_so = (
        name.startswith((".", "/", "~")) or len(path.parts) > 2 or (name.endswith("/") and len(path.parts) == 1)
    )
    return is_written_so or path.exists() or path.parts[0] in OUTPUTS


def model_folder(name: str) -> Path:
    """The model in a folder: the folder itself, a run's `checkpoint`, or that of the only finished run below it.

    Raises QTargetError where there is none, with what is there and what to do.
    """
    path = Path(name).expanduser()
    for folder in (path, path / "checkpoint"):
        if (folder / "config.json").is_file():
            return folder
    runs = [run.parent for run in sorted(path.glob("*/result.json")) if _has_model(run)]
    if len(runs) == 1:
        return runs[0] / "checkpoint"
    if runs:
        raise QTargetError(f"{path} holds {len(runs)} finished runs; name one: {', '.join(map(str, runs))}")
    if (path / PEFT_CONFIG).is_file():
        raise QTargetError(f"{path} is an adapter of peft, not a model by itself: {_to_merge(path)}")
    if saved := sorted(path.glob("checkpoint-*"), key=_step):
        names = ", ".join(map(str, saved[-NAMED:]))
        raise QTargetError(
            f"{path} holds {len(saved)} checkpoints of a Trainer and no model: name one of them ({names})"
        )
    raise QTargetError(f"no model at {name}: {_what_is_there(path)}. {EXPECTED}")


def _what_is_there(path: Path) -> str:
    if not path.exists():
        return "there is no such folder" if path.is_absolute() else f"there is no such folder below {Path.cwd()}"
    if not path.is_dir():
        return "it is a file"
    names = sorted(part.name for part in path.iterdir())
    shown = ", ".join(names[:NAMED]) + ", …" * (len(names) > NAMED)
    return f"the folder holds {shown or 'nothing'}, and no config.json"


def _to_merge(adapter: Path) -> str:
    """What to do with a folder that peft has saved. Raises nothing, whatever is in it."""
    run = adapter.parent
    if (run / "checkpoint" / "config.json").is_file():
        return f"name {run}, whose checkpoint/ has it merged"
    try:
        base = json.loads((adapter / PEFT_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    held, merged = json.dumps(str(adapter)), json.dumps(f"{adapter}-merged")
    tokenizer = held if has_tokenizer or not base else json.dumps(base)
    code = (
        f'import peft, transformers; model = peft.AutoPeftModelForCausalLM.from_pretrained({held}, dtype="float32"); '
        f"model.merge_and_unload().save_pretrained({merged}); "
        f"transformers.AutoTokenizer.from_pretrained({tokenizer}).save_pretrained({merged})"
    )
    of = f" into {base}" if base else ""
    return f"merge it{of} and name the folder {adapter}-merged. {shlex.join(['python', '-c', code])}"


def _step(checkpoint: Path) -> int:
    return int("".join(re.findall(r"\d+$", checkpoint.name)) or 0)


def _has_model(result: Path) -> bool:
    finished = json.loads(result.read_text()).get("status") == "finished"
    return finished and (result.parent / "checkpoint" / "config.json").is_file()


BLOCK = 1 << 16


def fingerprint(name: str) -> str:
    """A digest of the content of a local file or model (its config and weights); any other name as it is."""
    try:
        folder = model_folder(name) if names_a_folder(name) and Path(name).is_dir() else None
    except QTargetError:
        return name  # the job itself says what is missing, and how to get it
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder else []
    files = [folder / "config.json", *weights] if folder else [Path(name)] if Path(name).is_file() else []
    return ", ".join(map(sampled_digest, files)) or name


def sampled_digest(path: Path) -> str:
    """SHA-256 of a file's size and of blocks of 64 KiB: up to 65 spread over it, and the first of every tensor."""
    size = path.stat().st_size
    starts = {*range(0, size, max(BLOCK, size // 64)), *_tensor_starts(path)}
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in sorted(starts):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _tensor_starts(path: Path) -> list[int]:
    """Where the tensors of a safetensors file begin: an adapter that was merged may have moved only a few of them."""
    if path.suffix != ".safetensors":
        return []
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
        except ValueError:
            return []  # no safetensors file after all: whoever opens it says so
    offsets = (facts["data_offsets"][0] for name, facts in header.items() if name != "__metadata__")
    return [8 + length + offset for offset in offsets]
