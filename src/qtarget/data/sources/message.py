"""Keys that rows and messages hold: those that are read, and what becomes of the others.

One message of a row: role and content, and what stands beside them.

ShareGPT's {"from": "human", "value": …}, with LLaMA-Factory's function_call and observation, is read as the same in
OpenAI's words, and so are OpenAI's own words up to 2023: function_call, and the role "function". The keys are those of
OpenAI's chat format (role, content, weight, tool_calls, tool_call_id, name),
reasoning_content as DeepSeek, Qwen and others write it, thinking as gpt-oss's template reads it, and `train`, Axolotl's
word for a weight of 0 or 1. A key that is null isn't there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qtarget.data.example import SPANS, Message, WeightedSpan
from qtarget.data.sources.conversation import encodable, kind, listed, text
from qtarget.data.sources.weights import span_weights, weight
from qtarget.data.sources.written import parsed
from qtarget.errors import QTargetError

UNKNOWN = (None, "error", "ignore")
INSTEAD = {
    "reasoning": "rename it reasoning_content",
    "reasoning_details": "write their text as reasoning_content",
    "thought": "rename it reasoning_content",
    "train_detail": "write span_weights, [[start, stop, weight], …], over the characters of the message",
    "loss_weight": "rename it weight",
    "loss_mask": "write weight, 0 or 1",
}
"""Keys of other formats → how the same is said here."""


@dataclass
class Keys:
    """The keys of one row, as they are met.

    unknown: what becomes of those that nobody reads. None: one of a message raises QTargetError, one of a row is named
    with its count of rows; "error": both raise; "ignore": both are named. unread: their names, such as "id" and
    "messages[].mood".
    """

    unknown: str | None = None
    unread: list[str] = field(default_factory=list)

    def row(self, row: Mapping[str, Any], known: Collection[str]) -> None:
        for key in _others(row, known):
            self._unread(key, f"the key {key!r}", known, raises=self.unknown == "error")

    def message(self, held: Mapping[str, Any], known: Collection[str], name: str) -> None:
        """name: where the message, or a part of it, stands: messages[3] or messages[3].content[0]."""
        for key in _others(held, known):
            self._unread(f"{_any(name)}.{key}", f"{name}.{key}", known, raises=self.unknown != "ignore")

    def note(self, name: str) -> None:
        """A key that means nothing where it stands."""
        self._unread(_any(name), name, (), raises=self.unknown == "error")

    def _unread(self, name: str, what: str, known: Collection[str], *, raises: bool) -> None:
        if raises:
            instead = INSTEAD.get(name.rpartition(".")[2], "remove it")
            read = f" (read are {', '.join(known)})" if known else ""
            raise QTargetError(
                f"{what} is not read{read}: {instead}, or set data.source.unknown=ignore to train without it"
            )
        if name not in self.unread:
            self.unread.append(name)


def is_nothing(value: object) -> bool:
    """Null, or empty text, list or object: nothing that could be lost."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def without_nulls(value: Any) -> Any:
    """A value of a typed table, where every object has all keys of its column: keys that are null aren't there."""
    if isinstance(value, Mapping):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    if isinstance(value, list):
        return [without_nulls(held) for held in value]
    return value


def _others(held: Mapping[str, Any], known: Collection[str]) -> list[str]:
    return [str(key)[:80] for key, value in held.items() if key not in known and not is_nothing(value)]


def _any(name: str) -> str:
    """messages[3].content[0] → messages[].content[]"""
    return "".join(char for char in name if not char.isdigit()) if "[" in name else name


ROLES = ("system", "developer", "user", "assistant", "tool")
ALL = ("role", "content", "name")
BESIDE = {
    "assistant": ("weight", "train", SPANS, "tool_calls", "reasoning_content", "thinking"),
    "tool": ("tool_call_id",),
}
"""Role → keys beside those of all."""
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's "from" → role."""
PART, CALL, FUNCTION = ("type", "text"), ("id", "type", "function"), ("name", "arguments")


def conversation(value: object, name: str = "messages", keys: Keys | None = None) -> list[Message]:
    """Checked messages: known roles and keys, text or calls in every turn, an answer at the end.

    value: a list of them, or the JSON text of one.
    """
    messages = unpacked(value, name) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(messages, list):
        raise QTargetError(f"{name} must be a list of messages, got {kind(messages)}")
    if not messages:
        raise QTargetError(f"{name} is an empty list")
    turns = [_message(message, f"{name}[{index}]", keys or Keys()) for index, message in enumerate(messages)]
    if turns[-1]["role"] != "assistant":
        raise QTargetError(f"{name} must end with the assistant's answer, and ends with role {turns[-1]['role']!r}")
    return turns


