"""A template's text → tokens, as they are at inference, each with how strongly it is taught."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from qtarget.data.example import Demonstration, Span, WeightedSpan
from qtarget.data.template import CLOSE, OPEN, Template, plain
from qtarget.errors import QTargetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def message_weight(row: Demonstration, turn: int) -> float:
    """Row weight × message weight of an assistant message; 0: it is context and not taught."""
    return row.weight * float(row.messages[turn].get("weight", 1.0))


def is_taught(row: Demonstration, supervise: str) -> bool:
    """Whether a row has a reply of a weight above 0; supervise: "all" count, or the "last" alone."""
    replies = [turn for turn, message in enumerate(row.messages) if message["role"] == "assistant"]
    return any(message_weight(row, turn) > 0 for turn in (replies if supervise == "all" else replies[-1:]))


def token_weights(offsets: Sequence[Span], spans: Sequence[WeightedSpan], weight: float) -> list[float]:
    """[T]: weight × that of the spans, for tokens at these character offsets of a reply; 1 where no span is touched.

    A token that shares a character with a span has its weight; where several touch one token, the largest counts.
    """
    return [weight * _factor(start, stop, spans) for start, stop in offsets]


def _factor(start: int, stop: int, spans: Sequence[WeightedSpan]) -> float:
    return max((factor for low, high, factor in spans if low < stop and start < high), default=1.0)


_CUT = "\ufdd2"
"""Where a text is cut: a noncharacter of Unicode, as OPEN and CLOSE are."""
_BEFORE = ("\n", "a", ".")
"""Characters to put before a text so that it isn't the beginning of one."""


@dataclass(frozen=True)
class TokenisedText:
    """Ids, and where each stands in the text without marks; locate: says where, None for tokenizers that can't tell."""

    ids: list[int]
    locate: Callable[[], list[Span]] | None

    @cached_property
    def offsets(self) -> list[Span] | None:
        """Made where they are asked for: few rows need them, and they cost more than the ids."""
        return None if self.locate is None else self.locate()


