"""A reply in its conversation: what a model is asked, what it must write, and where the message stands in that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from qtarget.data.example import Message, Span
from qtarget.data.template import Template, plain
from qtarget.data.thought import MARKS
from qtarget.errors import QTargetError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a thought beside the content; transformers 5.23 hands each to templates under all of them."""
Tools = Sequence[Mapping[str, Any]]
_CLOSED = dict(MARKS)
_OPENED = re.compile(f"({'|'.join(map(re.escape, _CLOSED))})\\s*$")
_PROBE = "qzx"


@dataclass(frozen=True)
class Turn:
    """asked: the template's text up to where the reply begins. reply: what the model must write, with its end of turn.

    opening: what of the message stands in `asked`, where a prompt opens the thought. body: characters of the reply,
    without marks, up to its end of turn. ended: whether the template closes it with a control token. text: all that the
    template writes of the conversation up to the reply.
    """

    asked: str
    reply: str
    opening: str
    body: int
    ended: bool
    text: str = ""

    def positions(self, content: str) -> list[int]:
        """Where each character of a message stands in the reply, without marks; below 0 in what was asked.

        Where the template changes white space, a space stands behind the character before it.
        """
        text = self.opening + plain(self.reply)[: self.body]
        start = text.rfind(content.strip())
        if start >= 0:
            first = start - len(self.opening) - (len(content) - len(content.lstrip()))
            return list(range(first, first + len(content)))
        letters = [index for index, letter in enumerate(text) if not letter.isspace()]
        at = squeezed(text).rfind(squeezed(content))
        if at < 0:
            raise QTargetError(
                "the chat template changes the text of the reply, so noise and columns can't be located in it"
            )
        return _spread(content, letters[at:], len(self.opening))


def turn(template: Template, messages: Sequence[Message], index: int, tools: Tools) -> Turn:
    """Of the assistant message at `index`. Raises QTargetError where its text isn't what the template's prompt asks."""
    if not index:
        raise QTargetError(_FIRST)
    asked = template.render(messages[:index], tools, reply=True)
    after = template.render(messages[: index + 1], tools, reply=False)
    opened = _OPENED.search(asked)
    opening = opened[0] if opened else ""
    if after.startswith(asked):
        reply = after[len(asked) :]
    elif opened:
        reply = _thought(template, messages[: index + 1], tools, asked, opened)
    else:
        raise QTargetError(_rewritten(template, asked, after))
    located = _ended(template, asked, reply, opening)
    _check_written(template, messages[: index + 1], tools, located)
    return replace(located, text=after)


def spanned(spans: Sequence[Span], positions: Sequence[int]) -> list[Span]:
    """Spans of a message as spans of its reply; those that end behind it reach as far behind."""
    return [
        (_at(low, positions), _at(high - 1, positions) + 1 if low < high else _at(low, positions))
        for low, high in spans
    ]


def squeezed(text: str) -> str:
    """Without white space and marks."""
    return "".join(plain(text).split())


def _at(character: int, positions: Sequence[int]) -> int:
    if character < len(positions):
        return positions[character]
    return (positions[-1] if positions else -1) + 1 + character - len(positions)


def _spread(content: str, letters: Sequence[int], opening: int) -> list[int]:
    positions: list[int] = []
    used = 0
    for letter in content:
        used += not letter.isspace()
        positions.append(letters[used - 1] + letter.isspace() - opening if used else letters[0] - opening)
    return positions


def _ended(template: Template, asked: str, reply: str, opening: str) -> Turn:
    """Up to the end of turn: what the template writes behind it is context of what follows."""
    controls = template.controls(reply)
    closing = [one for one in controls if one.text == template.closing]
    last = [one for one in controls[-1:] if not reply[one.stop :].strip()]
    ends = (closing or last)[-1:]
    for end in ends:
        return Turn(asked, reply[: end.stop], opening, len(plain(reply[: end.start])), True)
    return Turn(asked, reply, opening, len(plain(reply)), False)


def _thought(template: Template, messages: Sequence[Message], tools: Tools, asked: str, opened: re.Match[str]) -> str:
    """The reply to a prompt that opens a thought, under a template that leaves thoughts out of what it writes."""
    mark, close = opened[1], _CLOSED[opened[1]]
    text = template.marked(str(messages[-1].get("content") or "")).lstrip()
    if not text.startswith(mark) or close not in text:
        raise QTargetError(
            f"the template's generation prompt ends in {mark}: a model begins with its thought, and this reply has "
            f"none in its content: write it as {mark}…{close} before the answer ({mark}{close} for none), or give a "
            "template whose generation prompt opens no thought with model.chat_template"
        )
    after, closing = template.render(messages, tools, reply=False), _closing(template, messages, tools)
    written = after.removesuffix(closing)
    answer = text.rpartition(close)[2].strip()
    if not after.startswith(asked[: opened.start()]) or not written.rstrip().endswith(answer):
        raise QTargetError(_REWRITES)
    space = opened[0][len(mark) :]
    thought = text[len(mark) :]
    thought = thought[len(space) :] if thought.startswith(space) else thought.lstrip()
    return thought.rstrip() + written[len(written.rstrip()) :] + closing