def _message(message: object, name: str, keys: Keys) -> Message:
    """A checked message. Raises QTargetError, with its name, for what is wrong with it."""
    if not isinstance(message, dict):
        raise QTargetError(f"{name} must be an object with role and content, got {kind(message)}")
    message = _of_functions(_of_sharegpt(message, name), name)
    role = message.get("role")
    if role is None:
        raise QTargetError(f"{name} has no 'role'; its keys: {listed(message)}")
    if role not in ROLES:
        raise QTargetError(f"{name} has the unknown role {str(role)[:40]!r}; known: {', '.join(ROLES)}")
    held = {key: value for key, value in message.items() if not is_nothing(value) or key == "content"}
    if "content" not in held and "tool_calls" not in held:
        raise QTargetError(f"{name} has no 'content'; its keys: {listed(message)}")
    if role != "assistant":
        held = _without_weight(held, name, keys)
    keys.message(held, (*ALL, *BESIDE.get(role, ())), name)
    result = {"role": role, **_beside(held, name, keys)}
    content = result["content"] = _content(held, name, keys, calls="tool_calls" in result)
    if SPANS in held:
        key = f"{name}.{SPANS}"
        result[SPANS] = [
            list(span) for span in span_weights(unpacked(held[SPANS], key), key, len(content), "that message")
        ]
    return result


def _of_sharegpt(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A message of ShareGPT's in OpenAI's keys; any other as it is."""
    if "role" in message or not isinstance(message.get("from"), str):
        return message
    speaker = message["from"]
    if speaker not in SPEAKERS:
        raise QTargetError(f"{name} is from {speaker[:40]!r}; known: {', '.join(SPEAKERS)}")
    said = "tool_calls" if speaker == "function_call" else "content"
    if said in message:
        raise QTargetError(f"{name} has value and {said}: keep one of them")
    beside = {key: value for key, value in message.items() if key not in ("from", "value")}
    value = message.get("value")
    if speaker == "function_call":
        calls = unpacked(value, f"{name}.value")
        value = calls if isinstance(calls, list) else [calls]
    return {"role": SPEAKERS[speaker], said: value, **beside}


def _of_functions(message: dict[str, Any], name: str) -> dict[str, Any]:
    """OpenAI's function_call as tool_calls, and the role "function" as "tool"; any other message as it is."""
    if message.get("role") == "function":
        message = {**message, "role": "tool"}
    call = message.get("function_call")
    if is_nothing(call):
        return message
    if not isinstance(call, dict):
        raise QTargetError(f"{name}.function_call must be an object with name and arguments, got {kind(call)}")
    if not is_nothing(message.get("tool_calls")):
        raise QTargetError(f"{name} has function_call and tool_calls: keep one of them")
    return {**{key: held for key, held in message.items() if key != "function_call"}, "tool_calls": [call]}


def _without_weight(held: Mapping[str, Any], name: str, keys: Keys) -> dict[str, Any]:
    """Only replies are taught: on other messages 0 says nothing new, and more is named."""
    for key in ("weight", "train"):
        if key in held and held[key] not in (0, False):
            keys.note(f"{name}.{key} of a {held['role']} message")
    return {key: value for key, value in held.items() if key not in ("weight", "train")}


def _beside(held: Mapping[str, Any], name: str, keys: Keys) -> dict[str, Any]:
    """What is read beside role and content, as templates take it."""
    texts = ("name", "tool_call_id", "reasoning_content", "thinking")
    result: dict[str, Any] = {
        key: text(held[key], f"{name}.{key}")
        for key in texts
        if key in held and not (isinstance(held[key], str) and not held[key].strip())
    }
    if result.get("thinking", result.get("reasoning_content")) != result.get(
        "reasoning_content", result.get("thinking")
    ):
        raise QTargetError(f"{name} has reasoning_content and another thinking: keep one of them")
    if "weight" in held and "train" in held:
        raise QTargetError(f"{name} has weight and train, which say the same thing: keep one of them")
    if "train" in held and held["train"] not in (0, 1):
        raise QTargetError(f"{name}.train must be true or false, got {str(held['train'])[:40]!r}")
    for key in ("weight", "train"):
        if key in held:
            result["weight"] = weight(held[key], f"{name}.{key}")
    if "tool_calls" in held:
        result["tool_calls"] = _calls(held["tool_calls"], f"{name}.tool_calls", keys)
    return result


def _content(held: Mapping[str, Any], name: str, keys: Keys, *, calls: bool) -> str:
    """The text of a message; "" where a call stands for it, in a system message, and where a tool gave nothing."""
    content = held.get("content")
    if calls and is_nothing(content):
        return ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{name}.content[{index}]", keys) for index, part in enumerate(content))
    if content == "" and held["role"] in ("system", "developer", "tool"):
        return ""
    if calls and isinstance(content, str) and not content.strip():
        return ""
    return text(content, f"{name}.content")


def _part(part: object, name: str, keys: Keys) -> str:
    if not isinstance(part, dict):
        raise QTargetError(f'{name} must be {{"type": "text", "text": …}}, got {kind(part)}')
    if part.get("type") != "text":
        raise QTargetError(
            f"{name} is of the type {str(part.get('type'))[:40]!r}: only parts of the type 'text' are read"
        )
    keys.message(part, PART, name)
    if not isinstance(part.get("text"), str):
        raise QTargetError(f"{name}.text must be text, got {kind(part.get('text'))}")
    return encodable(part["text"], f"{name}.text")


def _calls(value: object, name: str, keys: Keys) -> list[dict[str, Any]]:
    calls = unpacked(value, name)
    if not isinstance(calls, list):
        raise QTargetError(f"{name} must be a list of calls, got {kind(calls)}")
    return [_call(call, f"{name}[{index}]", keys) for index, call in enumerate(calls)]


def _call(value: object, name: str, keys: Keys) -> dict[str, Any]:
    """{id, type, function: {name, arguments}}, arguments as an object; templates that want their text write it."""
    call = unpacked(value, name)
    if not isinstance(call, dict):
        raise QTargetError(f"{name} must be an object with a function, got {kind(call)}")
    if "function" not in call and "name" in call:  # as Mistral's and Hermes's texts hold it
        call = {
            "function": {key: call[key] for key in FUNCTION if key in call},
            **{key: held for key, held in call.items() if key not in FUNCTION},
        }
    if call.get("type") not in (None, "function"):
        raise QTargetError(f"{name} is of the type {str(call['type'])[:40]!r}: only calls of functions are read")
    keys.message(call, CALL, name)
    function = call.get("function")
    if not isinstance(function, dict):
        raise QTargetError(f"{name}.function must be an object with name and arguments, got {kind(function)}")
    keys.message(function, FUNCTION, f"{name}.function")
    arguments = _arguments(function.get("arguments"), f"{name}.function.arguments")
    read = {"type": "function", "function": {"name": text(function.get("name"), f"{name}.function.name")}}
    read["function"]["arguments"] = arguments  # type: ignore[index]
    return read if is_nothing(call.get("id")) else {"id": text(call["id"], f"{name}.id"), **read}


def _arguments(value: object, name: str) -> dict[str, Any]:
    """An object, or the JSON text of one, as OpenAI writes it; none: {}."""
    arguments = {} if is_nothing(value) else unpacked(value, name)
    if not isinstance(arguments, dict):
        raise QTargetError(f"{name} must be an object, or the JSON text of one, got {kind(arguments)}")
    return _checked(arguments, name)


def tools(value: object, name: str = "tools") -> list[dict[str, Any]]:
    """Functions that may be called, as JSON schemas: a list, or the JSON text of one, as some data sets keep it."""
    given = [] if is_nothing(value) else unpacked(value, name)
    if not isinstance(given, list):
        raise QTargetError(f"{name} must be a list of functions, or the JSON text of one, got {kind(given)}")
    return [_tool(tool, f"{name}[{index}]") for index, tool in enumerate(given)]


def functions(value: object) -> list[dict[str, Any]]:
    """OpenAI's key up to 2023, as tools: each is the function alone."""
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools(value, "functions")
    ]


