"""KV caches of the engine's own: one that every row of a batch reads, and one that grows in place."""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

KeysValues = list[tuple[Tensor, Tensor] | None]  # per layer, each (rows, heads, tokens, width); None: it keeps nothing


class PrefixLayer(DynamicLayer):
    """A layer's keys and values of earlier tokens: one row, read by every row of any batch, and never grown.

    Those of the batch itself stay in `own` where they are to be kept.
    """

    def __init__(self, held: tuple[Tensor, Tensor] | None, keep: bool) -> None:
        super().__init__()
        self.is_initialized = True
        self.held, self._keep = held, keep
        self.own: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self) -> int:
        return self.held[0].shape[-2] if self.held else 0

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if self._keep:
            self.own = keys, values
        return joined(self.held, (keys, values))


def joined(held: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values of every row, behind those that all rows share."""
    if held is None:
        return own
    keys, values = (
        torch.cat([some.expand(len(more), -1, -1, -1), more], dim=-2) for some, more in zip(held, own, strict=True)
    )
    return keys, values


class GrowingLayer(DynamicLayer):
    """A layer's keys and values in one buffer that is filled in place: nothing is copied from step to step."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity, self._length = capacity, 0

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        self.open(len(keys), 0, keys, values)

    def open(self, rows: int, length: int, keys: Tensor, values: Tensor) -> None:
        """Make room for so many rows of such keys and values; `length` columns of zeros count as filled."""
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
        if not self.is_initialized:  # of a block that keeps nothing
            return
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
