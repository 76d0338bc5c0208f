"""Compiled loops for a CPU over tensors in bf16, each in one pass, rounded where torch's own steps round.

torch computes these formulas step by step and writes every step to memory; on a CPU with bf16 matrix units that takes
longer than the matmuls between them. The softmax of attention rounds once, where transformers' eager attention
rounds scaled and masked scores, too.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from pruning.row_threads import compiled, share_rows

NUMBERS_PER_THREAD = 2**19  # fewer are done before another thread wakes up
HIDDEN = np.uint16(0xFF7F)  # bits of the lowest number, which masks hold where nothing is seen
LOG2_E = np.float32(1.4426950408889634)
# Of (2^f - 1) / f for |f| <= 1/2, interpolated at Chebyshev's nodes: 2^f within 2e-7, and 1 where f is 0.
POWERS_OF_TWO = tuple(map(np.float32, (0.0013381303, 0.0096663685, 0.05550381, 0.24022349, 0.69314718)))
LOWEST_POWER, HIGHEST_POWER = np.float32(-126), np.float32(126)  # that float32 holds in full precision: less is slow
LANES = 16  # numbers in a vector: the rest of a loop is computed one by one

# Sums may be taken in any order, so that they are vectorised; nothing is assumed about NaN and infinity.
_compiled = compiled(fastmath={"contract", "reassoc", "nsz"})
_inlined = numba.njit(inline="always")


def load_compiler() -> None:
    """Load what numba loads at a process's first kernel: a third of a second, for which all other lanes would wait."""
    log_sums(torch.zeros(1, 1, dtype=torch.bfloat16))


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Every last dimension over its root mean square, times the weight; both factors rounded to bf16.

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
    """gate becomes silu(gate), rounded to bf16, times the factor, and is returned; both (..., width), contiguous."""
    width = gate.shape[-1]
    _share(_silu_times_rows, gate.numel() // width, width, gate.view(-1, width), factor.view(-1, width))
    return gate


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, every product rounded to bf16.

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
    """Logarithm of the sum of exponentials of every row, float32; NaN where a row has NaN.

    Args:
        logits: (rows, vocabulary), bf16.
    """
    sums = torch.empty(len(logits))
    _share(_log_sum_rows, *logits.shape, logits, sums)
    return sums


def softmax_(scores: Tensor, scale: float, mask: Tensor) -> Tensor:
    """Scores of attention become its weights, softmax(scale * scores + mask), rounded once, and are returned.

    Args:
        scores: (heads, queries, keys), bf16, contiguous.
        mask: (queries, keys), bf16, contiguous; the lowest number hides a key, which then weighs 0.
    """
    heads, queries, keys = scores.shape
    _share(_softmax_queries, queries, heads * keys, scores, np.float32(scale), mask)
    return scores


def _share(kernel: numba.core.dispatcher.Dispatcher, rows: int, width: int, *arguments: Tensor | np.float32) -> None:
    """Run a kernel over all rows of tensors; those in bf16 it sees as their bits."""
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
    """The bits of the nearest number in bf16, of two equally near ones the even one."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_inlined
def _power_of_two(exponent: np.float32) -> np.float32:
    """0 for exponents below LOWEST_POWER, HIGHEST_POWER for those above; NaN stays."""
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
        own, result = hidden[row], normed[row]
        squares = np.float32(0)
        for column in range(len(own)):
            squares += _widened(own[column]) * _widened(own[column])
        scale = np.float32(1) / np.sqrt(squares / np.float32(len(own)) + epsilon)
        for column in range(len(own)):
            scaled = _widened(_rounded(_widened(own[column]) * scale))
            result[column] = _rounded(scaled * _widened(weight[column]))


@_compiled
def _silu_times_rows(first: int, last: int, gate: np.ndarray, factor: np.ndarray) -> None:
    for row in range(first, last):
        own, other = gate[row], factor[row]
        for column in range(len(own)):
            value = _widened(own[column])
            silu = value / (np.float32(1) + _power_of_two(-LOG2_E * value))
            own[column] = _rounded(_widened(_rounded(silu)) * _widened(other[column]))


@_compiled
def _rotate_tokens(
    first: int, last: int, states: np.ndarray, cos: np.ndarray, sin: np.ndarray, rotated: np.ndarray
) -> None:
    _, tokens, heads, width = states.shape
    half = width // 2
    for index in range(first, last):
        row, token = index // tokens, index % tokens
        angle = row if len(cos) > 1 else 0
        own_cos, own_sin = cos[angle, token], sin[angle, token]
        for head in range(heads):
            own, result = states[row, token, head], rotated[row, head, token]
            for column in range(half):
                one, other = _widened(own[column]), _widened(own[half + column])
                straight = _widened(_rounded(one * _widened(own_cos[column])))
                across = _widened(_rounded(other * _widened(own_sin[column])))
                result[column] = _rounded(straight - across)
                straight = _widened(_rounded(other * _widened(own_cos[half + column])))
                across = _widened(_rounded(one * _widened(own_sin[half + column])))
                result[half + column] = _rounded(straight + across)


@_compiled
def _log_sum_rows(first: int, last: int, logits: np.ndarray, sums: np.ndarray) -> None:
    for row in range(first, last):
        own = logits[row]
        # As whole numbers, whose maximum is vectorised: their order is that of the floats. NaN comes out NaN below.
        largest = np.int16(-(2**15))
        for column in range(len(own)):
            largest = max(largest, _in_order(np.int16(own[column])))
        top = _widened(np.uint16(_in_order(largest)))
        total = np.float32(0)
        for column in range(len(own)):
            total += _power_of_two((_widened(own[column]) - top) * LOG2_E)
        sums[row] = top + np.log(total)


@_compiled
def _softmax_queries(first: int, last: int, scores: np.ndarray, scale: np.float32, mask: np.ndarray) -> None:
    powers = np.empty(scores.shape[2], np.float32)
    bits = powers.view(np.int32)
    for query in range(first, last):
        hidden = mask[query]
        seen = len(hidden)
        while seen > 1 and hidden[seen - 1] == HIDDEN:
            seen -= 1
        seen = min(len(hidden), (seen + LANES - 1) // LANES * LANES)
        for head in range(len(scores)):
            own = scores[head, query]
            # As whole numbers, whose maximum is vectorised: their order is that of the floats. NaN comes out NaN below.
            largest = np.int32(-(2**31))
            for column in range(seen):
                powers[column] = _widened(own[column]) * scale + _widened(hidden[column])
            for column in range(seen):
                largest = max(largest, _wide_in_order(bits[column]))
            top = np.int32(_wide_in_order(largest)).view(np.float32)
            total = np.float32(0)
            for column in range(seen):
                powers[column] = _power_of_two((powers[column] - top) * LOG2_E)
                total += powers[column]
            share = np.float32(1) / total
            for column in range(seen):
                own[column] = _rounded(powers[column] * share)
            own[seen:] = 0


@_inlined
def _in_order(bits: np.int16) -> np.int16:
    """Bits of a float as a number that grows with it, and back: those below the sign are turned where it is set."""
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))


@_inlined
def _wide_in_order(bits: np.int32) -> np.int32:
    """_in_order of a float32."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