def _tool(value: object, name: str) -> dict[str, Any]:
    tool = unpacked(value, name)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(function, dict) or is_nothing(function.get("name")):
        raise QTargetError(
            f'{name} must be {{"type": "function", "function": {{"name": …, "parameters": …}}}}, got {kind(tool)}'
            + (f" with the keys {listed(tool)}" if isinstance(tool, dict) else "")
        )
    return _checked(tool, name)


def row_spans(value: object, length: int) -> list[WeightedSpan]:
    """Factors on characters of a row's last message, which has so many; also the JSON text of them."""
    given = None if is_nothing(value) else unpacked(value, SPANS)
    return span_weights(given, SPANS, length, "the last message")


def unpacked(value: object, name: str) -> Any:
    """What a JSON text holds; anything but text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value)
    except QTargetError as error:
        raise QTargetError(f"{name} is text that can't be read as JSON, {error}: {value[:40]!r}") from error


def _checked(value: Any, name: str) -> Any:
    """The value, if all text in it can be encoded and all of it is what JSON holds."""
    if isinstance(value, dict):
        return {encodable(str(key), name): _checked(held, f"{name}.{key}") for key, held in value.items()}
    if isinstance(value, list):
        return [_checked(held, name) for held in value]
    if isinstance(value, str):
        return encodable(value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise QTargetError(f"{name} holds {value}, which JSON has no number for: write it as text")
    if value is None or isinstance(value, bool | int | float):
        return value
    raise QTargetError(f"{name} holds {kind(value)}, which JSON doesn't: write it as text")
