"""Every noise: what it does to rows, and that its truth is kept wherever the tokens go."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, takewhile
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_chat import CHATML, PLAIN
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import compose_config, instantiate, options
from qtarget.data import noise as noises
from qtarget.data import verify
from qtarget.data.batch import Collate
from qtarget.data.chat import ChatFormat
from qtarget.data.edit import Edit, edited
from qtarget.data.example import Demonstration, Example
from qtarget.data.module import DataConfig, Prepared, prepare
from qtarget.data.noise import (
    Noise,
    NoNoise,
    ParaphraseStyle,
    RandomToken,
    Several,
    SpuriousMarker,
    SwappedDemonstration,
    Truncated,
    Typo,
    WrongAnswer,
)
from qtarget.data.noise.wording import FINAL
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.model.builtin import SPECIAL, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = "<|end|>"
TEXTS = [
    "Hello there, the sum is 42",
    "we take 7 apples, and leave 12 at home: 19",
    "Book keepers weep over 1000",
    "Ärger über Öl kostet 55",
    "first 3 then 4\n#### 12",
    "so it is 9",
]


def demonstrations(texts: Sequence[str], **spans: Any) -> list[Demonstration]:
    return [
        Demonstration(
            [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": text}], index, **spans
        )
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Given:
    """The same texts in every split."""

    texts: Sequence[str] = field(default_factory=lambda: TEXTS)

    def rows(self, split: str, count: int | None) -> list[Demonstration]:
        return demonstrations(self.texts)[:count]


def prepared(noise: Noise, texts: Sequence[str] = TEXTS, **changes: Any) -> Prepared:
    config = DataConfig(Given(texts), rows=len(texts), heldout_rows=2, noise=noise)
    return prepare(replace(config, contamination="allow", **changes), TOKENIZER, 1024)


def said(example: Example, *, wrong: bool | None = None) -> list[int]:
    """The supervised tokens of a row, or those of them that are wrong, or right."""
    flags = zip(example.input_ids, example.supervised, example.wrong, strict=True)
    return [token for token, supervised, marked in flags if supervised and wrong in (None, marked)]


def text_of(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(tokens))


# The truth of each noise, by an independent definition: what stands in the noisy row and not in the clean one


def shared(one: str, other: str) -> int:
    """How many characters two texts begin with."""
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])


def misspelt(clean: str, noisy: str) -> str:
    """By words: what stands between the beginning and the end that are as they were, or comes too soon."""
    found = ""
    for old, new in zip(re.findall(r"\w+|\W+", clean), re.findall(r"\w+|\W+", noisy), strict=True):
        if old != new:
            first = shared(old, new)
            last = shared(old[first:][::-1], new[first:][::-1])
            found += new[first : len(new) - last] or new[first]
    return found


def another_number(clean: str, noisy: str) -> str:
    if clean == noisy:
        return ""
    truth, wrong = (re.findall(r"-?\d+", text)[-1] for text in (clean, noisy))
    return wrong[min(shared(truth, wrong), len(wrong) - 1) :]


def anothers_words(clean: str, noisy: str) -> str:
    clean, noisy = clean.removesuffix(END), noisy.removesuffix(END)
    return "" if clean == noisy else noisy[min(shared(clean, noisy), len(noisy) - 1) :]


def phrases(clean: str, noisy: str) -> str:
    """The clean text stands in the noisy one in at most two pieces, one of them being its last line."""
    clean, noisy = clean.removesuffix(END), noisy.removesuffix(END)
    if clean in noisy:
        return noisy.replace(clean, "", 1)
    body, line = clean[: clean.rindex(FINAL)], clean[clean.rindex(FINAL) :]
    assert noisy.endswith(line)
    return noisy.removesuffix(line).replace(body, "", 1)


TRUTH: dict[str, tuple[Callable[[float, int], Noise], Callable[[str, str], str]]] = {
    "none": (lambda rate, seed: NoNoise(), lambda clean, noisy: ""),
    "wrong_answer": (lambda rate, seed: WrongAnswer(rate, 10, seed), another_number),
    "swapped_demonstration": (SwappedDemonstration, anothers_words),
    "typo": (Typo, misspelt),
    "truncated": (Truncated, lambda clean, noisy: "" if clean == noisy else END),
    "spurious_marker": (
        lambda rate, seed: SpuriousMarker(rate, "[§]", seed),
        lambda clean, noisy: "".join(re.findall(r"^\[§\] | \[§\]", noisy)),
    ),
    "paraphrase_style": (lambda rate, seed: ParaphraseStyle(rate, seed=seed), phrases),
}
TOKEN_NOISES = [
    RandomToken(0.3, span, how, seed) for span in (1, 3) for how in ("replace", "insert") for seed in (0, 1)
]


def test_every_noise_there_is_has_a_truth_here() -> None:
    assert {*TRUTH, "random_token", "several"} == set(options("data/noise"))
    assert {type(make(0.5, 0)) for make, _ in TRUTH.values()} | {RandomToken, Several, Noise} == {
        getattr(noises, name) for name in noises.__all__
    }


words = st.lists(st.sampled_from(["the", "book", "keeper", "Ärger", "is", "A", "zoo,", "x1"]), min_size=1, max_size=6)
completions = st.builds(lambda parts, number: " ".join([*parts, str(number)]), words, st.integers(-99, 1200))


@pytest.mark.parametrize("name", TRUTH)
@given(
    texts=st.lists(completions, min_size=3, max_size=9), rate=st.floats(0, 1), seed=st.integers(0, 99), data=st.data()
)
@settings(max_examples=25, deadline=None)
def test_wrong_tokens_are_those_that_the_noise_wrote(
    name: str, texts: list[str], rate: float, seed: int, data: st.DataObject
) -> None:
    """In whole rows, and in what is left of them after truncation, packed or not."""
    assume(name != "swapped_demonstration" or round(rate * len(texts)) != 1)
    make, truth = TRUTH[name]
    clean, noisy = (prepared(noise, texts).train for noise in (NoNoise(), make(rate, seed)))
    for old, new in zip(clean, noisy, strict=True):
        expected = truth(text_of(said(old)), text_of(said(new)))
        assert text_of(said(new, wrong=True)) == expected
        assert any(new.wrong) == (said(old) != said(new))
        assert is_within(said(new, wrong=False), said(old))
    lengths = sorted(map(len, noisy))
    limit = data.draw(st.integers(lengths[0], lengths[-1]))
    packing = data.draw(st.sampled_from([None, limit]))
    truncation = data.draw(st.sampled_from(["cut", "drop"]))
    left = prepared(make(rate, seed), texts, max_length=limit, truncation=truncation, packing=packing)
    kept = {row.row: row for row in noisy if truncation == "cut" or len(row) <= limit}
    assert {example.row for example in left.train} == set(kept)
    survived(left, kept, limit)


def is_within(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether the tokens stand in the other text in the same order."""
    rest = iter(whole)
    return all(token in rest for token in part)


