"""The supervised tokens of a call: how they are cut, where sequences and documents end, and who keeps earlier names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import World, load_design

import qtarget
from qtarget import Head, Mixture, Reference
from qtarget.design.residual import Self
from qtarget.design.weight import Constant
from qtarget.math.loss import token_table
from qtarget.math.scope_values import TokenTable, scope_values_of
from qtarget.math.tokens import EarlierTokens, Tokens, default_chunk, slices
from qtarget.math.view import TokenView

NONE = qtarget.IGNORE
V = 11


def seen_at_once(sizes: list[int]) -> Mixture:
    """Plain SFT that notes how many tokens it sees at a time."""

    def reliance(view: TokenView) -> Tensor:
        sizes.append(len(view.labels))
        return torch.ones_like(view.label_logp)

    return Mixture(reliance, Self(), Constant())


@pytest.mark.parametrize("vocab", [2**18, 2**19, 2**20 + 8])
@pytest.mark.parametrize("behind_a_head", [False, True])
def test_a_design_sees_4_mebibytes_of_logits_at_a_time_or_one_token(vocab: int, behind_a_head: bool) -> None:
    """docs/loss.md; on a CPU, in float32: 4, 2 and 1 of 9 tokens, as evenly as may be."""
    sizes: list[int] = []
    labels = torch.arange(9)
    if behind_a_head:
        qtarget.linear_loss(torch.ones(9, 1), torch.zeros(vocab, 1), labels, seen_at_once(sizes))
    else:
        qtarget.dense_loss(torch.zeros(1, vocab).expand(9, vocab), labels, seen_at_once(sizes))
    assert sum(sizes) == 9
    assert max(sizes) == {2**18: 3, 2**19: 2, 2**20 + 8: 1}[vocab]


def test_a_chunk_holds_128_mebibytes_of_logits_or_one_token() -> None:
    """docs/configuration.md, loss.chunk_size."""
    assert [default_chunk(vocab) for vocab in (1024, 151_936, 2**25, 2**26)] == [2**15, 220, 1, 1]


@pytest.mark.parametrize(("count", "size", "parts"), [(0, 3, []), (7, 3, [3, 3, 1]), (9, 4, [3, 3, 3]), (5, 9, [5])])
def test_parts_are_as_even_as_may_be(count: int, size: int, parts: list[int]) -> None:
    cut = slices(count, size)
    assert [part.stop - part.start for part in cut] == parts
    assert [row for part in cut for row in range(part.start, part.stop)] == list(range(count))


def test_rows_are_sequences_whatever_stands_before_them() -> None:
    """Labels [2, 3, 4] are six sequences of four tokens."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, V, generator=generator), torch.randint(V, (6, 4), generator=generator)
    labels[0, 1] = NONE
    prior = {"prior": Reference.full(torch.randn(24, V, generator=generator).log_softmax(-1))}
    flat = qtarget.dense_loss(logits, labels, load_design("iw_sft"), references=prior)
    high = qtarget.dense_loss(
        logits.reshape(2, 3, 4, V), labels.reshape(2, 3, 4), load_design("iw_sft"), references=prior
    )
    assert torch.equal(flat.weight, high.weight)
    assert flat.weight.unique().numel() == 6