def _closing(template: Template, messages: Sequence[Message], tools: Tools) -> str:
    """What the template writes behind the content of the last message."""
    probe = [*messages[:-1], {**messages[-1], "content": _PROBE}]
    return template.render(probe, tools, reply=False).rpartition(_PROBE)[2]


_FIRST = (
    'the first message is the assistant\'s, and before it a model is asked nothing: "weight": 0 makes it context, '
    "data.supervise=last teaches the last reply alone, or let a message of another role stand before it"
)
_REWRITES = (
    "the chat template rewrites earlier text when a reply is added, so the reply can't be located; use a template that "
    "appends"
)


def _rewritten(template: Template, asked: str, after: str) -> str:
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, after, strict=False)))
    rest, instead = plain(asked[shared:])[:40], plain(after[shared:])[:40]
    if "think" not in rest + instead.lower():
        return f"{_REWRITES}, or teach the last reply alone with data.supervise=last"
    return (
        f"the template's generation prompt goes on with {rest!r} where the conversation with its reply has "
        f"{instead!r}: no model that is asked would write this reply; let thoughts be as the template's prompt has "
        "them, or give another template with model.chat_template"
    )


def _check_written(template: Template, messages: Sequence[Message], tools: Tools, located: Turn) -> None:
    """Raise QTargetError for a part of the reply's message that the template leaves out."""
    message, text = messages[-1], squeezed(located.opening + located.reply)
    for key in ("content", *REASONING):
        value = message.get(key)
        if not isinstance(value, str) or squeezed(value) in text:
            continue
        if unread(template, messages, key, tools):
            raise QTargetError(_left_out(key, "assistant", message))
        if key == "content" and not _in_order(value, text):
            raise QTargetError(
                f"the chat template leaves a part of the reply's content out, such as its thought, which can't be "
                f"taught so: of {value[:40]!r} it writes {plain(located.reply)[:40]!r}. Take it out of the content, or "
                "use a template that writes it (model.chat_template)"
            )


def _in_order(value: str, text: str) -> bool:
    """Whether all letters and digits of a message stand in a text, whatever else a template does to it."""
    rest = iter(text.casefold())
    return all(letter in rest for letter in value.casefold() if letter.isalnum())


def check_context(template: Template, messages: Sequence[Message], tools: Tools, written: str) -> None:
    """Raise QTargetError for a message, call or tool that doesn't reach the text; the last message is a reply.

    written: what the template writes of all.
    """
    text = squeezed(written)
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) and squeezed(content) not in text and _no_change(template, messages, index, tools):
            raise QTargetError(_left_out("content", str(message["role"]), message))
        if message.get("tool_calls") and unread(template, messages[: index + 1], "tool_calls", tools):
            raise QTargetError(_left_out("tool_calls", str(message["role"]), message))
        if message["role"] not in ("user", "assistant") and _said_by_the_assistant(template, messages, index, tools):
            raise QTargetError(
                f"the chat template writes a message of the role {message['role']} as the assistant's own: give it "
                "another role, or use a template that tells them apart (model.chat_template)"
            )
    if tools and template.attempt(messages[:-1], reply=True) == template.render(messages[:-1], tools, reply=True):
        raise QTargetError(
            "the chat template has no place for tools, which the row gives: use a template that reads them "
            "(model.chat_template=chatml does), or leave them out of the row"
        )


def unread(template: Template, messages: Sequence[Message], key: str, tools: Tools) -> bool:
    """Whether the text is the same without a key of the last message."""
    names = REASONING if key in REASONING else (key,)
    bare = {name: value for name, value in messages[-1].items() if name not in names}
    text = template.render(messages, tools, reply=False)
    return text == template.attempt(
        [*messages[:-1], bare | ({"content": ""} if key == "content" else {})], tools, reply=False
    )


def _no_change(template: Template, messages: Sequence[Message], index: int, tools: Tools) -> bool:
    """Whether another content gives the same text."""
    other = [
        *messages[:index],
        {**messages[index], "content": f"{messages[index]['content']} qzx"},
        *messages[index + 1 :],
    ]
    return template.render(messages, tools, reply=False) == template.attempt(other, tools, reply=False)


def _said_by_the_assistant(template: Template, messages: Sequence[Message], index: int, tools: Tools) -> bool:
    """Whether a message reads as a reply does: some templates call all that is not the user's the assistant's."""
    other = [*messages[:index], {**messages[index], "role": "assistant"}, *messages[index + 1 :]]
    return template.render(messages, tools, reply=False) == template.attempt(other, tools, reply=False)


def _left_out(key: str, role: str, message: Message) -> str:
    shown = "" if key != "content" else f" ({str(message['content'])[:40]!r})"
    way = {
        "content": "use another role, or a template that writes it (model.chat_template)",
        "tool_calls": "use a template that writes them (model.chat_template=chatml does), or write the call "
        "into the content",
    }.get(key, "write it into the content as the model writes its thoughts, or leave it out of the row")
    return f"the chat template leaves out the {key} of a message of the role {role}{shown}: {way}"