def survived(left: Prepared, whole: dict[int, Example], limit: int) -> None:
    """Every label of every batch is marked as it was before truncation and packing."""
    found: dict[int, list[tuple[int, bool]]] = {}
    for row in left.rows:
        pack = row if isinstance(row, tuple) else (row,)
        batch = Collate(256)([row])  # type: ignore[list-item]
        for number, example in enumerate(pack):
            mine = (batch.sequence_ids == number) & (batch.labels != IGNORE)
            found[example.row] = list(
                zip(batch.labels[mine].tolist(), batch.columns["wrong"][mine].tolist(), strict=True)
            )
    for index, example in whole.items():
        hidden = sum(example.supervised[limit:])
        assert found[index] == marked_labels(example)[: len(said(example)) - hidden]
    assert left.counts["noisy"] == sum(any(marked for _, marked in labels) for labels in found.values())
    assert left.counts["noisy_tokens"] == sum(marked for labels in found.values() for _, marked in labels)


# Random tokens


def without_noise(example: Example, clean: Example) -> list[int]:
    """The tokens that a noise put in: those that are in the way when the clean row is read off, from the left."""
    expected, extra = iter([*clean.input_ids, None]), []
    wanted = next(expected)
    for token in example.input_ids:
        if token == wanted:
            wanted = next(expected)
        else:
            extra.append(token)
    assert wanted is None
    return extra