def test_earlier_tokens_are_those_of_the_same_document() -> None:
    """Two documents in a row, each with positions of its own."""
    ids = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]])
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    earlier = EarlierTokens.of(ids, positions)[torch.tensor([1, 2, 4, 8])].ids()
    assert earlier.tolist() == [
        [5, 6, NONE, NONE, NONE],
        [NONE, NONE, 7, NONE, NONE],
        [NONE, NONE, 7, 8, 9],
        [1, 2, 3, 4, NONE],
    ]


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (2, 2, 2)])
def test_sequences_of_joined_tables_stay_apart(sizes: tuple[int, ...]) -> None:
    """Each micro-batch counts its sequences from 0; two tokens each."""
    tables = [
        TokenTable(
            {"policy": torch.full((2 * size,), float(size))}, torch.arange(2 * size), torch.arange(2 * size) // 2
        )
        for size in sizes
    ]
    joined = TokenTable.join(tables)
    sequence, count = joined.sequences()
    assert count == sum(sizes)
    assert torch.bincount(sequence).tolist() == [2] * count
    assert all(sequence[0::2] == sequence[1::2])
    assert joined.label_logp["policy"].tolist() == [float(size) for size in sizes for _ in range(2 * size)]
    assert TokenTable.join([replace(table, sequence_ids=None) for table in tables]).sequence_ids is None


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_token_table_holds_the_labels_log_probabilities(chunk_size: int | None) -> None:
    """Of [B, T] labels, under the policy and what the design compares it with; more tokens than units, and fewer."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(2, 4, 3, generator=generator), torch.randn(V, 3, generator=generator)
    theirs = torch.randn(8, V, generator=generator).log_softmax(-1)
    labels = torch.tensor([[10, NONE, 0, 4], [9, 9, NONE, 2]])
    design = load_design("rho1")
    references = {"teacher": Reference.full(theirs)}
    table = token_table(hidden, weight, labels, design, references=references, chunk_size=chunk_size)
    kept = labels != NONE
    logp = (hidden @ weight.T).log_softmax(-1)[kept].gather(1, labels[kept][:, None]).squeeze(1)
    torch.testing.assert_close(table.label_logp["policy"], logp)
    torch.testing.assert_close(
        table.label_logp["teacher"], theirs[kept.flatten()].gather(1, labels[kept][:, None]).squeeze(1)
    )
    assert table.labels.tolist() == labels[kept].tolist()
    values = scope_values_of(design, table)
    given = {"references": references, "chunk_size": chunk_size}
    whole = qtarget.linear_loss(hidden, weight, labels, design, **given)
    assert torch.equal(next(iter(values.values())), whole.reliance)
    outputs = [
        qtarget.linear_loss(hidden, weight, labels, design, **{name: values}, **given)  # type: ignore[arg-type]
        for name in ("scope_values", "statistics")
    ]
    assert all(torch.equal(out.loss, whole.loss) for out in outputs)


def test_scope_values_under_their_earlier_name_are_used() -> None:
    world, design = World.random(8), load_design("rho1")
    (part,) = scope_values_of(design, TokenTable(dict.fromkeys(("policy", "teacher"), torch.zeros(7)), world.labels))
    given = {part: torch.tensor([1.0, 0, 0, 1, 0, 1, 0])}
    for name in ("scope_values", "statistics"):
        arguments: dict[str, Any] = {name: given, "references": world.references}
        out = qtarget.dense_loss(world.logits, world.labels, design, **arguments)
        assert out.reliance.tolist() == given[part].tolist()


def test_label_scalars_under_their_earlier_name_are_kept() -> None:
    labels, scalars = torch.arange(3), {"logp": torch.tensor([-1.0, -2.0, -3.0])}
    earlier, now = Reference.label(labels, statistics=scalars), Reference.label(labels, scalars)
    assert torch.equal(earlier.label_scalars["logp"], now.label_scalars["logp"])
    assert torch.equal(earlier.statistics["logp"], scalars["logp"])


def test_tokens_keep_what_belongs_to_them() -> None:
    """By default each weighs 1, and a row's columns, negatives and sequence go with its supervised positions."""
    labels = torch.tensor([[3, NONE, 5], [NONE, 7, 8]])
    tokens = Tokens.keep_supervised(
        labels,
        labels.shape,
        columns={"critical": torch.arange(6).reshape(2, 3)},
        negatives=torch.arange(12).reshape(2, 3, 2),
    )
    assert tokens.positions.tolist() == [0, 2, 4, 5]
    assert tokens.scale.tolist() == [1.0] * 4
    assert tokens.columns["critical"].tolist() == [0, 2, 4, 5]
    assert tokens.negatives is not None
    assert tokens.select(slice(1, 3)).negatives[:, 0].tolist() == [4, 8]  # type: ignore[index]
    assert tokens.sequence_ids is not None
    assert tokens.sequence_ids.tolist() == [0, 0, 1, 1]


def test_hidden_states_of_a_reference_are_multiplied_once_for_a_chunk() -> None:
    head = Head(torch.randn(V, 4))
    held = Reference.hidden(torch.randn(6, 4), head)
    chunk = held.multiplied()
    assert chunk.multiplied() is chunk
    assert chunk.rows is not None
    assert chunk.rows.shape == (6, V)
    labels, policy = torch.arange(6), torch.zeros(6, V)
    torch.testing.assert_close(chunk.at(labels, policy).logp, held.at(labels, policy).logp)


def test_every_tensor_with_a_row_per_token_is_known() -> None:
    """The compiler is told of each that its length changes from chunk to chunk."""
    world, rows = World.random(3, count=6), (2, 3)
    earlier = EarlierTokens.of(world.labels.reshape(rows))
    for negatives, more in ((None, 0), (world.negatives.reshape(*rows, 4), 1), (earlier, 2)):
        given = {"references": world.references, "columns": {"critical": world.critical.reshape(rows)}}
        tokens = Tokens.keep_supervised(world.labels.reshape(rows), torch.Size(rows), negatives=negatives, **given)
        tensors = list(tokens.tensors())
        assert all(len(tensor) == 6 for tensor in tensors)
        assert len(tensors) == 4 + 1 + 3 + more  # positions, labels, scale, sequence; a column; three references
