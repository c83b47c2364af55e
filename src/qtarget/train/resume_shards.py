"""Tensors of a run in safetensors files, each rank's pieces in one of its own, for any number of ranks to read.

    rank-0-of-2.safetensors    the header's metadata say where in the whole tensor each piece begins

The files are those of `torch.distributed.checkpoint.HuggingFaceStorageWriter` with `save_distributed=True`, and are
read with its `HuggingFaceStorageReader`, which unpickles nothing: safetensors and JSON. (The plain `FileSystemReader`
of torch 2.13 unpickles a file `.metadata`.) Torch's own writer isn't used: every save is a collective call there, and
a part that is written beside the training can't wait for other ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.tensor import DTensor

from qtarget.files import settle

SUFFIX = ".safetensors"
SHARDING, VERSION = "DCP_SHARDING_INFO", "DCP_VERSION"
"""Keys of the header's metadata, as torch 2.9 to 2.13 read them."""


@dataclass(frozen=True)
class TensorPiece:
    """A block of a tensor, and where in the whole it begins."""

    values: Tensor
    offsets: tuple[int, ...]


def own_pieces(tensors: Mapping[str, Tensor], rank: int, world: int) -> dict[str, TensorPiece]:
    """A copy on the CPU of what this rank writes: its shard of each sharded tensor, every world-th of the others."""
    pieces = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            if local.numel():  # of few rows, some ranks have none
                (chunk,) = tensor.__create_chunk_list__()
                pieces[name] = TensorPiece(_copy(local), tuple(chunk.offsets))
        elif number % world == rank:
            pieces[name] = TensorPiece(_copy(tensor), (0,) * tensor.ndim)
    return pieces


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def write_pieces(pieces: Mapping[str, TensorPiece], path: Path) -> None:
    """To disk."""
    offsets = {name: {"saved_offsets": list(piece.offsets)} for name, piece in pieces.items()}
    metadata = {"format": "pt", VERSION: "1.0", SHARDING: json.dumps(offsets)}
    save_file({name: piece.values for name, piece in pieces.items()}, path, metadata)
    settle(path)


def saved_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name → shape in one piece, and dtype, of the tensors that the files of a folder hold."""
    held: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (tensor.size, tensor.properties.dtype) for name, tensor in held.items()}


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, whole or sharded in any way, from the pieces that any number of ranks have written.

    Each rank reads its own part; no collective call. Raises ValueError for tensors of other shapes, RuntimeError where
    one is not in the files.
    """
    reader, state = HuggingFaceStorageReader(str(folder)), dict(tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # said of no_dist, too
        dcp.load(state, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
