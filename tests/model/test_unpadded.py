"""A batch read without its padding is the batch read with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from training import batches, eight_rows, module, one_step, tiny_policy
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MambaConfig, MistralConfig

from qtarget.model import unpadded
from qtarget.model.policy import Policy
from qtarget.model.unpadded import KINDS, SLACK, Groups, attention, by_products

PADDED = "flash_attention_2"
"""A kind of attention under which padding is read."""


def policy(kind: str, dtype: torch.dtype) -> Policy:
    made = tiny_policy()
    made.attention = kind
    made.to(dtype)
    return made


def uneven(lengths: list[tuple[int, ...]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random ids of rows of demonstrations, padded on the right, their positions, and what is no padding."""
    width = max(map(sum, lengths))
    ids = torch.randint(1, 250, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    positions = torch.zeros_like(ids)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for row, inside in enumerate(lengths):
        counted = torch.cat([torch.arange(length) for length in inside])
        positions[row, : len(counted)] = counted
        positions[row, len(counted) :] = torch.arange(width - len(counted))
        real[row, : len(counted)] = True
    return ids, positions, real


UNEVEN = {
    "one each": [(40,), (3,), (17,), (38,), (1,), (25,)],
    "several": [(20, 18), (5, 5, 3), (40,), (1, 1)],
    "all alike": [(9,), (9,), (9,)],
    "one row": [(30,)],
}


@pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_hidden_states_are_those_read_with_padding(
    kind: str, dtype: torch.dtype, limit: float, lengths: list[tuple[int, ...]]
) -> None:
    ids, positions, real = uneven(lengths)
    trained = policy(kind, dtype)
    assert trained.skips_padding
    expected = policy(PADDED, dtype)(ids, positions, lengths)
    got = trained(ids, positions, lengths)
    assert (got - expected)[real].norm() <= limit * expected[real].norm()
    assert not got[~real].any()


@pytest.mark.parametrize("packing", [None, 240])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_step_has_the_same_gradient(kind: str, dtype: torch.dtype, limit: float, packing: int | None) -> None:
    prepared, steps = eight_rows(packing), []
    for name in (kind, PADDED):
        trained = module("dft")
        trained.policy.attention = name
        trained.policy.to(dtype)
        steps.append(one_step(trained, batches(prepared, batch_size=len(prepared.rows))))
    (got, means), (expected, expected_means) = steps
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= limit * gradient.norm(), name
    assert means == pytest.approx(expected_means, rel=limit)


def test_no_demonstration_sees_another() -> None:
    """Other tokens in one leave the states of all others as they are, and change its own."""
    lengths = [(20, 18), (5, 5, 3), (40,)]
    ids, positions, _ = uneven(lengths)
    trained = policy("auto", torch.float64)
    before = trained(ids, positions, lengths)
    ids[1, 5:10] = (ids[1, 5:10] + 1) % 250
    moved = (trained(ids, positions, lengths) - before).abs().amax(-1) > 1e-12
    assert moved.nonzero().tolist() == [[1, place] for place in range(5, 10)]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_stands_in_one_group(seed: int) -> None:
    drawn = torch.randint(1, 60, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
    lengths = [tuple(drawn[:2]), *((length,) for length in drawn[2:])]
    _, positions, real = uneven(lengths)
    groups = Groups.of(lengths, real.shape[1])
    assert sorted(groups.source[groups.real].tolist()) == real.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(groups.row(positions)[0][groups.real], groups.positions[0][groups.real])
    assert sum(groups.widths()) == len(groups.source) <= sum(drawn) + SLACK * len(groups.sizes)
    assert [length for _, length in groups.sizes] == sorted({length for _, length in groups.sizes}, reverse=True)


def test_groups_as_they_were_written_down() -> None:
    """11 and 9 tokens share a group with two positions of padding; 1 would bring ten more."""
    groups = Groups.of([(9,), (1,), (11,)], 11)
    assert groups.sizes == ((2, 11), (1, 1))
    assert groups.source.tolist() == [*range(22, 33), *range(11), 11]
    assert groups.real.tolist() == [*range(11), *range(11, 20), 22]


@pytest.mark.parametrize("in_cache", [1, 2**20])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_products_are_attention_as_it_is_defined(
    in_cache: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpadded, "IN_CACHE", in_cache)
    rows, heads, kept, length, width = 2, 6, 2, 5, 4
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(rows, heads, length, width, dtype=torch.float64, generator=draw)
    key, value = torch.randn(2, rows, kept, length, width, dtype=torch.float64, generator=draw)
    got = by_products(query, key, value, 0.3, dropout)
    assert got.shape == (rows, length, heads, width)
    for row in range(rows):
        for head in range(heads):
            for at in range(length):
                shared = head // (heads // kept)
                scores = [0.3 * float(query[row, head, at] @ key[row, shared, to]) for to in range(at + 1)]
                total = sum(map(math.exp, scores))
                mixed: Any = sum(math.exp(score) / total * value[row, shared, to] for to, score in enumerate(scores))
                assert torch.allclose(got[row, at, head], mixed * (1 - dropout), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "dtype", "length", "plain"),
    [
        ("auto", torch.bfloat16, 512, True),
        ("auto", torch.bfloat16, 513, False),
        ("auto", torch.float32, 10, False),
        ("eager", torch.float32, 4096, True),
        ("sdpa", torch.bfloat16, 10, False),
    ],
)
def test_which_attention_is_made_of_plain_products(kind: str, dtype: torch.dtype, length: int, plain: bool) -> None:
    assert Groups.of([(length,)], length, kind).by_products(length, dtype) is plain


def tiny(config: Any) -> Policy:
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config), config.vocab_size)


SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}
ATTENDING: dict[str, Any] = {**SIZES, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "skips"),
    [
        (LlamaConfig(**ATTENDING), True),
        (MistralConfig(**ATTENDING, sliding_window=None), True),
        (MistralConfig(**ATTENDING, sliding_window=4), False),
        (BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=4), False),
        (MambaConfig(**SIZES, state_size=4), False),
    ],
    ids=["llama", "mistral", "mistral with a window", "bloom", "mamba"],
)
def test_padding_is_left_out_only_where_nothing_but_attention_mixes_tokens(config: Any, skips: bool) -> None:
    made, lengths = tiny(config), [(14,), (5,), (9,)]
    assert made.skips_padding is skips
    ids, _, real = uneven(lengths)
    ids %= 64
    expected = torch.cat([made(row[:length][None])[0] for row, (length,) in zip(ids, lengths, strict=True)])
    assert torch.allclose(made(ids, None, lengths)[real], expected, atol=1e-5)


def test_padding_is_read_where_a_forward_is_compiled_or_done_again() -> None:
    assert not Policy(tiny_policy().lm, 256, compiled=True).skips_padding
    checkpointed = tiny_policy()
    checkpointed.lm.activation_checkpointing_enable({"use_reentrant": False})
    assert not checkpointed.skips_padding


def test_the_trial_leaves_mode_random_state_and_attention_as_they_are() -> None:
    trained = tiny_policy().train()
    state, kind = torch.get_rng_state(), trained.decoder.config._attn_implementation
    assert trained.skips_padding
    assert trained.training
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.decoder.config._attn_implementation == kind


def test_a_layer_that_asks_for_more_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    groups = Groups.of([(3,)], 3)
    with pytest.raises(NotImplementedError, match="knows no softcap"):
        attention(torch.nn.Module(), states, states, states, None, groups=groups, softcap=30.0)


def test_a_layer_with_a_mask_of_its_own_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="knows no mask"):
        attention(torch.nn.Module(), states, states, states, torch.zeros(1, 1, 3, 3), groups=Groups.of([(3,)], 3))
