"""Loops over bf16 tensors on a CPU, compiled by numba: one pass each, rounding to bf16 where torch's operations do.

torch computes these formulas as several operations and writes each result to memory; on a CPU with bf16 matrix units
that takes longer than the matmuls in between. The softmax of attention rounds once; transformers' eager attention also
rounds the scaled and masked scores.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from pruning.row_threads import compiled, share_rows

NUMBERS_PER_THREAD = 2**19  # fewer take less time than waking another thread
HIDDEN = np.uint16(0xFF7F)  # bits of the lowest bf16 number, which a mask holds for hidden keys
LOG2_E = np.float32(1.4426950408889634)
# Coefficients of (2^f - 1) / f for |f| <= 1/2, interpolated at Chebyshev nodes: 2^f within 2e-7, and 1 where f is 0.
POWERS_OF_TWO = tuple(map(np.float32, (0.0013381303, 0.0096663685, 0.05550381, 0.24022349, 0.69314718)))
LOWEST_POWER, HIGHEST_POWER = np.float32(-126), np.float32(126)  # lower ones are denormal in float32, and slow
VECTOR = 16  # numbers in a vector register: what a loop has beyond a multiple of it is computed one by one

# Sums may be reordered, so that they are vectorised; NaN and infinity are handled as usual.
_compiled = compiled(fastmath={"contract", "reassoc", "nsz"})
_inlined = numba.njit(inline="always")


def load_compiler() -> None:
    """Run a kernel once: the first one of a process loads numba for a third of a second, while other threads wait."""
    log_sums(torch.zeros(1, 1, dtype=torch.bfloat16))


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last dimension times the weight; the normalised input is rounded to bf16 before that.

    Args:
        hidden: (..., width), bf16.
        weight: (width,), bf16.
        epsilon: added to the mean square.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    normed = torch.empty_like(rows)
    _share(_rms_norm_rows, len(rows), rows.shape[1], rows, weight, np.float32(epsilon), normed)
    return normed.view(hidden.shape)


def silu_times_(gate: Tensor, factor: Tensor) -> Tensor:
    """silu(gate), rounded to bf16, times `factor`, computed in place of `gate`; both (..., width), contiguous."""
    width = gate.shape[-1]
    _share(_silu_times_rows, gate.numel() // width, width, gate.view(-1, width), factor.view(-1, width))
    return gate


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, with every multiplication's result rounded to bf16.

    Args:
        states: (rows, tokens, heads, width), bf16; the first half of a head's width is rotated with the second.
        cos, sin: (rows or 1, tokens, width), bf16.
    Returns:
        (rows, heads, tokens, width).
    """
    rows, tokens, heads, width = states.shape
    rotated = states.new_empty(rows, heads, tokens, width)
    _share(_rotate_tokens, rows * tokens, heads * width, states.contiguous(), cos, sin, rotated)
    return rotated


def log_sums(logits: Tensor) -> Tensor:
    """logsumexp of every row, (rows,) float32; NaN where a row has NaN.

    Args:
        logits: (rows, vocabulary), bf16.
    """
    sums = torch.empty(len(logits))
    _share(_log_sum_rows, *logits.shape, logits, sums)
    return sums


def softmax_(scores: Tensor, scale: float, mask: Tensor) -> Tensor:
    """Attention weights softmax(scale * scores + mask), computed in place of `scores` and rounded once.

    Args:
        scores: (heads, queries, keys), bf16, contiguous.
        mask: (queries, keys), bf16, contiguous; the lowest bf16 number hides a key, whose weight is then 0.
    """
    heads, queries, keys = scores.shape
    _share(_softmax_queries, queries, heads * keys, scores, np.float32(scale), mask)
    return scores


