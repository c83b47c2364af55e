"""Examples in rows and micro-batches: where each token, label and weight lands, and who shares a row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qtarget.data.batch import Batch, Collate, WindowedLoader, step_window
from qtarget.data.example import Example
from qtarget.data.packing import Packs, longest_row, pack
from qtarget.math.loss import IGNORE

PAD = 99


def example(tokens: int, taught: Sequence[int] = (), first: int = 10, first_label: int = 0) -> Example:
    """Token ids first, first + 1, …; those at `taught` are supervised, the odd ones are wrong."""
    ids = list(range(first, first + tokens))
    columns = {"wrong": [index % 2 == 1 for index in range(tokens)]}
    return Example(ids, [index in taught for index in range(tokens)], columns, row=0, first_label=first_label)


def lengths_of(packs: Packs, lengths: Sequence[int]) -> list[list[int]]:
    return [[lengths[member] for member in members] for members in packs.members]


def test_an_example_fills_the_row_with_the_least_room_that_it_fits() -> None:
    """Rows of 10. 7 and 6 leave room for 3 and 4: the 4 goes beside the 6 and the 3 beside the 7, both to the brim."""
    lengths = [6, 4, 7, 3]
    packs = pack([example(length) for length in lengths], 10)
    assert lengths_of(packs, lengths) == [[6, 4], [7, 3]]
    assert packs.lengths == [10, 10]


def test_the_longest_are_placed_first() -> None:
    """In the order they come in, 3 and 4 would share a row, and 6 and 7 want one each."""
    lengths = [3, 4, 6, 7]
    assert lengths_of(pack([example(length) for length in lengths], 10), lengths) == [[3, 7], [4, 6]]


def test_an_example_longer_than_a_row_is_alone() -> None:
    lengths = [2, 15, 3]
    packs = pack([example(length) for length in lengths], 10)
    assert lengths_of(packs, lengths) == [[2, 3], [15]]
    assert longest_row(packs) == 15


@given(lengths=st.lists(st.integers(1, 12), max_size=12), width=st.integers(1, 12))
def test_packs_are_best_fit_by_its_definition(lengths: list[int], width: int) -> None:
    """A search through every row for each example, longest first."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        left = [max(width, lengths[row[0]]) - sum(lengths[member] for member in row) for row in rows]
        fits = [(room, number) for number, room in enumerate(left) if room >= lengths[index]]
        if fits:
            rows[min(fits)[1]].append(index)
        else:
            rows.append([index])
    packs = pack([example(length) for length in lengths], width)
    assert [list(members) for members in packs.members] == sorted(sorted(row) for row in rows)


def test_rows_are_picked_one_by_one_or_several_at_once() -> None:
    examples = [example(length, first=10 * length) for length in (6, 4, 7, 3)]
    packs = pack(examples, 10)
    assert packs[0] == (examples[0], examples[1])
    assert packs[0:2] == [packs[0], packs[1]]
    assert packs[1:] == [(examples[2], examples[3])]
    assert (longest_row(packs), longest_row(examples), longest_row([])) == (10, 7, 0)


def test_a_batch_holds_each_example_from_the_left_and_its_labels_one_earlier() -> None:
    batch = Collate(PAD)([example(4, taught=(2, 3), first_label=5), example(2, taught=(1,), first=50)])
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [50, 51, PAD, PAD]]
    none = IGNORE
    assert batch.labels.tolist() == [[none, 12, 13, none], [51, none, none, none]]
    assert batch.label_indices.tolist() == [[-1, 5, 6, -1], [0, -1, -1, -1]]
    assert batch.columns["wrong"].tolist() == [[True, False, True, False], [True, False, False, False]]
    assert batch.position_ids is None
    assert batch.weights is None


def test_a_packed_row_counts_each_examples_positions_from_0() -> None:
    batch = Collate(PAD)([(example(3, taught=(1, 2)), example(2, taught=(1,))), (example(4, taught=(3,)),)])
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.sequence_ids.tolist() == [[0, 0, 0, 1, 1], [2, 2, 2, 2, 2]]
    assert batch.labels.tolist() == [[11, 12, IGNORE, 11, IGNORE], [IGNORE, IGNORE, 13, IGNORE, IGNORE]]
    assert batch.sequence_lengths.tolist() == [[2, 2, 2, 1, 1], [1, 1, 1, 1, 1]]


def test_tokens_and_sequences_that_teach_something_are_counted() -> None:
    """The second example teaches nothing; all of the first's tokens count as real, padding and it do not."""
    batch = Collate(PAD)([example(4, taught=(2, 3)), example(3)])
    assert (batch.supervised, batch.sequences, batch.real_tokens) == (2, 1, 4)
    assert batch.sequence_lengths.tolist() == [[2] * 4, [0] * 4]
    assert batch.data_weights == 1.0
    bare = Batch(batch.input_ids, batch.labels, {}, batch.label_indices)
    assert (bare.real_tokens, bare.weights, bare.window) == (0, None, None)


def batches(count: int) -> list[Batch]:
    """Number i has one row that teaches i + 1 tokens, and one that teaches none."""
    return [Collate(PAD)([example(9, taught=range(1, index + 2)), example(3)]) for index in range(count)]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_micro_batches_of_a_step_share_its_window(accumulate: int) -> None:
    micro = list(WindowedLoader(batches(5), accumulate))
    assert len(micro) == 5
    for number, batch in enumerate(micro):
        first = number - number % accumulate
        step = micro[first : first + accumulate]
        window = batch.window
        assert window is not None
        assert window.index == number - first
        assert (window.tokens, window.sequences) == (sum(one.supervised for one in step), len(step))
        assert window.averaging_factor == accumulate
        assert window.per_token_scale == accumulate / window.tokens
        assert len(window.batches) == len(step)
        assert window.batches[window.index].labels is batch.labels


def test_a_step_is_one_micro_batch_by_default() -> None:
    micro = list(WindowedLoader(batches(3)))
    assert [batch.window.tokens for batch in micro if batch.window] == [1, 2, 3]


def test_a_window_begins_with_its_first_micro_batch() -> None:
    window = step_window(batches(3), undo=3)
    assert (window.tokens, window.sequences, window.averaging_factor, window.index) == (6, 3, 3, 0)
    assert window.per_token_scale == 3 / 6


def test_a_step_that_teaches_nothing_has_a_finite_scale() -> None:
    window = step_window([Collate(PAD)([example(3)])], undo=2)
    assert (window.tokens, window.sequences, window.per_token_scale) == (0, 0, 2.0)


def test_a_batch_that_moves_is_the_same_batch() -> None:
    packed = Collate(PAD)([(example(3, taught=(1, 2)), example(2, taught=(1,)))])
    moved = packed.to("meta")
    tensors = (moved.input_ids, moved.labels, moved.label_indices, moved.position_ids, moved.columns["wrong"])
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert moved.weights is None
    assert moved.real_tokens == packed.real_tokens == 5
    torch.testing.assert_close(packed.to("cpu").labels, packed.labels)
