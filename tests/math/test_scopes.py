"""What a design makes of the tokens of a sequence or a step, and what is said of the token that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import qtarget
from qtarget import Reference
from qtarget.design.reliance import ExcessLoss
from qtarget.design.weight import HighestEntropy, Position
from qtarget.errors import QTargetError
from qtarget.math.loss import token_table
from qtarget.math.scope_values import TokenTable, scope_values_of
from qtarget.math.target import divisor_part

N, V = 7, 5
SEQUENCES = torch.tensor([4, 4, 9, 4, 9, 9, 9])


def table(sequence_ids: Tensor | None = SEQUENCES) -> TokenTable:
    generator = torch.Generator().manual_seed(0)
    logp = {source: -torch.rand(N, generator=generator) for source in ("policy", "teacher")}
    return TokenTable(logp, torch.arange(N), sequence_ids, 0.25)


@pytest.mark.parametrize("scope", ["sequence", "step", "batch"])
def test_rho1_keeps_the_largest_excesses_of_each_group(scope: str) -> None:
    """By Python's own sort, sequence by sequence."""
    tokens = table()
    excess = (tokens.label_logp["teacher"] - tokens.label_logp["policy"]).tolist()
    groups = [(4, 9) if scope != "sequence" else (number,) for number in (4, 9)][: 1 if scope != "sequence" else 2]
    kept: set[int] = set()
    for group in groups:
        members = [index for index, number in enumerate(SEQUENCES.tolist()) if number in group]
        kept |= set(sorted(members, key=lambda index: -excess[index])[: round(0.4 * len(members))])
    got = ExcessLoss(keep=0.4, scope=scope).scope_value(tokens)
    assert set(got.nonzero().flatten().tolist()) == kept


def test_a_position_weight_goes_from_first_to_last_over_each_sequence() -> None:
    """Of 4: the tokens 0, 1, 3; of 9: 2, 4, 5, 6."""
    got = Position(first=2.0, last=0.5).scope_value(table())
    torch.testing.assert_close(got, torch.tensor([2.0, 1.25, 2.0, 0.5, 1.5, 1.0, 0.5]))
    lone = Position(first=2.0, last=0.5).scope_value(table(torch.arange(N)))
    assert lone.tolist() == [2.0] * N


def test_the_highest_entropies_are_those_of_the_source_that_is_named() -> None:
    """On tables that were joined: the entropies of policy and prior go with their tokens."""
    generator = torch.Generator().manual_seed(1)
    logits, prior = (torch.randn(N, V, generator=generator, dtype=torch.float64) for _ in range(2))
    design = replace(qtarget.load_design("sft"), weight=HighestEntropy(keep=0.3, source="prior", scope="step"))
    given = [
        token_table(
            logits[rows],
            torch.eye(V, dtype=torch.float64),
            torch.arange(N)[rows] % V,
            design,
            references={"prior": Reference.full(prior[rows].log_softmax(-1))},
        )
        for rows in (slice(0, 3), slice(3, N))
    ]
    (values,) = scope_values_of(design, TokenTable.join(given).to("cpu")).values()
    entropy = torch.distributions.Categorical(logits=prior).entropy()
    assert set(values.nonzero().flatten().tolist()) == set(entropy.topk(2).indices.tolist())


def test_a_table_that_moves_is_the_same_table() -> None:
    for ids in (SEQUENCES, None):
        tokens = table(ids)
        moved = tokens.to("cpu")
        assert (moved.sequence_ids is None) == (ids is None)
        assert torch.equal(moved.labels, tokens.labels)
        assert moved.progress == 0.25
    bare = TokenTable(table().label_logp, torch.arange(N)).to("cpu")
    assert (bare.sequence_ids, bare.progress) == (None, 0.0)
    assert table().to("meta").sequence_ids.device.type == "meta"  # type: ignore[union-attr]


def test_the_divisor_counts_tokens_that_are_pulled_or_adds_their_masses() -> None:
    mass = torch.tensor([0.0, 0.25, 1.0, 3.0])
    assert float(divisor_part(mass, "kept")) == 3
    assert float(divisor_part(mass, "weight_sum")) == 4.25


def test_the_ids_outside_the_vocabulary_are_named_and_no_others() -> None:
    logits, labels = torch.zeros(4, V), torch.tensor([0, 70, V - 1, V])
    with pytest.raises(QTargetError, match=r"got \[5, 70\]"):
        qtarget.dense_loss(logits, labels, qtarget.load_design("sft"))


def test_the_first_token_without_a_finite_loss_is_named() -> None:
    logits, labels = torch.zeros(4, V), torch.arange(4)
    logits[1:3] = torch.nan
    with pytest.raises(QTargetError, match="NaN logits at supervised token 1:"):
        qtarget.dense_loss(logits, labels, qtarget.load_design("sft"))
    with pytest.raises(QTargetError, match="NaN logits at supervised token 1:"):
        qtarget.dense_loss(logits, labels, qtarget.load_design("sft"), chunk_size=3)
    logits[1] = 0.0
    with pytest.raises(QTargetError, match="NaN logits at supervised token 2:"):
        qtarget.dense_loss(logits, labels, qtarget.load_design("sft"), chunk_size=2)


def test_a_reference_of_supervised_positions_has_as_many_rows() -> None:
    labels = torch.tensor([1, -100, 2])
    logits, logp = torch.zeros(3, V), torch.zeros(3, V).log_softmax(-1)
    of_two, of_three = (Reference.full(rows).of_supervised() for rows in (logp[:2], logp))
    qtarget.dense_loss(logits, labels, qtarget.load_design("kd"), references={"teacher": of_two})
    with pytest.raises(QTargetError, match="covers 3 supervised positions, and there are 2"):
        qtarget.dense_loss(logits, labels, qtarget.load_design("kd"), references={"teacher": of_three})
