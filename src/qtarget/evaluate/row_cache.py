"""Keys and values of rows that come and go while others are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SPARE = 64
"""Columns that a buffer has behind its longest row when it is made or moved."""

Prefix = Sequence[tuple[Tensor, Tensor]]
"""A prompt's keys and values of each layer, each [H, L, D]."""


class RowCache(Cache):
    """Rows of unequal length that all end at the same column, in buffers that are written in place:

        columns        start   end
        row 0    . . . . k k k |
        row 1    . . k k k k k |

    A row joins with its prompt's keys and values and leaves when its answer has ended; the last row then takes its
    place. Columns on the left that no row holds any more are not read. The window moves to the left of the buffers, or
    the buffers grow by half, when it meets their right end.
    """

    def __init__(self, layers: int, slots: int) -> None:
        self.buffers = [RowLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.buffers))
        self.slots = slots
        self.starts: list[int] = []
        self.end = self.capacity = self.longest_prefix = 0

    @property
    def count(self) -> int:
        return len(self.starts)

    @property
    def start(self) -> int:
        return min(self.starts, default=self.end)

    def join(self, prefix: Prefix, count: int) -> None:
        """As many rows behind the others, each with the prefix."""
        length = prefix[0][0].shape[1]
        self.longest_prefix = max(self.longest_prefix, length)
        if self.end < length:
            self._move(prefix)
        first, start = self.count, self.end - length
        for layer, (keys, values) in zip(self.buffers, prefix, strict=True):
            layer.put(slice(first, first + count), start, self.end, keys, values)
        self.starts += [start] * count

    def leave(self, row: int) -> None:
        """The last row takes the place of the one that leaves."""
        last = self.count - 1
        if row < last:
            for layer in self.buffers:
                layer.copy(last, row, self.starts[last], self.end)
            self.starts[row] = self.starts[last]
        self.starts.pop()

    def make_room(self) -> None:
        """For one column more."""
        if self.end == self.capacity:
            self._move()

    def advance(self) -> None:
        """Every layer has written the column at `end`."""
        self.end += 1

    def _move(self, prefix: Prefix | None = None) -> None:
        """The window goes as far left as leaves room for the longest prefix; into larger buffers where it is wide."""
        start, width = self.start, self.end - self.start
        end = max(width, self.longest_prefix)
        if 4 * (end + SPARE) > 3 * self.capacity:
            self.capacity = end + max(SPARE, end // 2)
        for number, layer in enumerate(self.buffers):
            layer.move(slice(start, self.end), end, None if prefix is None else prefix[number])
        self.starts = [place + end - self.end for place in self.starts]
        self.end = end


class RowLayer(DynamicLayer):
    """One layer's buffers [slots, H, capacity, D]; `keys` and `values` are what the rows hold of them.

    Keys and values may differ in width and in dtype (a rotation in fp32 makes the keys fp32 under autocast).
    """

    def __init__(self, rows: RowCache) -> None:
        super().__init__()
        self.rows = rows
        self.buffers: tuple[Tensor, ...] = ()
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.rows.end - self.rows.start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The rows' next column [n, H, 1, D] is written; all columns that any row holds are returned."""
        rows, (keys, values) = self.rows, self.buffers
        keys[: rows.count, :, rows.end] = key_states[:, :, 0]
        values[: rows.count, :, rows.end] = value_states[:, :, 0]
        window = slice(rows.start, rows.end + 1)
        self.keys, self.values = keys[: rows.count, :, window], values[: rows.count, :, window]
        return self.keys, self.values

    def put(self, places: slice, start: int, end: int, *prefix: Tensor) -> None:
        for buffer, part in zip(self.buffers, prefix, strict=True):
            buffer[places, :, start:end] = part

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        for buffer in self.buffers:
            buffer[target, :, start:end] = buffer[source, :, start:end]

    def move(self, window: slice, end: int, like: tuple[Tensor, Tensor] | None) -> None:
        """The rows' columns now end at `end`. like: what the buffers are made for, where there are none yet."""
        self.buffers = tuple(map(self._moved, self.buffers or like or (), [window] * 2, [end] * 2))

    def _moved(self, tensor: Tensor, window: slice, end: int) -> Tensor:
        shape = (self.rows.slots, tensor.shape[-3], self.rows.capacity, tensor.shape[-1])
        if tensor.ndim == 3:  # a prefix
            return tensor.new_zeros(shape)
        kept = tensor[: self.rows.count, :, window]
        target = tensor if tensor.shape == shape else tensor.new_zeros(shape)
        target[: self.rows.count, :, end - kept.shape[2] : end] = kept.clone() if target is tensor else kept
        return target
