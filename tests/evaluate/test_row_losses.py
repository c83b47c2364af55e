"""The nll of every held-out row, bits per byte, and intervals that resample rows whole."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training import other_policy
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.errors import QTargetError
from qtarget.evaluate import scores
from qtarget.evaluate.heldout import Evaluator
from qtarget.evaluate.ratios import Ratios, ratio_over_seeds
from qtarget.evaluate.row_losses import (
    RowLoss,
    by_row,
    described_rows,
    read_row_losses,
    row_metrics,
    save_row_losses,
    supervised_bytes,
)
from qtarget.model.builtin import tiny_tokenizer

REPLIES = ("Grüße, 7 € bitte.", "no", "漢字 and a longer reply, so that rows differ in length")


def rows(replies: tuple[str, ...] = REPLIES) -> list[Demonstration]:
    talks = [[{"role": "user", "content": "why?"}, {"role": "assistant", "content": reply}] for reply in replies]
    return [Demonstration(talk, row=10 + place) for place, talk in enumerate(talks)]


def evaluator(made: list[Demonstration], **options: Any) -> Evaluator:
    chat = ChatFormat(tiny_tokenizer())
    groups = [chat.encode(row) for row in made]
    examples = [example for group in groups for example in group]
    of = [place for place, group in enumerate(groups) for _ in group]
    autocast = partial(torch.autocast, "cpu", enabled=False)
    return Evaluator(tiny_tokenizer(), made, examples, None, autocast, row_of_example=of, batch_size=2, **options)


@torch.no_grad()
def nats(example: Example) -> float:
    """By transformers alone, one example at a time."""
    ids = torch.tensor([example.input_ids])
    logp = other_policy().eval().lm(input_ids=ids).logits[0].log_softmax(-1)
    kept = torch.tensor(example.supervised)[1:]
    return float(-logp[:-1][kept].gather(1, ids[0, 1:][kept][:, None]).sum())


def test_every_row_has_the_nll_that_transformers_gives_it() -> None:
    made = rows()
    judge = evaluator(made)
    found = judge(other_policy())
    assert [loss.row for loss in found.row_losses] == [10, 11, 12]
    assert [loss.nll for loss in found.row_losses] == pytest.approx([nats(e) for e in judge.examples], rel=1e-5)
    assert [loss.tokens for loss in found.row_losses] == [sum(e.supervised) for e in judge.examples]
    total, tokens = (sum(getattr(loss, name) for loss in found.row_losses) for name in ("nll", "tokens"))
    assert found.metrics["nll"] == pytest.approx(total / tokens)


def test_a_validation_and_a_split_test_keep_their_own_rows() -> None:
    judge = evaluator(rows(), test=[2, 0])
    assert [loss.row for loss in judge(other_policy()).row_losses] == [12, 10]
    assert [loss.row for loss in judge(other_policy(), limit=1).row_losses] == [10]


def test_bits_per_byte_divides_by_the_bytes_of_the_replies() -> None:
    """The definition, without tokens: bits of all replies with their ends, by the length of their UTF-8."""
    judge = evaluator(rows())
    bits = sum(nats(example) for example in judge.examples) / math.log(2)
    size = sum(len(reply.encode()) for reply in REPLIES)
    assert judge(other_policy()).metrics["bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level() -> PreTrainedTokenizerBase:
    """Byte-level BPE of many bytes a token, under ChatML, as Qwen and SmolLM2 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*REPLIES, "assistant user why"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=CHATML
    )