def _share(kernel: numba.core.dispatcher.Dispatcher, rows: int, width: int, *arguments: Tensor | np.float32) -> None:
    """Run a kernel over all rows; bf16 tensors are passed as their bits, uint16 arrays."""
    arrays = [_array(argument) if isinstance(argument, Tensor) else argument for argument in arguments]
    share_rows(kernel, rows, max(1, NUMBERS_PER_THREAD // width), *arrays)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@_inlined
def _widened(bits: np.uint16) -> np.float32:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@_inlined
def _rounded(value: np.float32) -> np.uint16:
    """Bits of the nearest bf16 number; of two equally near ones, the even one."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_inlined
def _power_of_two(exponent: np.float32) -> np.float32:
    """2^exponent; 0 below LOWEST_POWER, 2^HIGHEST_POWER above HIGHEST_POWER, NaN for NaN."""
    too_low = exponent < LOWEST_POWER
    exponent = LOWEST_POWER if too_low else exponent
    exponent = HIGHEST_POWER if exponent > HIGHEST_POWER else exponent
    whole = np.floor(exponent + np.float32(0.5))
    part = exponent - whole
    power = POWERS_OF_TWO[0]
    power = power * part + POWERS_OF_TWO[1]
    power = power * part + POWERS_OF_TWO[2]
    power = power * part + POWERS_OF_TWO[3]
    power = power * part + POWERS_OF_TWO[4]
    power = power * part + np.float32(1)
    power *= np.uint32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(0) if too_low else power


@_compiled
def _rms_norm_rows(
    first: int, last: int, hidden: np.ndarray, weight: np.ndarray, epsilon: np.float32, normed: np.ndarray
) -> None:
    for row in range(first, last):
        values, result = hidden[row], normed[row]
        squares = np.float32(0)
        for column in range(len(values)):
            squares += _widened(values[column]) * _widened(values[column])
        scale = np.float32(1) / np.sqrt(squares / np.float32(len(values)) + epsilon)
        for column in range(len(values)):
            scaled = _widened(_rounded(_widened(values[column]) * scale))
            result[column] = _rounded(scaled * _widened(weight[column]))


@_compiled
def _silu_times_rows(first: int, last: int, gate: np.ndarray, factor: np.ndarray) -> None:
    for row in range(first, last):
        values, factors = gate[row], factor[row]
        for column in range(len(values)):
            value = _widened(values[column])
            silu = value / (np.float32(1) + _power_of_two(-LOG2_E * value))
            values[column] = _rounded(_widened(_rounded(silu)) * _widened(factors[column]))


@_compiled
def _rotate_tokens(
    first: int, last: int, states: np.ndarray, cos: np.ndarray, sin: np.ndarray, rotated: np.ndarray
) -> None:
    _, tokens, heads, width = states.shape
    half = width // 2
    for index in range(first, last):
        row, token = index // tokens, index % tokens
        angle = row if len(cos) > 1 else 0
        token_cos, token_sin = cos[angle, token], sin[angle, token]
        for head in range(heads):
            values, result = states[row, token, head], rotated[row, head, token]
            for column in range(half):
                low, high = _widened(values[column]), _widened(values[half + column])
                with_cos = _widened(_rounded(low * _widened(token_cos[column])))
                with_sin = _widened(_rounded(high * _widened(token_sin[column])))
                result[column] = _rounded(with_cos - with_sin)
                with_cos = _widened(_rounded(high * _widened(token_cos[half + column])))
                with_sin = _widened(_rounded(low * _widened(token_sin[half + column])))
                result[half + column] = _rounded(with_cos + with_sin)


@_compiled
def _log_sum_rows(first: int, last: int, logits: np.ndarray, sums: np.ndarray) -> None:
    for row in range(first, last):
        values = logits[row]
        # The maximum of integers in the floats' order is vectorised. NaN in a row makes `total` NaN.
        largest = np.int16(-(2**15))
        for column in range(len(values)):
            largest = max(largest, _in_order(np.int16(values[column])))
        top = _widened(np.uint16(_in_order(largest)))
        total = np.float32(0)
        for column in range(len(values)):
            total += _power_of_two((_widened(values[column]) - top) * LOG2_E)
        sums[row] = top + np.log(total)


@_compiled
def _softmax_queries(first: int, last: int, scores: np.ndarray, scale: np.float32, mask: np.ndarray) -> None:
    powers = np.empty(scores.shape[2], np.float32)
    bits = powers.view(np.int32)
    for query in range(first, last):
        key_mask = mask[query]
        seen = len(key_mask)
        while seen > 1 and key_mask[seen - 1] == HIDDEN:
            seen -= 1
        seen = min(len(key_mask), (seen + VECTOR - 1) // VECTOR * VECTOR)
        for head in range(len(scores)):
            values = scores[head, query]
            # The maximum of integers in the floats' order is vectorised. NaN in a row makes `total` NaN.
            largest = np.int32(-(2**31))
            for column in range(seen):
                powers[column] = _widened(values[column]) * scale + _widened(key_mask[column])
            for column in range(seen):
                largest = max(largest, _wide_in_order(bits[column]))
            top = np.int32(_wide_in_order(largest)).view(np.float32)
            total = np.float32(0)
            for column in range(seen):
                powers[column] = _power_of_two((powers[column] - top) * LOG2_E)
                total += powers[column]
            share = np.float32(1) / total
            for column in range(seen):
                values[column] = _rounded(powers[column] * share)
            values[seen:] = 0


@_inlined
def _in_order(bits: np.int16) -> np.int16:
    """Bits of a float as an integer of the same order, and back: if the sign is set, the other bits are flipped."""
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))


@_inlined
def _wide_in_order(bits: np.int32) -> np.int32:
    """_in_order for a float32."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
