"""Calls of tools in the form that a chat template reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qtarget.data.example import Message

_TEXT = '{"a":  1}'
_OBJECT = {"a": 1}


@dataclass(frozen=True)
class Calls:
    """text: whether the template writes arguments that are JSON text as they stand (Qwen3, DeepSeek-V3), and has no
    form of its own for objects (Gemma 4: {on:true}). objects: whether it writes objects as JSON or in such a form;
    DeepSeek-V3 fails at them, and a plain {{ arguments }} writes them as Python does, {'on': True}.
    """

    text: bool
    objects: bool

    def given(self, call: Any) -> Any:
        """A call as {"type": "function", "function": {"name", "arguments"}}; keys that are there keep their order."""
        if not isinstance(call, Mapping):
            return call
        function = call.get("function", {key: call[key] for key in ("name", "arguments") if key in call})
        if isinstance(function, Mapping) and "arguments" in function:
            function = {**function, "arguments": self._arguments(function["arguments"])}
        rest = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        return {**({} if "type" in rest else {"type": "function"}), **rest, "function": function}

    def _arguments(self, arguments: Any) -> Any:
        if isinstance(arguments, str) and not self.text:
            return _parsed(arguments)
        if isinstance(arguments, Mapping) and not self.objects:
            return json.dumps(arguments, ensure_ascii=False)
        return arguments


def read_calls(written: Callable[[Message], str]) -> Calls:
    """written: what the template makes of a conversation that ends with a message; "" where it refuses."""
    text, objects = (written(_calling(arguments)) for arguments in (_TEXT, _OBJECT))
    as_text = _TEXT in text
    as_objects = not as_text or (bool(objects) and repr(_OBJECT) not in objects)
    is_json = any(form in objects for form in (json.dumps(_OBJECT), json.dumps(_OBJECT, separators=(",", ":"))))
    return Calls(text=as_text and (is_json or not as_objects), objects=as_objects)


def _calling(arguments: Any) -> Message:
    call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
    return value if isinstance(value, dict) else arguments
