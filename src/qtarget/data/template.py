"""What a chat template writes for a conversation, in which form it reads calls of tools, and which of it is its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from qtarget.data.example import SPANS, Message
from qtarget.data.thought import is_content, is_control
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around text of a message that reads like a control token: noncharacters of Unicode, which no text holds."""
TODAY = date(2024, 7, 26)
"""What a template that writes today's date writes instead: rows and prompts are the same on every day."""
OF_THE_LOSS = ("weight", SPANS)
"""Keys of a message that no template reads."""
NOT_WRITTEN = ("role", *OF_THE_LOSS)
_FAULTS = (TemplateError, ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError)
_PROBE, _ASKS = "qzx", "xqj"
_MARK = re.compile(r"<\|[^|<>\s]+\|>")
_USER: Message = {"role": "user", "content": "a"}
_ASKED: tuple[list[Message], ...] = (
    [{"role": "user", "content": _PROBE}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": _PROBE}],
)


def plain(text: str) -> str:
    """Without the marks around what reads like a control token."""
    return text.replace(OPEN, "").replace(CLOSE, "")


@dataclass(frozen=True)
class Template:
    """The chat template of a tokenizer. Its texts carry OPEN and CLOSE around control tokens that messages hold."""

    tokenizer: PreTrainedTokenizerBase

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, reply: bool) -> str:
        """The template's text; with `reply` it ends where the assistant's next words begin."""
        try:
            return self._applied(messages, tools, reply, self.in_parts)
        except _FAULTS as error:
            roles = ", ".join(str(message["role"]) for message in messages) or "none"
            raise QTargetError(f"the chat template refuses a conversation of these roles ({roles}): {error}") from error

    def attempt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, reply: bool) -> str:
        """The same, empty where the template refuses."""
        try:
            return self.render(messages, tools, reply=reply)
        except QTargetError:
            return ""

    @cached_property
    def in_parts(self) -> bool:
        """Whether content is read as a list of parts alone, as some templates of vision models do."""
        texts = [self._probed(talk, in_parts) for in_parts in (False, True) for talk in _ASKED]
        half = len(_ASKED)
        return not any(_PROBE in text for text in texts[:half]) and any(_PROBE in text for text in texts[half:])

    @cached_property
    def opening(self) -> list[Message]:
        """What a conversation begins with: nothing, or a system message for templates that refuse one without."""
        taken = [talk[:-1] for talk in _ASKED if self._probed(talk, self.in_parts)]
        return taken[0] if taken else []

    def _probed(self, talk: Sequence[Message], in_parts: bool, *, reply: bool = False) -> str:
        """The text of a conversation that holds no control token, empty where the template refuses."""
        try:
            return self._text([self._message(message, False, in_parts) for message in talk], None, reply)
        except _FAULTS:
            return ""

    @cached_property
    def closing(self) -> str:
        """The control token that closes a plain reply; empty where the template writes none.

        The last of those that stand behind it both at the end of a conversation and where one goes on. Phi-3 writes an
        end of text behind a whole conversation, harmony (gpt-oss) another token than behind a turn that is history.
        """
        talk: list[Message] = [
            *self.opening,
            _USER,
            {"role": "assistant", "content": _PROBE},
        ]
        ends = self.controls(self.attempt(talk, reply=False).rpartition(_PROBE)[2])
        more = self.attempt([*talk, {"role": "user", "content": "c"}], reply=True)
        goes_on = self.controls(more.rpartition(_PROBE)[2])
        shared = [one.text for one, other in zip(ends, goes_on, strict=False) if one.text == other.text]
        return (shared or [one.text for one in ends][:1] or [""])[-1]

    @cached_property
    def written_end(self) -> str:
        """What the template writes behind a plain reply and looks like a control token, but is none; else empty."""
        talk: list[Message] = [*self.opening, _USER, {"role": "assistant", "content": _PROBE}]
        after = self._tokens.sub(" ", self.attempt(talk, reply=False).rpartition(_PROBE)[2])
        words = filter(is_control, re.findall(r"[<\[【][^\s<\[【]*[>\]】]", after))
        return next((word for word in words if word not in self.tokenizer.get_vocab()), "")

    @cached_property
    def head(self) -> str:
        """What stands before a reply and not in its prompt, of a template without a generation prompt; else empty."""
        talk = [*self.opening, _USER]
        asked = self.attempt(talk, reply=True)
        after = self.attempt([*talk, {"role": "assistant", "content": _PROBE}], reply=False)
        if asked != self.attempt(talk, reply=False) or not after.startswith(asked):
            return ""
        head = after[len(asked) :].partition(_PROBE)[0].strip()
        return head if any(map(str.isalnum, head)) else ""

    @cached_property
    def unknown_marks(self) -> list[str]:
        """What the template writes as control tokens, <|…|>, and the tokenizer has no token for."""
        talk: list[Message] = [*self.opening, _USER, {"role": "assistant", "content": _PROBE}]
        texts = [self.attempt(talk[:-1], reply=True), self.attempt(talk, reply=False)]
        tokens = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        return sorted({mark for text in texts for mark in _MARK.findall(text)} - tokens - {*self.tokenizer.get_vocab()})

    def check(self) -> None:
        """Raise QTargetError where no conversation can be taught or asked with this template, and say why."""
        try:
            self._text([dict(_USER)], None, False)
        except TemplateSyntaxError as error:
            raise QTargetError(
                f"model.chat_template is no valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        except _FAULTS:
            pass  # it may want other roles
        talk: list[Message] = [*self.opening, {"role": "user", "content": _ASKS}]
        text = self.render([*talk, {"role": "assistant", "content": _PROBE}], reply=False)
        for role, words in (("user", _ASKS), ("assistant", _PROBE)):
            if words not in text:
                raise QTargetError(f"model.chat_template leaves out what messages of the role {role} say")
        self.render(talk, reply=True)
        if self.head:
            raise QTargetError(
                f"model.chat_template has no generation prompt: it writes {self.head!r} before a reply, and not where "
                "one is asked for. End it with {% if add_generation_prompt %}…{% endif %} that writes the same"
            )

    @property
    def writes_the_date(self) -> bool:
        return "strftime_now" in str(self.tokenizer.chat_template)

    def controls(self, text: str) -> list[Control]:
        """The control tokens that the template wrote, in order; not those of a message."""
        return [Control(*match.span(), match[0]) for match in self._tokens.finditer(text) if match[0][0] != OPEN]

    def spelt(self, text: str) -> list[str]:
        """The control tokens that a text reads like."""
        return self._guarded.findall(text)

    def held(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> set[str]:
        """The control tokens that text of messages and tools reads like."""
        return {token for value in _texts([*messages, *tools]) for token in self.spelt(value)}

    def _applied(self, messages: Sequence[Message], tools: Sequence[Any], reply: bool, in_parts: bool) -> str:
        held = bool(self.held(messages, tools))
        given = [self._message(self._with_calls(message), held, in_parts) for message in messages]
        schemas = [self.marked(tool) if held else tool for tool in tools] or None
        return self._text(given, schemas, reply)

    def _text(self, messages: list[dict[str, Any]], tools: list[Any] | None, reply: bool) -> str:
        template = self.tokenizer.get_chat_template(None, tools)
        dated = _with_date(template) if "strftime_now" in template else template
        return str(
            self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=dated, tokenize=False, add_generation_prompt=reply
            )
        )

    def _with_calls(self, message: Message) -> Message:
        if not message.get("tool_calls"):
            return message
        return {**message, "tool_calls": [self.calls.given(call) for call in message["tool_calls"]]}

    @cached_property
    def calls(self) -> Calls:
        """In which form the template reads the arguments of a call."""
        return read_calls(lambda message: self._probed([*self.opening, _USER, message], self.in_parts))

    def _message(self, message: Message, held: bool, in_parts: bool) -> dict[str, Any]:
        """As the template is to read it, without what is empty."""
        given = {key: value for key, value in message.items() if key not in OF_THE_LOSS and value not in (None, [], ())}
        if held:
            given = {key: value if key == "role" else self.marked(value) for key, value in given.items()}
        if in_parts:
            given["content"] = [{"type": "text", "text": given.get("content", "")}]
        return given

    def marked(self, value: Any) -> Any:
        """With OPEN and CLOSE around what reads like a control token."""
        if isinstance(value, str):
            return self._guarded.sub(lambda match: OPEN + match[0] + CLOSE, plain(value))
        if isinstance(value, Mapping):
            return {key: self.marked(item) for key, item in value.items()}
        return [self.marked(item) for item in value] if isinstance(value, list | tuple) else value

    @cached_property
    def guarded(self) -> frozenset[str]:
        """Special tokens, and others that the template writes around messages: in a message they are text."""
        return frozenset(token for token in self.special | self._structural if not is_content(token))

    @cached_property
    def special(self) -> frozenset[str]:
        """What the tokenizer itself can read as text where it is set to."""
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset({token.content for token in added if token.special} | {*self.tokenizer.all_special_tokens})

    @property
    def _structural(self) -> frozenset[str]:
        """Tokens that aren't called special, and stand in what the template writes for words alone."""
        words = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
        talks = [words[:1], words[:2], words[:3], words]
        rendered = [self._probed([*self.opening, *talk], self.in_parts, reply=bool(len(talk) % 2)) for talk in talks]
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if not token.special}
        return frozenset(token for token in added if is_control(token) and any(token in text for text in rendered))

    @cached_property
    def _guarded(self) -> re.Pattern[str]:
        longest = sorted(map(re.escape, self.guarded), key=len, reverse=True)
        return re.compile("|".join(longest) or "(?!)")

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        return re.compile(f"{OPEN}[^{CLOSE}]*{CLOSE}|{self._guarded.pattern}")


@dataclass(frozen=True)
class Control:
    """A control token, and where it stands in a text."""

    start: int
    stop: int
    text: str


def _texts(value: Any) -> Iterator[str]:
    """All text in messages but their roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in NOT_WRITTEN:
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _with_date(template: str) -> str:
    """With a strftime_now of its own, which knows one day alone."""
    codes = sorted({*re.findall(r"%-?[A-Za-z]", template)}, key=len, reverse=True)
    replaced = "".join(f" | replace('{code}', '{TODAY.strftime(code)}')" for code in codes)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
