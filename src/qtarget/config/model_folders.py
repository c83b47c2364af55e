"""Whether models that are named by a folder are there: told before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtarget.config.names import model_nodes
from qtarget.model.fingerprint import model_folder, names_a_folder
from qtarget.model.gguf_file import check as check_gguf
from qtarget.model.gguf_file import is_gguf


def check_folders(config: Mapping[str, Any]) -> None:
    """Raise QTargetError for the first model, of the policy or of a reference, that is a folder or a file without one.

    config: composed, as plain data.
    """
    for node in model_nodes(config):
        name = node.get("name")
        if isinstance(name, str) and is_gguf(name):
            check_gguf(name)
        elif isinstance(name, str) and name not in ("", "???") and names_a_folder(name):
            model_folder(name)
