"""Conversations → tokens, with supervision on what the assistant says and on its end of turn, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qtarget.data.example import SPANS, Demonstration, Example, Message, Span
from qtarget.data.template import TODAY, Template, plain
from qtarget.data.tokenise import TokenisedText, Tokeniser, message_weight, token_weights
from qtarget.data.turn import REASONING, Turn, check_context, spanned, turn, unread
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISED = ("all", "last")
SAID = ("content", "tool_calls", *REASONING)
"""What a message of the assistant may say, one of them at least where it is to be taught."""
_LAST = "teach the last reply alone with data.supervise=last, or leave data.prompt_weight at 0"
_CALL = {"name": "f", "arguments": {"a": 1}}


STOPS = "stop_token_ids"
"""Key of a checkpoint's tokenizer_config.json: where replies ended in the run, whose eos may have been another one."""


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which the run that saved this tokenizer ended replies; none of another tokenizer."""
    return [int(token) for token in tokenizer.init_kwargs.get(STOPS) or ()]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    supervise: str = "all",
    prompt_weight: float = 0.0,
) -> list[Example]:
    """The examples that a conversation is trained as: input_ids [T], supervised [T], weights [T] or None.

    One, where the template writes a turn in a conversation that goes on as it does at the end; else one for each turn
    that differs, the last of which holds the whole conversation. Raises QTargetError for what can't be taught as it
    will be asked. messages, tools: see Demonstration. prompt_weight: see ChatFormat.
    """
    return ChatFormat(tokenizer, supervise, prompt_weight).encode(Demonstration(messages, row=0, tools=tools))


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer's chat template, and the end-of-turn token that a reply closes with.

    supervise: "all" assistant turns of a conversation, or the "last" one alone, with what comes before it as a model
    reads it when it is asked. prompt_weight: of the tokens before a supervised turn that no turn before it holds, all
    that the template writes there; 0: they are context. It is for rows of one example that leave out no reply.
    """

    tokenizer: PreTrainedTokenizerBase
    supervise: str = "all"
    prompt_weight: float = 0.0

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise QTargetError(
                f"the tokenizer{_of(self.tokenizer)} has no chat template, as of a model that was never taught a chat: "
                "add model.chat_template=chatml (turns between marks, calls of tools), =plain (headed paragraphs) or "
                "=FILE.jinja, or use an instruct model"
            )

    @cached_property
    def template(self) -> Template:
        return Template(self.tokenizer)

    @cached_property
    def tokens(self) -> Tokeniser:
        return Tokeniser(self.template)

    def render(self, messages: Sequence[Message], *, reply: bool) -> str:
        """The template's text; with `reply` it ends where the assistant's next words begin."""
        return plain(self.template.render(messages, reply=reply))

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a prompt, up to where a reply begins."""
        return self.tokens.ids(self.template.render(messages, tools, reply=True))

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The text that those tokens are of."""
        return plain(self.template.render(messages, tools, reply=True))

    def asked(self, rows: Iterable[Demonstration]) -> Iterator[tuple[Demonstration, list[int]]]:
        """The rows that can be judged, each with the tokens of its prompt."""
        for row in rows:
            if row.entry is not None:
                yield row, self.prompt_ids(row.prompt, row.tools)

    def encode(self, demonstration: Demonstration) -> list[Example]:
        """The supervised assistant turns and their end-of-turn tokens are labels; all other text is context.

        So are turns and spans of weight 0; a token's weight is row weight × message weight × span weight, that of a
        prompt's token row weight × prompt_weight.

        What stands before a reply is, token for token, the prompt that `prompt_ids` gives for it. A turn goes on with
        the example of the turn before it where that begins its prompt, and begins another one where it doesn't.
        Raises QTargetError, with the row number, where no token would be supervised or a part of the row is lost.
        """
        try:
            drafts = self._drafts(demonstration)
        except QTargetError as error:
            raise QTargetError(f"row {demonstration.row}: {error}") from error
        return [draft.example(demonstration.row) for draft in drafts]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that closes a reply: the last special one that the template writes behind it, or the eos."""
        closing = self.template.closing
        end = _id(self.tokenizer, closing) if closing else self.tokenizer.eos_token_id
        if end is None:
            raise QTargetError("the tokenizer has no eos token and its chat template closes replies with none: set one")
        return int(end)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens at which a reply ends: the end of turn, the eos, and what closes a call of a tool."""
        called_by: Message = {"role": "assistant", "tool_calls": [_CALL]}
        talk = [*self.template.opening, {"role": "user", "content": "a"}, called_by]
        tools = [{"type": "function", "function": {**_CALL, "description": "", "parameters": {}}}]
        after = self.template.attempt(talk, tools, reply=False)
        last = [one.text for one in self.template.controls(after)[-1:] if not after[one.stop :].strip()]
        called = [_id(self.tokenizer, token) for token in last if self.template.closing]
        eos = self.tokenizer.eos_token_id
        return frozenset([self.end_of_turn, *called, *([] if eos is None else [int(eos)]), *stop_ids(self.tokenizer)])

    @cached_property
    def plain_tokens(self) -> list[int]:
        """The vocabulary without special and other control tokens, in order."""
        control = {_id(self.tokenizer, token) for token in self.template.special | self.template.guarded}
        return sorted({*self.tokenizer.get_vocab().values()} - control)

    def notes(self, rows: Iterable[Demonstration]) -> list[str]:
        """What of these rows reaches the tokens otherwise than it stands there, in words."""
        held: dict[str, int] = {}
        unnamed = 0
        for row in rows:
            for token in self.template.held(row.messages, row.tools):
                held[token] = held.get(token, 0) + 1
            unnamed += self._loses_a_name(row)
        notes = [f"{count} rows hold the control token {token!r} as text" for token, count in sorted(held.items())]
        if unnamed:
            notes.append(f"the chat template leaves out the names in {unnamed} rows")
        if self.template.head:
            notes.append(
                f"the chat template has no generation prompt: replies are taught with their head {self.template.head!r}"
            )
        if marks := self.template.unknown_marks:
            end = self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
            notes.append(
                f"the chat template's {', '.join(marks)} {'is' if len(marks) == 1 else 'are'} no token of this "
                f"tokenizer and read as text; replies end with {end!r}"
            )
        if self.template.writes_the_date:
            notes.append(f"the template's date is {TODAY:%d %b %Y} in all rows and prompts, not today's (strftime_now)")
        return notes

    @property
    def end_in_words(self) -> str:
        """What is taught where the template ends replies with no token, or with what is none to this tokenizer."""
        closing, written = self.tokenizer.convert_ids_to_tokens(self.end_of_turn), self.template.written_end
        if written:
            return (
                f"the chat template ends replies with {written!r}, which is no token of this tokenizer: it is taught "
                f"as text, and {closing!r} behind it"
            )
        if self.template.closing:
            return ""
        return f"the chat template ends replies with no token: {closing!r} is taught behind them"

    def _loses_a_name(self, row: Demonstration) -> bool:
        named = [index for index, message in enumerate(row.messages) if message.get("name")]
        return any(unread(self.template, row.messages[: index + 1], "name", row.tools) for index in named)

    def _drafts(self, row: Demonstration) -> list[_Draft]:
        drafts: list[_Draft] = []
        turns = self._supervised_turns(row)
        self._check_prompts(row, turns)
        written = ""
        for index in turns:
            one = turn(self.template, row.messages, index, row.tools)
            prompt = self.tokens.ids(one.asked)
            if not drafts or prompt[: len(drafts[-1].ids)] != drafts[-1].ids:
                drafts.append(_Draft(["wrong", *row.spans]))
            drafts[-1].prompt(prompt, row.weight * self.prompt_weight)
            self._write(drafts[-1], row, index, one)
            written = one.text
        if turns:
            check_context(self.template, row.messages[: turns[-1] + 1], row.tools, written)
        if not any(draft.weights and any(draft.weights) for draft in drafts):
            raise QTargetError("no token to supervise; it needs an assistant message with text, of a weight above 0")
        if self.prompt_weight and len(drafts) > 1:
            raise QTargetError(
                "the chat template writes a turn in history otherwise than at the end, so that this conversation is "
                f"several examples and data.prompt_weight would teach its prompts several times: {_LAST}"
            )
        return [draft for draft in drafts if any(draft.weights)]

    def _check_prompts(self, row: Demonstration, turns: Sequence[int]) -> None:
        """Raise QTargetError where a reply that is to be context stands in a prompt that is taught."""
        if not self.prompt_weight or not turns or self.supervise == "last":
            return
        left_out = [index for index in self._replies(row) if index < turns[-1] and index not in turns]
        if left_out:
            raise QTargetError(
                f"message {left_out[0] + 1} has the weight 0 and stands in a prompt, which data.prompt_weight teaches: "
                f"give it a weight above 0 or leave data.prompt_weight at 0"
            )

    def _write(self, draft: _Draft, row: Demonstration, index: int, one: Turn) -> None:
        """The tokens of a reply, with its spans; those of noise and columns are of the last message of a row."""
        tokens = self._reply(one, draft.ids)
        weight, is_last = message_weight(row, index), index == len(row.messages) - 1
        spans = {"wrong": row.wrong, **row.spans} if is_last else {}
        weighted = row.weights if is_last else row.messages[index].get(SPANS, ())
        if not (weighted or any(spans.values()) or (is_last and row.cut_short)):
            draft.reply(tokens.ids, [weight] * len(tokens.ids), {})
            return
        if tokens.offsets is None:
            raise QTargetError(
                "noise, columns and weights of parts of a reply need a tokenizer that says where its tokens stand: "
                "this model's has no fast form (tokenizer.json)"
            )
        positions = one.positions(str(row.messages[index].get("content") or ""))
        located = {name: spanned(held, positions) for name, held in spans.items()}
        if is_last and row.cut_short:
            located["wrong"].append(_cut_off(row, one, positions))
        columns = {name: _covered(tokens.offsets, held) for name, held in located.items()}
        factors = [(*spanned([(low, high)], positions)[0], factor) for low, high, factor in weighted]
        draft.reply(tokens.ids, token_weights(tokens.offsets, factors, weight), columns)

    def _reply(self, one: Turn, prompt: Sequence[int]) -> TokenisedText:
        """Tokens of a reply and its end of turn (added where the template has none), and where each stands in it."""
        tokens = self.tokens.reply(one.asked, prompt, one.reply)
        if one.ended or tokens.ids[-1:] == [self.end_of_turn]:
            return tokens
        length = len(plain(one.reply))
        locate = None if tokens.locate is None else lambda: [*(tokens.offsets or ()), (length, length + 1)]
        return TokenisedText([*tokens.ids, self.end_of_turn], locate)

    def _supervised_turns(self, row: Demonstration) -> list[int]:
        replies = self._replies(row)
        wanted = replies if self.supervise == "all" else replies[-1:]
        return [index for index in wanted if message_weight(row, index) > 0]

    def _replies(self, row: Demonstration) -> list[int]:
        return [
            index
            for index, message in enumerate(row.messages)
            if message["role"] == "assistant" and any(message.get(key) for key in SAID)
        ]


