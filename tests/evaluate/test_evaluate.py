"""Generation, verdicts, scores and their intervals."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

import qtarget
from qtarget.data.example import Demonstration
from qtarget.evaluate import scores
from qtarget.evaluate.generate import generate
from qtarget.evaluate.prompting import answer_problems, without_thought
from qtarget.evaluate.samples import (
    Sample,
    answer_metrics,
    paired,
    read_samples,
    save_samples,
    values_of,
)
from qtarget.evaluate.sampling import GREEDY, Sampling, seed_of
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.policy import Policy

VOCAB = len(tiny_tokenizer())
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [30, 31]]


def peaked_policy(vocab_size: int = VOCAB) -> Policy:
    """The tiny model with logits far enough apart that temperature and top_p matter."""
    lm = tiny_model(tiny_config(vocab_size)).eval()
    with torch.no_grad():
        lm.model.norm.weight.mul_(6)
    return Policy(lm, VOCAB).eval()


def written(policy: Policy, sampling: Sampling = GREEDY, prompts: Any = PROMPTS, **options: Any) -> list[Any]:
    """Prompt by prompt the ids of its samples."""
    given = {"ends": [256], "pad": 256, "new_tokens": 6, "batch": 4} | options
    return [[one.ids for one in answers] for answers in generate(policy, prompts, sampling=sampling, **given)]


def kept_by_top_p(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest likeliest tokens that hold top_p, renormalised."""
    order = p.argsort(descending=True)
    count = int((p[order].cumsum(0) < top_p).sum()) + 1
    kept = torch.zeros_like(p)
    kept[order[:count]] = p[order[:count]]
    return kept / kept.sum()


def by_hand(policy: Policy, prompt: list[int], ends: list[int], sampling: Sampling, sample: int) -> list[int]:
    """Six tokens at most, one at a time, no cache, no padding."""
    noise = torch.Generator().manual_seed(seed_of(sampling.seed, prompt, sample))
    ids: list[int] = []
    while len(ids) < 6:
        logits = policy.lm(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1, :VOCAB]
        if sampling.temperature:
            p = kept_by_top_p((logits / sampling.temperature).softmax(-1), sampling.top_p)
            logits = p / -torch.rand(VOCAB, generator=noise).log()  # the first of racing exponential clocks
        token = int(logits.argmax())
        if token in ends:
            break
        ids.append(token)
    return ids


# Generation


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(3, 0.7, 0.9, seed=5)], ids=["greedy", "sampled"])
def test_answers_are_those_of_one_token_at_a_time_whatever_the_batch(batch: int, sampling: Sampling) -> None:
    policy = peaked_policy()
    numbers = range(sampling.samples)
    with torch.no_grad():
        free = [[by_hand(policy, prompt, [], sampling, number) for number in numbers] for prompt in PROMPTS]
        end = free[2][0][3]  # a token that some answer really writes, as the end
        expected = [[by_hand(policy, prompt, [end, 999], sampling, number) for number in numbers] for prompt in PROMPTS]
    assert written(policy, sampling, ends=[end, 999], batch=batch) == expected
    found = generate(policy, PROMPTS, ends=[end, 999], pad=256, new_tokens=6, batch=batch, sampling=sampling)
    assert [[one.ended for one in row] for row in found] == [[len(ids) < 6 for ids in row] for row in expected]
    assert any(len(ids) < 6 for row in expected for ids in row)