@dataclass(frozen=True)
class Tokeniser:
    """One text, one tokenisation: no piece of a text is read as if a text began there."""

    template: Template

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.template.tokenizer

    def ids(self, text: str) -> list[int]:
        return self.whole(text).ids

    def whole(self, text: str) -> TokenisedText:
        """Tokens of a text; in it, what stands between OPEN and CLOSE is no control token."""
        if OPEN not in text:
            return self._tokens(text)
        joined, begin = self._tokens(""), 0
        for piece, is_text in self._pieces(text):
            for part in self._parts(piece) if is_text else [piece]:
                tokens = self._inner(part, begin > 0) if is_text else self._tokens(part)
                joined, begin = _joined(joined, tokens, begin), begin + len(plain(part))
        return joined

    def reply(self, asked: str, prompt: Sequence[int], text: str) -> TokenisedText:
        """Tokens of a reply behind its prompt, apart from it, as a model writes them itself.

        Where a tokenizer marks the beginning of a text (the ▁ of Llama 2, Mistral and TinyLlama), the reply is no
        such beginning: its tokens are those that the whole text has behind the prompt's.
        """
        if not self._marks_beginnings:
            return self.whole(text)
        both = self.whole(asked + text)
        if both.ids[: len(prompt)] == list(prompt):
            return _behind(both, len(prompt), len(plain(asked)))
        return self._behind_another(text, self.whole)

    @cached_property
    def _marks_beginnings(self) -> bool:
        return self._tokens("\na").ids != [*self._tokens("\n").ids, *self._tokens("a").ids]

    def _behind_another(self, text: str, read: Callable[[str], TokenisedText]) -> TokenisedText:
        """The tokens of a text that begins nothing, as `read` has them."""
        for before in _BEFORE:
            first, both = read(before), read(before + text)
            if both.ids[: len(first.ids)] == first.ids:
                return _behind(both, len(first.ids), len(before))
        raise QTargetError(
            f"the tokenizer joins {plain(text)[:20]!r} with whatever stands before it, so that no reply can begin with "
            "it: let the reply begin otherwise"
        )

    def _parts(self, piece: str) -> list[str]:
        """A piece in parts that hold no token which a tokenizer can't read as text, as it can special ones."""
        cut = re.sub(f"({OPEN}.)([^{CLOSE}]*)", self._cut, piece)
        return cut.split(_CUT)

    def _cut(self, match: re.Match[str]) -> str:
        is_special = match[0].removeprefix(OPEN) in self.template.special
        return match[0] if is_special else f"{match[1]}{_CUT}{match[2]}"

    def _inner(self, piece: str, behind: bool) -> TokenisedText:
        """A piece without control tokens of the template; those it reads like are text."""
        as_text = partial(self._tokens, as_text=True)
        tokens = self._behind_another(piece, as_text) if behind and self._marks_beginnings else as_text(piece)
        for token in set(self.template.spelt(piece)):
            if self.tokenizer.convert_tokens_to_ids(token) in tokens.ids:
                raise QTargetError(
                    f"a message holds the control token {token!r}, which the tokenizer can't read as text"
                )
        return tokens

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """(piece, whether it holds what reads like a control token) in order.

        Such a piece goes from one control token of the template to the next, where the tokenizer itself splits a text.
        """
        begin = done = 0
        for low, high in [*((one.start, one.stop) for one in self.template.controls(text)), (len(text), len(text))]:
            if OPEN in text[begin:low]:
                yield text[done:begin], False
                yield text[begin:low], True
                done = low
            begin = high
        yield text[done:], False

    def _tokens(self, text: str, *, as_text: bool = False) -> TokenisedText:
        text = re.sub(f"[{OPEN}{CLOSE}]", "", text)
        if not text:
            return TokenisedText([], list if self.tokenizer.is_fast else None)
        if self._backend is not None:
            return _encoded(self._backend, text, as_text)
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text, **self._with_offsets)
        offsets = encoded.get("offset_mapping")
        return TokenisedText(list(encoded["input_ids"]), None if offsets is None else lambda: list(offsets))

    @property
    def _with_offsets(self) -> dict[str, bool]:
        return {"return_offsets_mapping": True} if self.tokenizer.is_fast else {}

    @cached_property
    def _backend(self) -> Tokenizer | None:
        """What transformers itself hands a text to, unless the class of the tokenizer does more: a fifth of the time of
        short rows is spent between the two.
        """
        from transformers import TokenizersBackend  # only a tokenizer's user pays for it

        kind = type(self.tokenizer)
        if not issubclass(kind, TokenizersBackend):
            return None
        plain_class = all(
            getattr(kind, name) is getattr(TokenizersBackend, name) for name in ("__call__", "_encode_plus")
        )
        return self.tokenizer.backend_tokenizer if plain_class else None


def _encoded(backend: Tokenizer, text: str, as_text: bool) -> TokenisedText:
    """As transformers has it of a single text, neither cut nor padded."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = as_text
    encoding = backend.encode(text, add_special_tokens=False)
    return TokenisedText(encoding.ids, lambda: list(encoding.offsets))


def _joined(tokens: TokenisedText, more: TokenisedText, characters: int) -> TokenisedText:
    """With the tokens of what stands behind so many characters."""
    ids = [*tokens.ids, *more.ids]
    if tokens.locate is None or more.locate is None:
        return TokenisedText(ids, None)
    return TokenisedText(ids, lambda: [*(tokens.offsets or ()), *_moved(more, characters)])


def _behind(tokens: TokenisedText, ids: int, characters: int) -> TokenisedText:
    locate = None if tokens.locate is None else lambda: _moved(tokens, -characters)[ids:]
    return TokenisedText(tokens.ids[ids:], locate)


def _moved(tokens: TokenisedText, characters: int) -> list[Span]:
    return [(low + characters, high + characters) for low, high in tokens.offsets or ()]