def _of(tokenizer: PreTrainedTokenizerBase) -> str:
    name = getattr(tokenizer, "name_or_path", "")
    return f" of {name}" if name else ""


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


@dataclass
class _Draft:
    """An example as it grows, turn by turn."""

    columns_of: Sequence[str]
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    columns: dict[str, list[bool]] = field(default_factory=dict)
    first_reply: int = 0

    def __post_init__(self) -> None:
        self.columns = {name: [] for name in self.columns_of}

    def prompt(self, prompt: Sequence[int], weight: float) -> None:
        """Up to the end of a prompt that begins with what is there; weight 0: it is context."""
        more = list(prompt[len(self.ids) :])
        if weight and not self.ids:
            self.first_reply = len(more)
        self.reply(more, [weight] * len(more), {})

    def reply(self, ids: Sequence[int], weights: Sequence[float], columns: Mapping[str, Sequence[bool]]) -> None:
        self.ids += ids
        self.weights += weights
        for name, column in self.columns.items():
            column.extend(columns.get(name, [False] * len(ids)))

    def example(self, row: int) -> Example:
        weights = None if {*self.weights} <= {0.0, 1.0} else self.weights
        taught = [weight > 0 for weight in self.weights]
        return Example(self.ids, taught, self.columns, row, weights=weights, first_reply=self.first_reply)


def _cut_off(row: Demonstration, one: Turn, positions: Sequence[int]) -> Span:
    """What closes a message that was cut short is wrong, through the end of turn, which may stand behind the text."""
    kept = row.completion.rstrip()
    return positions[len(kept) - 1] + 1 if kept else 0, len(plain(one.reply)) + 1


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token shares a character with one of the spans."""
    return [any(low < stop and start < high for low, high in spans) for start, stop in offsets]