@pytest.mark.parametrize("noise", TOKEN_NOISES, ids=str)
def test_random_tokens_are_told_from_the_clean_row(noise: RandomToken) -> None:
    clean, noisy = prepared(NoNoise()).train, prepared(noise).train
    marked = [said(example, wrong=True) for example in noisy]
    for old, new, wrong in zip(clean, noisy, marked, strict=True):
        if noise.how == "replace":
            changed = [b for a, b in zip(old.input_ids, new.input_ids, strict=True) if a != b]
            assert new.supervised == old.supervised
        else:
            changed = without_noise(new, old)
        assert wrong == changed
        assert new.input_ids[-1] == tiny_tokenizer().eos_token_id
        assert not new.wrong[-1]
    total = sum(len(said(example)) - 1 for example in clean)
    assert sum(map(len, marked)) == round(0.3 * total)
    assert not {token for wrong in marked for token in wrong} & {*range(256, 256 + len(SPECIAL))}


def runs(flags: Sequence[bool]) -> list[int]:
    """Lengths of the groups of consecutive true flags."""
    return [len(run) for run in "".join("x" if flag else " " for flag in flags).split()]


@pytest.mark.parametrize("how", ["replace", "insert"])
def test_a_random_place_has_as_many_tokens_as_asked_for(how: str) -> None:
    noisy = prepared(RandomToken(0.05, span=4, how=how), ["x" * 60] * 20).train
    lengths = [length for example in noisy for length in runs(example.wrong)]
    assert max(lengths, key=lengths.count) == 4
    starts = {[*example.wrong].index(True) % 4 for example in noisy if any(example.wrong)}
    assert len(starts) > 2  # anywhere, and not on a grid


def test_random_tokens_are_drawn_from_the_whole_plain_vocabulary() -> None:
    noisy = prepared(RandomToken(1.0), ["x" * 400] * 20).train
    drawn = [token for example in noisy for token in said(example, wrong=True)]
    assert set(drawn) == set(range(256)) - {tiny_tokenizer().convert_tokens_to_ids("x")}


def test_inserted_tokens_count_towards_the_length_of_a_row() -> None:
    longest = max(map(len, prepared(NoNoise()).train))
    with pytest.raises(QTargetError, match=f"longer than {longest} tokens"):
        prepared(RandomToken(0.5, how="insert"), max_length=longest)
    cut = prepared(RandomToken(0.5, how="insert"), max_length=longest, truncation="cut").train
    assert max(map(len, cut)) == longest


def test_columns_stay_with_their_tokens() -> None:
    """What was put in is not critical; what was put in the place of a critical token is."""
    rows = demonstrations(["answer 1234"] * 8, spans={"critical": ((7, 11),)})
    chat = ChatFormat(tiny_tokenizer())
    encoded = [example for row in rows for example in chat.encode(row)]
    for how in ("insert", "replace"):
        for example in RandomToken(0.5, how=how).tokens(encoded, chat):
            critical = [token for token, on in zip(example.input_ids, example.columns["critical"], strict=True) if on]
            assert len(critical) == 4
            assert how == "replace" or text_of(critical) == "1234"


# Shares and seeds

BY_ROWS = [name for name in TRUTH if name not in ("none", "typo")]


