"""How many weights of each matrix are pruned, where they are not pruned alike: OWL, or the user's own sparsities.

Whatever the allocation, the zeros of all matrices together are exactly round(sparsity * number of weights).
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pruning.layer_choice import matching, there_are

UNIFORM, OWL = "uniform", "owl"
OWL_OUTLIERS, OWL_RANGE = 5.0, 0.08  # M and lambda of the published command for LLaMA-7B
TOLERANCE = 5e-4  # by which the total of a file that names every weight may miss --sparsity
WEIGHTS_AT_ONCE = 2**22  # whose scores are in memory at once


def outlier_ratio(weights: Mapping[str, Tensor], sq_norms: Mapping[str, Tensor], outliers: float) -> float:
    """Layerwise outlier distribution of a block: the share of its weights whose score is above M times their mean.

    Args:
        weights: the block's matrices by name, (out_features, in_features) each.
        sq_norms: squared Euclidean norm of each input of the dense model over the calibration tokens, (in_features,),
            by the same names; their scale does not matter.
        outliers: M, above 0.
    Returns:
        A share in [0, 1]; 0 where all scores are 0.
    Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", ICML 2024, sec. 3. The score is Wanda's, |weight| *
        input norm. As in the authors' code (luuyin/OWL, prune_wanda_outlier) mean and share are over all matrices of a
        block together.
    """
    numel = sum(W.numel() for W in weights.values())
    total = torch.zeros((), dtype=torch.float64)
    for scores in _scores(weights, sq_norms):
        total += scores.sum(dtype=torch.float64).cpu()
    limit = outliers * float(total) / numel
    return sum(int((scores > limit).sum()) for scores in _scores(weights, sq_norms)) / numel


def _scores(weights: Mapping[str, Tensor], sq_norms: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Wanda's scores of all matrices, some rows at a time."""
    for name, W in weights.items():
        norms = sq_norms[name].to(W.device, torch.float32).sqrt()
        for rows in W.detach().split(max(1, WEIGHTS_AT_ONCE // W.shape[1])):
            yield rows.float().abs() * norms


def owl_sparsities(
    ratios: Mapping[int, float], sizes: Mapping[int, int], sparsity: float, spread: float = OWL_RANGE
) -> dict[int, float]:
    """The sparsity of each block: the more outliers it has, the less of it is pruned.

    Args:
        ratios: outlier_ratio of each block.
        sizes: number of weights of each block.
        sparsity: S, of all blocks together, in [0, 1).
        spread: lambda; every block's sparsity is in [S - lambda, S + lambda].
    Returns:
        By block; their mean, weighted by sizes, is S (to rounding). S for each where all ratios are the same.
    Raises:
        ValueError: the range leaves [0, 1).
    Source: the paper's sec. 4: S_i falls with the outlier ratio, stays in [S - lambda, S + lambda], and has the mean S.
        The authors' code scales the ratios to a width of 2 lambda and shifts their plain mean to S; unless the mean is
        half-way, blocks at one end are then out of that range, by up to lambda. Here they are held in it, the shift
        makes up for that, and the mean counts weights.
    """
    check_range(sparsity, spread)
    lowest, highest = min(ratios.values()), max(ratios.values())
    if lowest == highest:
        return dict.fromkeys(ratios, sparsity)
    wanted = {block: -2 * spread * (ratio - lowest) / (highest - lowest) for block, ratio in ratios.items()}
    total = sum(sizes[block] for block in ratios)

    def held(shift: float) -> dict[int, float]:
        return {block: min(max(shift + value, -spread), spread) for block, value in wanted.items()}

    low, high = -spread, 3 * spread  # where all are at the lower, and all at the upper end
    for _ in range(200):
        middle = (low + high) / 2
        if sum(value * sizes[block] for block, value in held(middle).items()) / total < 0:
            low = middle
        else:
            high = middle
    return {block: sparsity + value for block, value in held(high).items()}


def check_range(sparsity: float, spread: float) -> None:
    """Raises ValueError where sparsities that differ from `sparsity` by up to `spread` leave [0, 1)."""
    if not (sparsity - spread >= 0 and sparsity + spread < 1):
        raise ValueError(
            f"--allocation owl --sparsity {sparsity:g}: blocks get {sparsity:g} - {spread:g} to {sparsity:g} + "
            f"{spread:g}, which leaves [0, 1); a smaller --owl_range is allowed"
        )


def exact_counts(sparsities: Mapping[str, float], numels: Mapping[str, int], total: int) -> dict[str, int]:
    """How many weights of each matrix become zero, `total` in all: by largest remainder.

    Args:
        sparsities: of each matrix, in [0, 1], with a weighted mean of about total / number of weights: what it misses
            is spread over all matrices by their size.
        numels: number of weights of each.
        total: zeros in all, from 0 to the number of weights.
    Returns:
        By name; each within 0 and the matrix's size, and at most one weight off its share.
    """
    weights = sum(numels[name] for name in sparsities)
    missed = (total - math.fsum(value * numels[name] for name, value in sparsities.items())) / weights
    shares = {name: min(max((value + missed) * numels[name], 0), numels[name]) for name, value in sparsities.items()}
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    left = total - sum(counts.values())
    while left:
        step = 1 if left > 0 else -1
        for name in by_remainder if left > 0 else reversed(by_remainder):
            if left and 0 <= counts[name] + step <= numels[name]:
                counts[name] += step
                left -= step
    return counts


def read_allocation(path: Path) -> dict[str, float]:
    """The sparsities of a JSON file, by block or name of a weight.

    Raises:
        ValueError: no such file, no JSON object, it is empty, or a value is no number in [0, 1); names it.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise ValueError(
            f"--allocation {path}: {error.strerror or error}; allowed: {UNIFORM}, {OWL} or a JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--allocation {path}: no valid JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f'--allocation {path}: must be a JSON object such as {{"0": 0.4, "down_proj": 0.6}}')
    for key, value in content.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"--allocation {path}: the sparsity of {key!r} is {value!r}; allowed: numbers in [0, 1)")
    return {key: float(value) for key, value in content.items()}


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The pairs as a dict; ValueError where a key is there twice, of which json keeps the last without a word."""
    for key, _ in pairs:
        if sum(other == key for other, _ in pairs) > 1:
            raise ValueError(f"{key!r} is there twice")
    return dict(pairs)


def file_sparsities(
    path: str, given: Mapping[str, float], blocks: Mapping[str, int], numels: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """The sparsity of each matrix as a file gives it; those that it does not name share what is left of the total.

    Args:
        path: of the file, for messages.
        given: read_allocation of it. A key is a block, a range of blocks or a name (layer_choice.parse_layers). Of two
            keys that name the same weight, the one that names fewer counts.
        blocks: the block of each weight that may be compressed (layer_choice.block_indices).
        numels: number of weights of the matrices that are compressed, by name.
        sparsity: of all of them together.
    Raises:
        ValueError: a key names no weight, or one that is not compressed; two keys name the same weights; or the total
            cannot be `sparsity` (says what it is).
    """
    named = {key: matching(key, blocks) for key in given}
    for key, names in named.items():
        if not names:
            raise ValueError(f"--allocation {path}: {key!r} names no weight; there are {there_are(blocks)}")
        if left_out := [name for name in names if name not in numels]:
            raise ValueError(f"--allocation {path}: {key!r} names {left_out[0]}, which --only_layers or --skip_layers "
                             "leaves dense")  # fmt: skip
    found: dict[str, float] = {}
    holders: dict[str, str] = {}
    for key in sorted(given, key=lambda key: -len(named[key])):
        for name in named[key]:
            if name in holders and len(named[holders[name]]) == len(named[key]):
                raise ValueError(f"--allocation {path}: {holders[name]!r} and {key!r} both name {name}")
            found[name], holders[name] = given[key], key
    weights = sum(numels.values())
    told = math.fsum(value * numels[name] for name, value in found.items())
    rest = [name for name in numels if name not in found]
    if not rest:
        if abs(told / weights - sparsity) > TOLERANCE:
            raise ValueError(
                f"--allocation {path}: it names every weight, and {told / weights:.4f} of them in all; --sparsity is "
                f"{sparsity:g}"
            )
        return {name: found[name] for name in numels}
    value = (sparsity * weights - told) / sum(numels[name] for name in rest)
    if not 0 <= value < 1:
        raise ValueError(
            f"--allocation {path}: --sparsity {sparsity:g} in all leaves {value:.4f} for the weights that it does not "
            f"name; allowed: [0, 1), which is {_totals(told, sum(numels[name] for name in rest), weights)} in all"
        )
    return {name: found.get(name, value) for name in numels}


def _totals(told: float, rest: int, weights: int) -> str:
    """The totals that a file leaves possible, for a message."""
    return f"{told / weights:.4f} to {(told + rest) / weights:.4f}"