def test_answers_do_not_depend_on_the_order_of_prompts_or_on_their_company() -> None:
    policy, sampling = peaked_policy(), Sampling(4, 1.0, 0.95)
    expected = dict(zip(map(tuple, PROMPTS), written(policy, sampling, batch=3), strict=True))
    for order in (PROMPTS[::-1], PROMPTS[2:], [PROMPTS[1], PROMPTS[3], PROMPTS[0]]):
        assert written(policy, sampling, list(order), batch=8) == [expected[tuple(prompt)] for prompt in order]
    assert len({tuple(ids) for ids in expected[tuple(PROMPTS[0])]}) == 4
    assert written(policy, replace(sampling, seed=1)) != list(expected.values())
    fewer = written(policy, replace(sampling, samples=2))
    assert fewer == [answers[:2] for answers in expected.values()]  # more samples leave the first ones as they were
    seeds = {seed_of(seed, prompt, number) for seed in (0, 1) for prompt in PROMPTS for number in (0, 1)}
    assert len(seeds) == 16


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.5, 0.9)])
def test_drawn_tokens_have_the_frequencies_of_the_tempered_truncated_softmax(temperature: float, top_p: float) -> None:
    policy, draws = peaked_policy(), 4000
    sampling = Sampling(draws, temperature, top_p)
    with torch.no_grad():
        logits = policy.lm(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    p = kept_by_top_p((logits / temperature).double().softmax(-1), top_p).numpy()
    rows = written(policy, sampling, PROMPTS[:1], ends=[999], new_tokens=1, batch=1000)[0]
    counts = np.bincount([ids[0] for ids in rows], minlength=VOCAB)
    assert counts[p == 0].sum() == 0
    common = p * draws >= 5
    seen, expected = [*counts[common], counts[~common].sum()], [*p[common], p[~common].sum()]
    used = [(s, e * draws) for s, e in zip(seen, expected, strict=True) if e > 0]
    assert len(used) > 5
    assert scipy.stats.chisquare(*map(list, zip(*used, strict=True))).pvalue > 0.01


def test_bf16_rounds_with_the_shape_of_a_batch(record_property: Any) -> None:
    """How many answers differ between batches is recorded, not promised to be none."""
    policy, sampling = peaked_policy(), Sampling(8, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone, together = (written(policy, sampling, batch=batch) for batch in (1, 32))
    pairs = [(a, b) for one, other in zip(alone, together, strict=True) for a, b in zip(one, other, strict=True)]
    record_property("flipped answers", sum(a != b for a, b in pairs))
    assert len(pairs) == 32


def test_rows_that_pad_the_vocabulary_are_never_written() -> None:
    policy = peaked_policy(VOCAB + 60)
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight[VOCAB:] *= 8
    hot = Sampling(20, 3.0)
    for sampling in (Sampling(), hot):
        assert all(token < VOCAB for row in written(policy, sampling, batch=80) for ids in row for token in ids)
    free = Policy(policy.lm, VOCAB + 60)
    assert any(token >= VOCAB for row in written(free, hot, batch=80) for ids in row for token in ids)


def test_a_checkpoints_own_generation_settings_stand_aside() -> None:
    policy = peaked_policy()
    expected = written(policy)
    policy.lm.generation_config.repetition_penalty = 50.0
    policy.lm.generation_config.suppress_tokens = [token for row in expected for ids in row for token in ids]
    assert written(policy) == expected
    assert policy.lm.generation_config.repetition_penalty == 50.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "eval.samples must be a whole number of at least 1"),
        ({"samples": 4}, "eval.temperature=0 takes the likeliest one"),
        ({"top_p": 0.9}, "eval.temperature=0 takes the likeliest one"),
        ({"temperature": -1}, r"eval.temperature must lie in \[0, ∞\)"),
        ({"temperature": 1, "top_p": 0}, r"eval.top_p must lie in \(0, 1\]"),
        ({"temperature": 1, "top_p": 1.5}, r"eval.top_p must lie in \[0, 1\]"),
        ({"seed": 0.5}, "eval.seed must be a whole number"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(qtarget.QTargetError, match=message):
        Sampling(**settings)


# Scores of a prompt


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample() -> None:
    for samples in range(1, 7):
        for right, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            verdicts = [True] * right + [False] * (samples - right)
            expected = np.mean([any(chosen) for chosen in itertools.combinations(verdicts, k)])
            assert scores.pass_at_k([right], samples, k)[0] == pytest.approx(expected)
    assert scores.pass_at_k([0, 3, 8], 8, 1) == pytest.approx([0, 3 / 8, 1])


def test_the_majority_is_that_of_counting_with_ties_taken_equally_often() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        answers = [str(answer) for answer in generator.choice(["", "1", "2", "3"], size=generator.integers(1, 7))]
        correct = [answer == "2" for answer in answers]
        tied = [a for a in answers if a and all(answers.count(a) >= answers.count(b) for b in answers if b)]
        expected = len([a for a in tied if a == "2"]) / len(tied) if tied else 0.0  # tied answers stand equally often
        assert scores.majority(answers, correct) == pytest.approx(expected)
    assert scores.majority(["", "", "", "7"], [False, False, False, True]) == 1.0
    assert scores.majority(["", ""], [False, False]) == 0.0
    assert scores.distinct(["1", "1", "", "2"]) == 2


# Intervals


def test_the_interval_of_zeros_and_ones_is_wilsons() -> None:
    """Against the closed form: centre (p + z²/2n)/(1 + z²/n), half width z·√(p(1−p)/n + z²/4n²)/(1 + z²/n)."""
    score = scores.interval(np.array([1.0] * 12 + [0.0] * 28))
    z, n, p = 1.959963984540054, 40, 0.3
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert score.mean == 0.3
    assert (score.low, score.high) == pytest.approx((centre - half, centre + half))


def shares(generator: np.random.Generator, count: int, samples: int = 8) -> scores.Values:
    """avg@k of prompts whose chances differ, as those of easy and hard problems do; their mean is 0.3."""
    return generator.binomial(samples, generator.beta(0.6, 1.4, size=count)) / samples


def bca(values: scores.Values, resamples: int, seed: int) -> tuple[float, float]:
    """Efron 1987: bias from the share of resampled means below the mean; acceleration of a mean: skewness/(6·√n)."""
    generator, count = np.random.default_rng(seed), len(values)
    means = values[generator.integers(count, size=(resamples, count))].mean(1)
    bias = scipy.stats.norm.ppf(((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2)
    acceleration = scipy.stats.skew(values) / (6 * count**0.5)
    ends = bias + scipy.stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(means, scipy.stats.norm.cdf(bias + ends / (1 - acceleration * ends)))
    return low, high


def test_the_bootstrap_is_bias_corrected_and_accelerated() -> None:
    """On skewed values, where the percentile interval without its corrections is off by more; the same each time."""
    values = np.array([0.0] * 25 + [0.125, 0.125, 0.5, 1.0, 1.0])
    score = scores.interval(values)
    assert (score.low, score.high) == pytest.approx(bca(values, scores.RESAMPLES, seed=0), rel=1e-12)
    drawn = {"n_resamples": scores.RESAMPLES, "rng": np.random.default_rng(0)}
    plain = scipy.stats.bootstrap((values,), np.mean, method="percentile", **drawn).confidence_interval
    assert plain.high < score.high - 0.02
    assert scores.interval(values) == score


def test_the_bootstrap_of_many_prompts_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = shares(np.random.default_rng(4), 50)
    whole = scores.interval(values)
    monkeypatch.setattr(scores, "RESAMPLED_AT_ONCE", 7 * 50)
    assert scores.interval(values) == whole


def test_intervals_cover_the_truth_19_times_in_20(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    generator, runs = np.random.default_rng(1), 400
    found = [scores.interval(shares(generator, 80)) for _ in range(runs)]
    covered = sum(score.low <= 0.3 <= score.high for score in found) / runs
    assert 0.92 < covered < 0.98
    assert np.mean([score.high - score.low for score in found]) < 0.2


def test_intervals_of_prompts_that_all_say_the_same() -> None:
    right, wrong = scores.interval(np.ones(50)), scores.interval(np.zeros(50))
    assert (right.mean, right.high, wrong.mean, wrong.low) == (1, 1, 0, 0)
    assert 0.9 < right.low == pytest.approx(1 - wrong.high)
    one = scores.interval(np.array([1.0]))
    assert one.low < 0.5
    half = scores.interval(np.array([0.5]))  # one prompt says hardly anything
    assert (half.low, half.high) == pytest.approx((0.025, 0.975))
    many = scores.interval(np.full(1000, 0.5))
    assert (many.low, many.high) == pytest.approx((0.5, 0.5), abs=2e-3)
    assert many.low < 0.5 < many.high


def test_values_that_differ_by_rounding_alone_are_one_value() -> None:
    """0.3 − 0.1 and 0.7 − 0.5: a bootstrap of the two would claim an interval of width 0."""
    a, b = np.array([0.1, 0.5] * 4), np.array([0.3, 0.7] * 4)
    assert np.ptp(b - a) > 0
    score = scores.difference(a, b).score
    even = scores.interval(np.full(8, 0.2), -1.0, 1.0)
    assert (score.low, score.high) == pytest.approx((even.low, even.high))
    assert score.high - score.low > 0.1


def test_two_prompts_have_an_interval_and_one_has_no_evidence() -> None:
    two = scores.difference(np.array([0.25, 0.0]), np.array([0.5, 0.75]))
    assert (two.score.low, two.score.high) == (0.25, 0.75)
    assert two.p_value == 0.5  # of ++, +−, −+ and −−, ++ and −− are as far
    assert scores.difference(np.array([0.0]), np.array([1.0])).p_value == 1.0


def test_pairing_takes_the_luck_of_the_problems_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    generator, covered, narrower = np.random.default_rng(2), 0, 0
    for _ in range(200):
        chances = generator.beta(0.5, 0.5, size=60)
        a, b = (generator.binomial(8, 0.8 * chances + shift) / 8 for shift in (0.0, 0.1))
        found, alone = scores.difference(a, b).score, [scores.interval(values) for values in (a, b)]
        unpaired = math.hypot(*(score.high - score.low for score in alone))
        narrower += found.high - found.low < 0.8 * unpaired
        covered += found.low <= 0.1 <= found.high
    assert narrower == 200
    assert 0.91 < covered / 200 < 0.99


def test_the_sign_flip_test_is_exact_and_holds_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.zeros(6), np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.0])
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    exact = (np.abs(signs @ b) >= b.sum() - 1e-9).mean()
    assert scores.difference(a, b).p_value == exact
    tenths = scores.difference(np.zeros(3), np.array([0.1, 0.2, -0.3]))  # sums to 5.6e-17
    assert tenths.p_value == 1.0
    many = scores.difference(np.zeros(60), np.tile(b, 10)).p_value
    assert many == 1 / (1 + scores.RESAMPLES)
    assert scores.difference(b, b).p_value == 1.0
    assert scores.difference(b, b).score.mean == 0.0
    monkeypatch.setattr(scores, "RESAMPLES", 200)
    generator = np.random.default_rng(3)
    low = [scores.difference(*generator.binomial(4, 0.5, size=(2, 30)) / 4).p_value < 0.1 for _ in range(300)]
    assert 0.05 < np.mean(low) < 0.15


# From verdicts to metrics


def samples(*prompts: str, source: str = "heldout", right: str = "r") -> list[Sample]:
    """One letter an answer, `right` being the right one and a space none."""
    return [
        Sample(
            source,
            row,
            number,
            f"prompt {row}",
            right,
            letter,
            letter.strip(),
            letter == right,
            1.0 * (letter == right),
            number + 1,
            letter != "x",
        )
        for row, letters in enumerate(prompts)
        for number, letter in enumerate(letters)
    ]


def test_holms_correction_is_that_of_published_examples() -> None:
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") and the worked example of Wikipedia's Holm–Bonferroni method."""
    assert scores.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert scores.holm([0.5, 0.6]) == [1.0, 1.0]
    assert scores.holm([0.04, 0.04, 0.9]) == pytest.approx([0.12, 0.12, 0.9])
    assert scores.holm([0.2]) == [0.2]
    assert scores.holm([]) == []


def test_metrics_of_drawn_answers() -> None:
    found = answer_metrics(samples("rrab", "xxrr", "    "))
    expected = {
        "accuracy": 1 / 3,
        "score": 1 / 3,
        "avg@4": 1 / 3,
        "pass@2": (5 / 6 + 5 / 6 + 0) / 3,
        "pass@4": 2 / 3,
        "maj@4": (1 + 0.5 + 0) / 3,
        "distinct@4": (3 + 2 + 0) / 3,
        "length": 2.5,
        "cut_off": 2 / 12,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["pass@4_low"] < 2 / 3 < found["pass@4_high"]
    bounded = ("accuracy", "score", "avg@4", "pass@2", "pass@4", "maj@4")
    assert set(found) == set(expected) | {f"{name}_{end}" for name in bounded for end in ("low", "high")}


def test_metrics_of_one_answer_each() -> None:
    found = answer_metrics(samples("r", "a", "x"))
    assert set(found) == {"length", "cut_off"} | {
        f"{name}{end}" for name in ("accuracy", "score") for end in ("", "_low", "_high")
    }
    partly = [replace(sample, score=0.5, final="") for sample in samples("ar", "aa")]
    assert answer_metrics(partly)["score"] == 0.5
    assert "maj@2" not in answer_metrics(partly)  # nothing names an answer
    assert answer_metrics([]) == {}


def test_runs_are_paired_by_the_text_of_their_prompts() -> None:
    a = samples("ra", "aa", "rr", "ra")
    b = [replace(sample, row=sample.row + 10) for sample in samples("rr", "ra", "rr")][::-1]
    found = paired(a, b)
    assert (found.shared, found.only_a, found.only_b) == (3, 1, 0)
    assert (found.a, found.b, found.difference.score.mean) == pytest.approx((0.5, 5 / 6, 1 / 3))
    assert paired(a, b, "pass@2").difference.score.mean == pytest.approx(1 / 3)
    assert paired(a, samples("r", "r", "r", "r")).b == 1.0  # accuracy, whatever the number of samples
    with pytest.raises(qtarget.QTargetError, match="no metric 'pass@2': they have accuracy"):
        paired(a, samples("r"), "pass@2")
    with pytest.raises(qtarget.QTargetError, match="share no prompt"):
        paired(a, samples("r", source="aime24"))
    twice = [replace(sample, prompt="the same") for sample in a]
    assert paired(twice, twice).shared == 4


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    ends = "a\u2028b\x85c\x0bd\re\n"  # all that Python takes for ends of lines
    written_samples = [replace(sample, answer=ends, prompt=ends) for sample in samples("r ", "xé")]
    save_samples(tmp_path, written_samples)
    assert read_samples(tmp_path / "samples.jsonl") == written_samples
    assert json.loads((tmp_path / "samples.jsonl").read_text().split("\n")[0])["correct"] is True
    (tmp_path / "other.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(qtarget.QTargetError, match="holds no samples"):
        read_samples(tmp_path / "other.jsonl")


def test_problems_are_answered_and_judged_sample_by_sample() -> None:
    entry = {"verifier": "reasoning_gym", "answer": "5", "metadata": {"source_dataset": "chain_sum"}}
    turns = [
        {"role": "system", "content": "add"},
        {"role": "user", "content": "2+3"},
        {"role": "assistant", "content": "5"},
    ]
    rows = [Demonstration(turns, row=row, entry=entry) for row in (7, 9)]
    policy, sampling = peaked_policy(), Sampling(3, 1.0)
    found = answer_problems(policy, tiny_tokenizer(), rows, new_tokens=4, batch=2, sampling=sampling, source="sums")
    assert Counter(sample.row for sample in found) == {7: 3, 9: 3}
    assert {sample.source for sample in found} == {"sums"}
    assert found[0].prompt == "add\n\n2+3"
    assert found[0].expected == "5"
    assert [sample.sample for sample in found] == [0, 1, 2] * 2
    assert all(sample.tokens <= 4 and (sample.ended or sample.tokens == 4) for sample in found)
    assert values_of([found])["accuracy"].shape == (1,)


THOUGHTS = [
    ("", "<think>\n5?</think>\n\n6", "6"),
    ("<think>\n", "5? no: </think>\n\n6", "6"),  # DeepSeek-R1 and QwQ: the prompt opens it
    ("<think>\n", "5? no, 6", ""),  # out of tokens within it
    ("<think>\n\n</think>\n\n", "6", "6"),  # Qwen3 that is asked not to think
    ("", "<|START_THINKING|>5?<|END_THINKING|><|START_RESPONSE|>6<|END_RESPONSE|>", "6"),  # Command A Reasoning
    ("", "<|START_THINKING|>5?", ""),
    ("<|inner_prefix|>", "5?<|inner_suffix|>6", "6"),  # Apertus
    ("", "6", "6"),
    ("", "<b>6</b>", "<b>6</b>"),
]
MARKING = ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"]


@pytest.mark.parametrize(("prompt", "answer", "said"), THOUGHTS)
def test_a_thought_is_no_answer_where_the_prompt_opens_it_or_special_tokens_mark_it(
    prompt: str, answer: str, said: str
) -> None:
    """Decoding without special tokens drops the marks, and the thought would be judged as the answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKING, "<|inner_prefix|>", "<|inner_suffix|>"]})
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"2+4?{prompt}", answer)]
    assert without_thought(tokenizer, *ids).strip() == said