@pytest.mark.parametrize("name", BY_ROWS)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_rows_is_exact(name: str, rate: float) -> None:
    rows = demonstrations([f"row {index} is {index + 100}" for index in range(37)])
    changed = [old != new for old, new in zip(rows, TRUTH[name][0](rate, 3)(rows), strict=True)]
    assert sum(changed) == round(rate * 37)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.55, 1.0])
def test_the_share_of_words_is_exact(rate: float) -> None:
    clean, noisy = demonstrations(TEXTS), Typo(rate)(demonstrations(TEXTS))
    pairs = [
        (old, new)
        for a, b in zip(clean, noisy, strict=True)
        for old, new in zip(re.findall(r"\w+", a.completion), re.findall(r"\w+", b.completion), strict=True)
    ]
    assert sum(old != new for old, new in pairs) == round(rate * len(pairs))
    assert all(abs(len(old) - len(new)) <= 1 for old, new in pairs)


MAKERS: dict[str, Callable[[int], Noise]] = {
    **{name: (lambda seed, make=make: make(0.5, seed)) for name, (make, _) in TRUTH.items() if name != "none"},
    "random_token": lambda seed: RandomToken(0.3, seed=seed),
    "several": lambda seed: Several({"a": Typo(0.3, seed), "b": RandomToken(0.3, seed=seed)}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_makes_a_noise(name: str) -> None:
    texts = [f"row {index} is {index + 100}" for index in range(30)]
    first, again, other = (prepared(MAKERS[name](seed), texts).train for seed in (0, 0, 1))
    assert first == again
    assert [*map(said, first)] != [*map(said, other)]


@pytest.mark.parametrize("name", MAKERS)
def test_held_out_and_reserve_rows_are_never_touched(name: str) -> None:
    clean, noisy = (prepared(noise, reserve_rows=4) for noise in (NoNoise(), MAKERS[name](0)))
    assert noisy.heldout == clean.heldout
    assert noisy.heldout_rows == clean.heldout_rows
    assert [example.input_ids for example in noisy.train[-4:]] == [example.input_ids for example in clean.train[-4:]]
    assert not any(any(example.wrong) for example in noisy.train[-4:])
    assert any(any(example.wrong) for example in noisy.train[:-4])


@pytest.mark.parametrize(("one", "other"), [*permutations(BY_ROWS, 2)][::3])
def test_kinds_of_noise_choose_rows_apart_from_each_other(one: str, other: str) -> None:
    """With the same seed too: a marker must not tell which answers are wrong."""
    rows = demonstrations([f"row {index} is {index + 100}" for index in range(1000)])
    chosen = [
        {a.row for a, b in zip(rows, TRUTH[name][0](0.5, 0)(rows), strict=True) if a != b} for name in (one, other)
    ]
    assert abs(len(chosen[0] & chosen[1]) - 250) < 50  # six standard deviations


# One noise at a time


def test_nobody_keeps_their_own_completion() -> None:
    rows = demonstrations([f"{index:03}" for index in range(40)])
    for rate, seed in ((0.05, 0), (0.5, 1), (1.0, 2)):
        noisy = SwappedDemonstration(rate, seed)(rows)
        moved = [(old, new) for old, new in zip(rows, noisy, strict=True) if old != new]
        assert len(moved) == round(rate * 40)
        assert sorted(new.completion for _, new in moved) == sorted(old.completion for old, _ in moved)
        assert all(new.prompt == old.prompt and new.completion != old.completion for old, new in moved)


def test_completions_that_are_equal_by_chance_are_right() -> None:
    noisy = SwappedDemonstration(1.0)(demonstrations(["same"] * 6))
    assert not any(row.wrong for row in noisy)
    with pytest.raises(QTargetError, match="chose 1 of 5 rows"):
        SwappedDemonstration(0.2)(demonstrations(["a", "b", "c", "d", "e"]))


def test_columns_come_with_a_swapped_completion() -> None:
    rows = [
        replace(row, spans={"critical": ((len(row.completion) - 2, len(row.completion)),)})
        for row in demonstrations(["it is 17", "so we get 23"])
    ]
    for row in SwappedDemonstration(1.0)(rows):
        ((low, high),) = row.spans["critical"]
        assert row.completion[low:high] in ("17", "23")


@pytest.mark.parametrize(("template", "closing"), [(None, END), (CHATML, END), (PLAIN, "\n" + END)])
def test_what_closes_a_turn_too_soon_is_wrong(template: str | None, closing: str) -> None:
    """Whether the end of turn is the template's, or put behind what it writes."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    rows = demonstrations(["one two three ", " four five six", "seven eight"])
    chat = ChatFormat(tokenizer)
    for old, new in zip(rows, Truncated(1.0)(rows), strict=True):
        assert old.completion.startswith(new.completion)
        assert old.completion[len(new.completion)] == " "
        (example,) = chat.encode(new)
        assert text_of(said(example, wrong=True)) == closing
        assert not any(chat.encode(old)[0].wrong)
        assert example.wrong[-1]


def test_an_answer_of_one_word_is_cut_inside_and_one_of_a_character_never() -> None:
    rows = demonstrations(["42", "7", "123"])
    short = [row.completion for row in Truncated(0.67)(rows)]
    assert short[0] == "4"
    assert short[1] == "7"
    assert short[2] in ("1", "12")
    with pytest.raises(QTargetError, match=r"in 3 of 3 rows and only 2 can take it: set data\.noise\.rate to 0\.667"):
        Truncated(1.0)(rows)


def test_a_typo_is_one_of_four_slips() -> None:
    rows = demonstrations(["keeper"] * 400)
    found = {row.completion for row in Typo(1.0)(rows)}
    assert {"ekeper", "keepre"} <= found  # swapped
    assert {"eeper", "keepr"} <= found  # dropped
    assert {"kkeeper", "keeperr"} <= found  # doubled
    assert {"jeeper", "keepet"} <= found  # the key beside
    assert "keeper" not in found
    assert all(any(row.wrong) for row in Typo(1.0)(rows))


def test_a_token_is_wrong_that_holds_a_character_of_the_noise() -> None:
    """With tokens of several characters."""
    words = ["keepers", "weeping", "over", "books", "and", "apples"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words)] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = tiny_tokenizer().chat_template
    chat = ChatFormat(fast)
    rows = demonstrations([" ".join([*words[n:], *words[:n]]) for n in range(6)])
    assert any(len(fast.decode(token)) > 3 for token in said(chat.encode(rows[0])[0]))
    for row in Several({"typo": Typo(0.4), "marker": SpuriousMarker(0.5)})(rows):
        (example,), place = chat.encode(row), 0
        for token, marked in [*zip(example.input_ids, example.wrong, strict=True)][-len(said(example)) : -1]:
            end = place + len(fast.decode(token))
            assert marked == any(low < end and place < high for low, high in row.wrong)
            place = end
        assert place == len(row.completion)


@pytest.mark.parametrize("data", ["arithmetic", "gsm_symbolic"])
def test_verifiers_accept_what_only_reads_differently(data: str) -> None:
    source = instantiate(compose_config("train", [f"data={data}"]).data.source)
    clean = source.rows("train", 30)
    noisy = ParaphraseStyle(1.0)(clean)
    assert verify.final_answer(f"17 {FINAL} 3") == "3"
    for old, new in zip(clean, noisy, strict=True):
        assert old.completion != new.completion
        assert new.entry is not None
        assert verify.judge(new.completion, new.entry).correct


# Edits


def test_edits_keep_every_span_with_its_characters() -> None:
    (row,) = demonstrations(["abc def ghi"])
    row = replace(row, wrong=((4, 7),), spans={"critical": ((0, 3), (8, 11)), "gone": ((5, 6),)})
    new = edited(
        row, [Edit(0, 0, ">> "), Edit(3, 3, "!"), Edit(4, 7, "D"), Edit(8, 9, "GG", (1, 2)), Edit(11, 11, ".")]
    )
    assert new.completion == ">> abc! D GGhi."

    def pieces(spans: Any) -> list[str]:
        return [new.completion[low:high] for low, high in spans]

    assert pieces(new.spans["critical"]) == ["abc", "GGhi"]
    assert pieces(new.spans["gone"]) == ["D"]
    assert pieces(new.wrong) == [">> ", "!", "D", "D", "G", "."]
    assert edited(row, [Edit(4, 11, "")]).spans == {"critical": ((0, 3),), "gone": ()}
    assert edited(row, [Edit(4, 11, "")]).wrong == ()
    assert edited(row, []) == row


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_edits_of_any_kind_move_marks_as_if_each_character_carried_its_own(data: st.DataObject) -> None:
    """Benchmarks what is replaced, a character is marked if it was marked before."""
    text = data.draw(st.text("abc ", min_size=1, max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6, unique=True)))
    spans = [(low, high) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
    (row,) = demonstrations([text])
    row = replace(row, wrong=tuple(spans))
    low = data.draw(st.integers(0, len(text)))
    high = data.draw(st.integers(low, len(text)))
    put = data.draw(st.text("xyz", max_size=4))
    new = edited(row, [Edit(low, high, put)])
    assert new.completion == text[:low] + put + text[high:]

    def marks(row: Demonstration) -> list[bool]:
        return [any(a <= place < b for a, b in row.wrong) for place in range(len(row.completion))]

    before, after = marks(row), marks(new)
    assert after == before[:low] + [True] * len(put) + before[high:]


# Several at once


@pytest.mark.parametrize(("first", "second"), [*permutations([*TRUTH][1:], 2)])
def test_composed_noises_keep_both_truths(first: str, second: str) -> None:
    texts = [f"{index} and a hundred come to {index + 100}" for index in range(12)]
    parts = {"first": TRUTH[first][0](0.5, 0), "second": TRUTH[second][0](0.5, 1)}
    clean, both = prepared(NoNoise(), texts).train, prepared(Several(parts), texts).train
    for old, new in zip(clean, both, strict=True):
        assert is_within(said(new, wrong=False), said(old))
        assert any(new.wrong) == (said(old) != said(new))


@pytest.mark.parametrize("name", ["typo", "wrong_answer", "swapped_demonstration", "truncated", "paraphrase_style"])
def test_a_later_noise_leaves_the_earlier_truth_where_it_was(name: str) -> None:
    """What is left when the marker is taken out again is the earlier noise alone, marks and all."""
    texts = [f"Row number {index} comes to {index + 100}" for index in range(30)]
    first = TRUTH[name][0](0.5, 0)
    alone = prepared(first, texts).train
    both = prepared(Several({"a": first, "b": SpuriousMarker(0.6, "§", 1)}), texts).train
    assert sum("§" in text_of(said(example)) for example in both) == 18
    for one, two in zip(alone, both, strict=True):
        marker = re.search("^§ | §".encode(), text_of(said(two)).encode())
        low, high = marker.span() if marker else (0, 0)
        labels = marked_labels(two)
        assert all(marked for _, marked in labels[low:high])
        assert labels[:low] + labels[high:] == marked_labels(one)


def marked_labels(example: Example) -> list[tuple[int, bool]]:
    flags = zip(example.input_ids, example.supervised, example.wrong, strict=True)
    return [(token, marked) for token, supervised, marked in flags if supervised]


def test_words_come_before_tokens_whatever_the_order() -> None:
    parts = {"tokens": RandomToken(0.2), "words": WrongAnswer(1.0)}
    noisy = prepared(Several(parts)).train
    clean = prepared(WrongAnswer(1.0)).train
    for old, new in zip(clean, noisy, strict=True):
        for before, after, was, now in zip(old.input_ids, new.input_ids, old.wrong, new.wrong, strict=True):
            assert now == (was or before != after)


# Configurations

SMALL = ["model=tiny", "trainer.max_steps=1", "data.rows=20", "data.heldout_rows=2", "data.max_length=1024"]
PARTS = ["data/noise=several", "+data/noise@data.noise.parts.a=typo", "+data/noise@data.noise.parts.b=random_token"]


@pytest.mark.parametrize("data", ["arithmetic", "gsm_symbolic"])
@pytest.mark.parametrize("name", options("data/noise"))
def test_every_noise_goes_with_every_data_set(name: str, data: str) -> None:
    chosen = PARTS if name == "several" else [f"data/noise={name}"]
    cfg = compose_config("train", [f"data={data}", "data.rows=20", "data.heldout_rows=2", *chosen])
    made = prepare(instantiate(cfg.data), tiny_tokenizer(), 4096)
    assert bool(made.counts["noisy"]) == (name != "none")
    assert bool(made.counts["noisy_tokens"]) == (name != "none")


def test_parts_come_in_the_order_of_the_command_line() -> None:
    cfg = compose_config("train", [*PARTS, "data.noise.parts.b.rate=0.5"])
    assert instantiate(cfg.data.noise) == Several({"a": Typo(0.1), "b": RandomToken(0.5)})
    turned = compose_config("train", [PARTS[0], *PARTS[:0:-1]])
    assert list(instantiate(turned.data.noise).parts) == ["b", "a"]


def test_a_run_with_several_noises(workdir: Any) -> None:
    (workdir / "conf" / "data" / "noise").mkdir(parents=True)
    (workdir / "conf" / "data" / "noise" / "mine.yaml").write_text(
        "defaults: [typo@parts.typo, wrong_answer@parts.answer, _self_]\n"
        "_target_: qtarget.data.noise.Several\nparts: {answer: {rate: 0.2}}\n"
    )
    assert qtarget_cli(["train", "data/noise=mine", *SMALL]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Several({}), r"add \+data/noise@data.noise.parts.NAME=typo"),
        (lambda: Several({"a": {"rate": 0.1}}), "must hold at least one noise by name"),
        (lambda: Typo(1.5), r"data.noise.rate must lie in \[0, 1\], got 1.5"),
        (lambda: Typo(seed="hot"), "data.noise.seed must be a whole number of at least 0, got 'hot'"),
        (lambda: WrongAnswer(seed="hot"), "data.noise.seed must be a whole number"),
        (lambda: SwappedDemonstration(-1), r"data.noise.rate must lie in \[0, 1\]"),
        (lambda: Truncated("x"), r"data.noise.rate must lie in \[0, 1\]"),
        (lambda: RandomToken(2), r"data.noise.rate must lie in \[0, 1\]"),
        (lambda: RandomToken(span=0), "data.noise.span must be a whole number of at least 1"),
        (lambda: RandomToken(how="delete"), "data.noise.how must be one of replace, insert"),
        (lambda: SpuriousMarker(marker=""), "data.noise.marker must be text"),
        (lambda: SpuriousMarker(marker=5), "data.noise.marker must be text"),
        (lambda: ParaphraseStyle(openings=[]), "data.noise.openings must be text"),
        (lambda: ParaphraseStyle(openings="Sure!"), "data.noise.openings must be a list"),
        (lambda: ParaphraseStyle(closings=["#### 3"]), "data.noise.closings must leave ####"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        make()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data/noise=several"], "add +data/noise@data.noise.parts.NAME=typo"),
        (["data/noise=several", "+data.noise.parts.a.rate=0.1"], "data.noise.parts.a: its yaml"),
        (["data/noise=typo", "data.noise.rate=1.5"], "data.noise.rate must lie in [0, 1], got 1.5"),
        (["data/noise=typos"], "unknown data/noise 'typos': did you mean 'typo'?"),
    ],
)
def test_what_no_noise_can_be_is_told_before_training(
    workdir: Any, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert qtarget_cli(["train", *overrides, *SMALL]) == 2
    assert message in capsys.readouterr().err
