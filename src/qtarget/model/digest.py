"""What a model or a file is, whatever it is called."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qtarget.errors import QTargetError
from qtarget.model.folders import model_folder, names_a_folder


def fingerprint(name: str) -> str:
    """What a name stands for: the content of a local file or model; the name itself for anything else."""
    try:
        folder = model_folder(name) if names_a_folder(name) and Path(name).is_dir() else None
    except QTargetError:
        return name  # the job itself says what is missing, and how to get it
    files = sorted(folder.glob("*.safetensors")) if folder else [Path(name)] if Path(name).is_file() else []
    return ", ".join(map(sampled_digest, files)) or name


def sampled_digest(path: Path) -> str:
    """SHA-256 of a file's size and of up to 65 blocks of 64 KiB spread over it: training moves every weight."""
    size, block = path.stat().st_size, 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(block, size // 64)):
            file.seek(start)
            digest.update(file.read(block))
    return digest.hexdigest()
