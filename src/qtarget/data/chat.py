"""Conversations → tokens, with supervision on what the assistant says and on its end of turn, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from qtarget.data.example import Demonstration, Example, Message, Span, WeightedSpan
from qtarget.data.weights import message_weight, token_weights
from qtarget.errors import QTargetError

SUPERVISED = ("all", "last")
Segment = tuple[str, float, Sequence[WeightedSpan], Mapping[str, Sequence[Span]]]
"""Text, the weight of a reply (0: context), and of the last reply the weights and, by column, the spans in it."""


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's chat template, and the end-of-turn token that a reply closes with.

    supervise: "all" assistant turns of a conversation, or the "last" one alone, with what comes before it as a model
    reads it when it is asked.
    """

    tokenizer: PreTrainedTokenizerBase
    supervise: str = "all"

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise QTargetError(
                "the tokenizer has no chat template: use an instruct model, add chat_template.jinja to its folder, or "
                "give one with model.chat_template, as conf/model/llama3_2_3b.yaml does"
            )

    def render(self, messages: Sequence[Message], *, reply: bool) -> str:
        """The template's text; with `reply` it ends where the assistant's next words begin."""
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=reply
            )
        except (TemplateError, ValueError, IndexError) as error:
            roles = ", ".join(message["role"] for message in messages) or "none"
            raise QTargetError(f"the chat template refuses a conversation of these roles ({roles}): {error}") from error
        return str(text)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a prompt, up to where a reply begins."""
        return self._ids(self.render(messages, reply=True))

    def encode(self, demonstration: Demonstration) -> Example:
        """The supervised assistant turns and their end-of-turn tokens are labels; all other text is context.

        So are turns and spans of weight 0; a token's weight is row weight × message weight × span weight.

        Replies are tokenised apart from their context, as they are when the model writes them itself. Raises
        QTargetError, with the row number, where no token would be supervised.
        """
        ids: list[int] = []
        weights: list[float] = []
        columns: dict[str, list[bool]] = {name: [] for name in ("wrong", *demonstration.spans)}
        for text, weight, weighted, spans in self._located(demonstration):
            tokens, offsets = self._reply(text) if weight else (self._ids(text), [])
            ids += tokens
            weights += token_weights(offsets, weighted, weight) or [0.0] * len(tokens)
            for name, column in columns.items():
                column.extend(_covered(offsets, spans.get(name, ())) or [False] * len(tokens))
        if not any(weights):
            raise QTargetError(
                f"row {demonstration.row}: no token to supervise; it needs an assistant message with text, of a weight "
                "above 0"
            )
        supervised, plain = [weight > 0 for weight in weights], {*weights} <= {0.0, 1.0}
        return Example(ids, supervised, columns, demonstration.row, weights=None if plain else weights)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that closes a reply: the first special one the template writes after it, or the tokenizer's eos."""
        conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        closing = self.render(conversation, reply=False)[len(self.render(conversation[:1], reply=True)) :]
        known = self.tokenizer.added_tokens_decoder
        special = [token for token in self._ids(closing) if token in known and known[token].special]
        end = special[0] if special else self.tokenizer.eos_token_id
        if end is None:
            raise QTargetError("the tokenizer has no eos token and its chat template closes replies with none: set one")
        return int(end)

    @cached_property
    def plain_tokens(self) -> list[int]:
        """The vocabulary without special tokens, in order."""
        added = self.tokenizer.added_tokens_decoder
        special = {token for token, known in added.items() if known.special} | {*self.tokenizer.all_special_ids}
        return sorted({*self.tokenizer.get_vocab().values()} - special)

    def _located(self, demonstration: Demonstration) -> list[Segment]:
        try:
            return list(self._segments(demonstration))
        except QTargetError as error:
            raise QTargetError(f"row {demonstration.row}: {error}") from error

    def _segments(self, demonstration: Demonstration) -> Iterator[Segment]:
        """Replies and what stands between them, in order; the last reply carries the demonstration's spans.

        A reply ends with its end of turn; what the template writes behind that is context of the next one.
        """
        messages, written = demonstration.messages, ""
        end = str(self.tokenizer.convert_ids_to_tokens(self.end_of_turn))
        for turn in self._supervised_turns(demonstration):
            before = self.render(messages[:turn], reply=True)
            after = self.render(messages[: turn + 1], reply=False)
            text = messages[turn]["content"]
            start = after.find(text.strip(), len(before)) - (len(text) - len(text.lstrip()))
            if not before.startswith(written) or not after.startswith(before) or start < 0:
                raise QTargetError(
                    "the chat template rewrites earlier text when a reply is added, so the reply can't be located; "
                    "use a template that appends"
                )
            yield before[len(written) :], 0.0, (), {}
            closing = after.find(end, start + len(text.strip()))
            written = after if closing < 0 else after[: closing + len(end)]
            reply, shift = written[len(before) :], start - len(before)
            if turn < len(messages) - 1:
                yield reply, message_weight(demonstration, turn), (), {}
            else:
                weighted = [(low + shift, high + shift, weight) for low, high, weight in demonstration.weights]
                spans = _spans(demonstration, shift, len(reply))
                yield reply, message_weight(demonstration, turn), weighted, spans

    def _supervised_turns(self, row: Demonstration) -> list[int]:
        said = [
            turn for turn, message in enumerate(row.messages) if message["role"] == "assistant" and message["content"]
        ]
        wanted = said if self.supervise == "all" else said[-1:]
        return [turn for turn in wanted if message_weight(row, turn) > 0]

    def _reply(self, text: str) -> tuple[list[int], list[Span]]:
        """Tokens of a reply and its end of turn (added where the template has none), and where each stands in it."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if ids[-1] != self.end_of_turn:
            ids, offsets = [*ids, self.end_of_turn], [*offsets, (len(text), len(text) + 1)]
        return ids, offsets

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _spans(demonstration: Demonstration, shift: int, length: int) -> dict[str, list[Span]]:
    """Spans by column in a reply of `length` characters, whose message begins at `shift`.

    What closes a message that was cut short is wrong, through the end of turn, which may stand behind the text.
    """
    closing = [(len(demonstration.completion.rstrip()), length - shift + 1)] if demonstration.cut_short else []
    spans = {"wrong": [*demonstration.wrong, *closing], **demonstration.spans}
    return {name: _shift(found, shift) for name, found in spans.items()}


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with one of the spans."""
    return [any(low < stop and start < high for low, high in spans) for start, stop in offsets]


def _shift(spans: Sequence[Span], by: int) -> list[Span]:
    return [(low + by, high + by) for low, high in spans]
