"""KV cache layers: one whose prefix all rows of a batch share, and one that grows in place."""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

KeysValues = list[
    tuple[Tensor, Tensor] | None
]  # per layer, each (rows, heads, tokens, width); None for a layer without a cache


class PrefixLayer(DynamicLayer):
    """A layer's keys and values of a prefix: one row, which all rows of a batch attend to. It does not grow.

    Args:
        past: keys and values of the prefix; None for the empty prefix.
        keep: keep keys and values of the batch, in `new`.
    """

    def __init__(self, past: tuple[Tensor, Tensor] | None, keep: bool) -> None:
        super().__init__()
        self.is_initialized = True
        self.past, self._keep = past, keep
        self.new: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self) -> int:
        return self.past[0].shape[-2] if self.past else 0

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if self._keep:
            self.new = keys, values
        return joined(self.past, (keys, values))


def joined(past: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of every row: those of the shared prefix, then those of the row."""
    if past is None:
        return new
    keys, values = (
        torch.cat([shared.expand(len(rows), -1, -1, -1), rows], dim=-2) for shared, rows in zip(past, new, strict=True)
    )
    return keys, values


class GrowingLayer(DynamicLayer):
    """A layer's keys and values in a buffer of fixed size that is filled in place, without copies at each step.

    Args:
        capacity: tokens that the buffer holds.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity, self._length = capacity, 0

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        self.open(len(keys), 0, keys, values)

    def open(self, rows: int, length: int, keys: Tensor, values: Tensor) -> None:
        """Allocate the buffer, in shape and dtype like keys and values; `length` columns of zeros count as filled."""
        self.keys = keys.new_zeros(rows, keys.shape[1], self._capacity, keys.shape[-1])
        self.values = values.new_zeros(rows, values.shape[1], self._capacity, values.shape[-1])
        self._length, self.is_initialized = length, True

    def get_seq_length(self) -> int:
        return self._length

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        end = self._length + keys.shape[-2]
        self.keys[:, :, self._length : end] = keys
        self.values[:, :, self._length : end] = values
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        if not self.is_initialized:  # a layer without a cache
            return
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