def metaspace() -> PreTrainedTokenizerBase:
    """Marks beginnings with ▁ and decodes a first token without it, as those of Llama 2 and TinyLlama do."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,?€", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: place for place, token in enumerate(["<s>", "</s>", "<unk>", *letters])}
    made = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [tiny_tokenizer, byte_level, metaspace])
@pytest.mark.parametrize("reply", [*REPLIES, " begins with a space", "a\n\n  b", ""])
def test_the_bytes_of_a_reply_are_the_same_under_every_tokenizer(make: Any, reply: str) -> None:
    tokenizer = make()
    before, inside = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("why? ", f"why? x{reply}"))
    start = len(tokenizer("why? x", add_special_tokens=False)["input_ids"])
    assert inside[: len(before)] == before
    ids = [*inside, tokenizer.eos_token_id]
    supervised = [place >= start for place in range(len(ids))]
    example = Example(ids, supervised, {"wrong": [False] * len(ids)}, row=0)
    assert supervised_bytes(tokenizer, example) == len(reply.encode())


def test_each_supervised_turn_has_its_bytes_and_context_has_none() -> None:
    talk = [
        {"role": "user", "content": "a question that nobody counts"},
        {"role": "assistant", "content": "first é", "weight": 0.0},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "second ß"},
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "third"},
    ]
    judge = evaluator([Demonstration(talk, row=0)])
    (loss,) = judge(other_policy()).row_losses
    assert loss.bytes == len("second ßthird".encode())


def test_a_row_has_one_id_under_two_tokenizers_and_another_where_it_is_taught_otherwise() -> None:
    (row,) = rows(("a reply",))
    heavier = Demonstration(row.messages, row=10, weight=2.0)

    def name(tokenizer: PreTrainedTokenizerBase, one: Demonstration) -> str:
        examples = ChatFormat(tokenizer).encode(one)
        (found,) = described_rows(tokenizer, [one], examples, [0] * len(examples))
        return found.id

    tiny = name(tiny_tokenizer(), row)
    assert tiny == name(byte_level(), row)
    assert tiny == name(tiny_tokenizer(), Demonstration(row.messages, row=99))  # where it stands doesn't matter
    assert tiny != name(tiny_tokenizer(), heavier)
    assert tiny != name(tiny_tokenizer(), rows(("a repl!",))[0])


def test_only_the_last_turn_is_another_row_than_all_turns() -> None:
    talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    row, tokenizer = Demonstration(talk, row=0), tiny_tokenizer()
    ids = set()
    for supervise in ("all", "last"):
        examples = ChatFormat(tokenizer, supervise).encode(row)
        ids |= {one.id for one in described_rows(tokenizer, [row], examples, [0] * len(examples))}
    assert len(ids) == 2


def test_rows_of_one_text_are_told_apart_by_their_number() -> None:
    losses = [RowLoss("a", 0, 2.0, 4, 8), RowLoss("b", 1, 1.0, 2, 2), RowLoss("a", 5, 3.0, 4, 8)]
    assert by_row(losses, "nll") == {("a", 0): (2.0, 4.0), ("b", 0): (1.0, 2.0), ("a", 1): (3.0, 4.0)}
    assert by_row(losses, "bits_per_byte")["a", 1] == (3.0 / math.log(2), 8.0)
    assert row_metrics(losses)["bits_per_byte"] == pytest.approx(6.0 / math.log(2) / 18)
    assert row_metrics([RowLoss("a", 0, 2.0, 4, 0)]) == {}


def test_row_losses_are_read_as_they_were_written(tmp_path: Path) -> None:
    losses = [RowLoss("a", 0, 2.5, 4, 8), RowLoss("b", 1, math.inf, 2, 2)]
    save_row_losses(tmp_path, losses)
    whole, broken = read_row_losses(tmp_path / "heldout_nll.jsonl")
    assert whole == losses[0]
    assert math.isnan(broken.nll)
    (tmp_path / "heldout_nll.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(QTargetError, match="holds no nll of rows"):
        read_row_losses(tmp_path / "heldout_nll.jsonl")


# Intervals


def test_one_seeds_interval_is_that_of_a_studentised_bootstrap() -> None:
    """Done once more by hand: rows drawn one by one, the spread of each draw that of its influences."""
    generator = np.random.default_rng(3)
    sizes = generator.integers(1, 40, 60).astype(float)
    totals = sizes * generator.gamma(2.0, 0.5, 60)
    found = ratio_over_seeds(Ratios(totals[None], sizes[None]))

    def mean_and_error(rows: Any) -> tuple[float, float]:
        ratio = totals[rows].sum() / sizes[rows].sum()
        influence = (totals[rows] - ratio * sizes[rows]) / sizes[rows].mean()
        return ratio, influence.std() / math.sqrt(len(rows))

    mean, error = mean_and_error(np.arange(60))
    draws = [mean_and_error(generator.integers(0, 60, 60)) for _ in range(10_000)]
    low, high = np.quantile([(one - mean) / own for one, own in draws], [0.025, 0.975])
    assert found is not None
    assert found.mean == pytest.approx(totals.sum() / sizes.sum())
    assert (mean - found.low, found.high - mean) == pytest.approx((high * error, -low * error), rel=0.1)
    assert found.high - mean > mean - found.low  # rows of great loss may have been missed, those of none were not


def skewed(seeds: int, generator: np.random.Generator) -> Ratios:
    """60 rows whose losses are lognormal, as rows' are; the truth, over rows and seeds, is 1."""
    size = np.exp(generator.normal(3, 0.5, 60)).round() + 1
    level = [
        np.exp(sigma * generator.normal(size=shape) - sigma**2 / 2)
        for sigma, shape in ((0.8, 60), (0.2, (seeds, 60)), (0.1 * (seeds > 1), (seeds, 1)))
    ]
    return Ratios(level[0] * level[1] * level[2] * size, np.tile(size, (seeds, 1)))


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_intervals_of_skewed_losses_cover_the_truth_19_times_in_20(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Percentiles of a bootstrap cover it 0.89, 0.91 and 0.93 times."""
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    generator, covered, repeats = np.random.default_rng(0), 0, 400
    for repeat in range(repeats):
        found = ratio_over_seeds(skewed(seeds, generator), seed=repeat)
        assert found is not None
        covered += found.low <= 1 <= found.high
    assert 0.92 <= covered / repeats <= 0.975


@pytest.mark.parametrize("rows", [2, 9])
def test_few_rows_have_students_interval(rows: int) -> None:
    level = np.random.default_rng(1).gamma(2.0, 1.0, rows)
    found = ratio_over_seeds(Ratios(level[None], np.ones((1, rows))))
    assert found is not None
    ends = scipy.stats.t.interval(0.95, rows - 1, level.mean(), scipy.stats.sem(level))
    assert (found.low, found.high) == pytest.approx(ends)


def test_rows_of_which_one_alone_differs_have_an_interval_of_numbers() -> None:
    """A draw without that row has no spread to divide by."""
    found = ratio_over_seeds(Ratios(np.eye(1, 40), np.ones((1, 40))))
    assert found is not None
    assert -0.1 < found.low < 0 < found.mean < found.high < 0.1


def test_seeds_that_scatter_are_students_and_rows_alone_have_no_say() -> None:
    """All rows of a seed are alike: five seeds are five values, whatever the rows."""
    each = np.array([1.0, 1.2, 0.9, 1.1, 1.05])
    found = ratio_over_seeds(Ratios(np.tile(each[:, None], (1, 40)), np.ones((5, 40))))
    assert found is not None
    ends = scipy.stats.t.interval(0.95, 4, each.mean(), scipy.stats.sem(each))
    assert (found.low, found.high) == pytest.approx(ends)


def test_differences_take_the_luck_of_the_rows_out() -> None:
    """Rows differ by nats and a run is better by 0.01 on each: its own interval is wide, the difference's is not."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 30, (1, 200)).astype(float)
    level = generator.gamma(2.0, 1.0, (1, 200))
    worse, better = (Ratios(sizes * (level + shift), sizes) for shift in (0.01, 0.0))
    alone, apart = ratio_over_seeds(better), ratio_over_seeds(better, worse)
    assert alone is not None
    assert apart is not None
    assert alone.high - alone.low > 0.2
    assert (apart.mean, apart.low, apart.high) == pytest.approx((-0.01, -0.01, -0.01))


def test_what_has_no_interval() -> None:
    one_row = Ratios(np.ones((1, 1)), np.ones((1, 1)))
    assert ratio_over_seeds(one_row) is None
    run = Ratios(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3)))
    itself = ratio_over_seeds(run, run)
    assert itself is not None
    assert (itself.mean, itself.low, itself.high) == (0, 0, 0)
