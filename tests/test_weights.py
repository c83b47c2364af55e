"""How strongly each token is taught: row weight × message weight × span weight, from the row to the gradient."""

from __future__ import annotations

from typing import Any

import pytest

from qtarget.data.chat import ChatFormat
from qtarget.data.edit import Edit, edited
from qtarget.data.example import Demonstration, Example
from qtarget.data.noise import RandomToken
from qtarget.errors import QTargetError
from qtarget.model.tiny import tiny_tokenizer


def row(*replies: tuple[str, float | None], **known: Any) -> Demonstration:
    """A conversation with these replies and their weights."""
    messages: list[dict[str, Any]] = []
    for text, weight in replies:
        said = {"role": "assistant", "content": text}
        messages += [{"role": "user", "content": "2+2?"}, said if weight is None else {**said, "weight": weight}]
    return Demonstration(messages, row=1, **known)


def encoded(demonstration: Demonstration, supervise: str = "all") -> Example:
    result: Any = ChatFormat(tiny_tokenizer(), supervise).encode(demonstration)
    return result if isinstance(result, Example) else result[-1]


def taught(example: Example) -> list[tuple[str, float]]:
    """Supervised text, and the weight of each piece of the same weight."""
    tokenizer, before = tiny_tokenizer(), False
    pieces: list[tuple[list[int], float]] = []
    weights = example.weights or [float(flag) for flag in example.supervised]
    for token, weight in zip(example.input_ids, weights, strict=True):
        if weight and pieces and pieces[-1][1] == weight and before:
            pieces[-1][0].append(token)
        elif weight:
            pieces.append(([token], weight))
        before = bool(weight)
    return [(str(tokenizer.decode(ids)), weight) for ids, weight in pieces]


def test_a_reply_of_weight_0_is_context() -> None:
    example = encoded(row(("5", 0), ("4", 1)))
    assert taught(example) == [("4<|end|>", 1.0)]
    assert example.weights is None  # nothing but 0 and 1: the mask says it all
    assert "5<|end|>" in str(tiny_tokenizer().decode(example.input_ids))


def test_rows_without_weights_are_what_they_were() -> None:
    plain, ones = encoded(row(("5", None), ("4", None))), encoded(row(("5", 1), ("4", 1.0)))
    assert plain == ones
    assert plain.weights is None


def test_weights_of_row_message_and_span_multiply() -> None:
    example = encoded(row(("5", 0.5), ("44 55", None), weight=2.0, weights=((3, 5, 0.25),)))
    assert taught(example) == [("5<|end|>", 1.0), ("44 ", 2.0), ("55", 0.5), ("<|end|>", 2.0)]


def test_a_span_of_weight_0_is_context() -> None:
    example = encoded(row(("4 because", None), weights=((1, 9, 0.0),)))
    assert taught(example) == [("4", 1.0), ("<|end|>", 1.0)]
    assert [weight > 0 for weight in example.weights or map(float, example.supervised)] == list(example.supervised)


def test_of_spans_that_touch_one_token_the_largest_weight_counts() -> None:
    example = encoded(row(("44", None), weights=((0, 2, 0.5), (0, 1, 3.0))))
    assert taught(example)[0][1] == 3.0


def test_a_row_that_teaches_nothing_is_refused_with_its_number() -> None:
    with pytest.raises(QTargetError, match="row 1: no token to supervise"):
        encoded(row(("5", 0)))
    with pytest.raises(QTargetError, match="row 1: no token to supervise"):
        encoded(row(("5", 1), ("4", 0)), supervise="last")


def test_weights_stay_with_their_characters_when_noise_edits_the_reply() -> None:
    before = row(("the 42", None), weights=((4, 6, 3.0),))
    assert edited(before, [Edit(0, 0, "Well, ")]).weights == ((10, 12, 3.0),)
    assert edited(before, [Edit(4, 6, "17")]).weights == ((4, 6, 3.0),)
    assert edited(before, [Edit(3, 6, "")]).weights == ()


@pytest.mark.parametrize("how", ["replace", "insert"])
def test_random_tokens_keep_the_weights_beside_their_tokens(how: str) -> None:
    example = encoded(row(("5 and 6 and 7", 0.5), ("4", 2.0)))
    (spoilt,) = RandomToken(rate=0.5, how=how, seed=1).tokens([example], ChatFormat(tiny_tokenizer()))
    assert spoilt.weights is not None
    assert len(spoilt.weights) == len(spoilt.input_ids) == len(spoilt.supervised)
    assert [weight > 0 for weight in spoilt.weights] == list(spoilt.supervised)
    kept = [
        (token, weight)
        for token, weight, wrong in zip(spoilt.input_ids, spoilt.weights, spoilt.wrong, strict=True)
        if not wrong
    ]
    whole = list(zip(example.input_ids, example.weights or (), strict=True))
    assert all(pair in whole for pair in kept)
