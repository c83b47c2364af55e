"""The nll of every held-out row, bits per byte, and intervals that resample rows whole."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from training import other_policy
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.errors import QTargetError
from qtarget.evaluate.heldout import Evaluator
from qtarget.evaluate.row_losses import (
    RowLoss,
    by_row,
    described_rows,
    read_row_losses,
    row_metrics,
    save_row_losses,
    supervised_bytes,
)
from qtarget.evaluate.scores import Ratios, ratio_over_seeds
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


def test_one_seeds_interval_is_scipys_bootstrap_of_a_ratio() -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(1, 40, 60).astype(float)
    totals = sizes * generator.gamma(2.0, 0.5, 60)
    found = ratio_over_seeds(Ratios(totals[None], sizes[None]))

    def ratio(a: Any, b: Any, axis: int) -> Any:
        return a.sum(axis) / b.sum(axis)

    expected = bootstrap((totals, sizes), ratio, paired=True, vectorized=True, n_resamples=20_000, rng=0)
    assert found is not None
    assert found.mean == pytest.approx(totals.sum() / sizes.sum())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), rel=0.03)


@pytest.mark.parametrize("seeds", [1, 6])
def test_intervals_of_a_ratio_cover_the_truth(seeds: int) -> None:
    """Tokens of a row are alike, rows and seeds vary: the truth is the ratio of expectations, 1."""
    generator, covered, repeats = np.random.default_rng(0), 0, 150
    for repeat in range(repeats):
        sizes = np.tile(generator.integers(1, 30, (1, 80)).astype(float), (seeds, 1))
        level = 1 + 0.3 * generator.standard_normal((1, 80)) + 0.1 * generator.standard_normal((seeds, 80))
        level = level + (0.05 * generator.standard_normal((seeds, 1)) if seeds > 1 else 0.0)
        found = ratio_over_seeds(Ratios(sizes * level, sizes), seed=repeat)
        assert found is not None
        covered += found.low <= 1 <= found.high
    assert 0.88 <= covered / repeats <= 1


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
