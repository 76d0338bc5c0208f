"""Keep-masks: drop exactly the k lowest scores, hold a mask through training, count zeros."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pruning.selection import Cuts, Score, compared_dtype, find_cuts, flat_parts

# How many scores a CPU ranks faster by a partition of a copy of them all than by histograms: float32, and 16 bits.
PARTITIONED, PARTITIONED_16 = 2**24, 2**20


def lowest_k_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Keep-mask that drops exactly round(sparsity * numel) lowest scores.

    Args:
        scores: importance of each weight, any shape; higher is kept.
        sparsity: fraction to drop, in [0, 1].
    Returns:
        Boolean tensor shaped like scores, True where the weight is kept. Of equal scores, the later one is kept.
    Raises:
        ValueError: sparsity outside [0, 1], or a score is NaN.
    Source: paper sec. 2. The original compares with a threshold and drops one weight more.
    """
    return lowest_k_masks([scores], [sparsity])[0][0]


def lowest_k_masks(
    tensors: Sequence[Tensor], sparsities: Sequence[float], score: Score = Tensor.detach
) -> list[list[Tensor]]:
    """Keep-masks for several sparsities over several tensors ranked together.

    Beside the masks this takes memory for some million scores, however many there are; on a CPU, up to PARTITIONED of
    them are copied twice.

    Args:
        tensors: ranked as one, in their order; may be on several devices.
        sparsities: fractions to drop, each in [0, 1].
        score: elementwise function from weights to their importance, of the same dtype; higher is kept. By default the
            tensors are the scores.
    Returns:
        One list per sparsity, with one boolean tensor per tensor of `tensors`, of its shape and on its device. A
        weight that a lower sparsity drops is dropped by every higher one too. Of equal scores, the later one is kept.
    Raises:
        ValueError: a sparsity outside [0, 1], or a score is NaN.
    """
    for sparsity in sparsities:
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    total = sum(tensor.numel() for tensor in tensors)
    masks, has_nan = unchecked_masks(tensors, [round(sparsity * total) for sparsity in sparsities], score)
    refuse_nan([has_nan])
    return masks


def unchecked_masks(
    tensors: Sequence[Tensor], counts: Sequence[int], score: Score = Tensor.detach
) -> tuple[list[list[Tensor]], Tensor]:
    """lowest_k_masks for numbers of weights to drop, without a wait for the device.

    Returns:
        The masks; and a boolean tensor without dimensions, whether a score is NaN, in which case the masks are wrong.
    """
    tensors = [tensor.detach() for tensor in tensors]
    total, dtype = sum(tensor.numel() for tensor in tensors), compared_dtype(tensors)
    few = total <= (PARTITIONED if dtype == torch.float32 else PARTITIONED_16)
    if few and all(tensor.device.type == "cpu" for tensor in tensors):
        return _masks_by_partition(tensors, counts, score)
    if not total:
        masks = [[torch.ones_like(tensor, dtype=torch.bool) for tensor in tensors] for _ in counts]
        return masks, tensors[0].new_zeros((), dtype=torch.bool)
    cuts = find_cuts(tensors, score, dtype, [max(0, count - 1) for count in counts] or [0])
    return _masks_above(tensors, score, dtype, cuts, counts), cuts.nans > 0


def refuse_nan(found: Sequence[Tensor]) -> None:
    """Raises ValueError if one of these tensors, each of which says whether a score is NaN, is True."""
    if found and bool(torch.stack(list(found)).any()):
        raise ValueError("a score is NaN")


def _masks_above(
    tensors: Sequence[Tensor], score: Score, dtype: torch.dtype, cuts: Cuts, counts: Sequence[int]
) -> list[list[Tensor]]:
    """Keep-masks that drop the `counts` lowest scores, which end at `cuts`; for each count, one mask per tensor."""
    masks = [[torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device) for tensor in tensors] for _ in counts]
    ties = list(torch.stack([cuts.tied, cuts.equal], dim=1))
    for index, tensor in enumerate(tensors):
        thresholds, start = cuts.thresholds.to(tensor.device), 0
        for part in flat_parts(tensor):
            scores, stop = score(part).to(dtype), start + len(part)
            for which, count in enumerate(counts):
                if count:
                    keep = masks[which][index].view(-1)[start:stop]
                    ties[which] = _keep_above(scores, thresholds[which], ties[which].to(keep.device), keep)
            start = stop
    return masks


def _keep_above(scores: Tensor, threshold: Tensor, ties: Tensor, keep: Tensor) -> Tensor:
    """Write to `keep` whether each score is above the threshold, or equals it after the ties that are dropped.

    Args:
        scores: a part of all scores, (numel,).
        ties: int64, (2,): of the scores that equal the threshold, in this part and later ones, how many are dropped,
            and how many there are.
    Returns:
        `ties` for the next part; the first is negative if this part had more than are dropped.
    """
    if scores.device.type != "cpu":
        equal = scores == threshold
        number = equal.cumsum(0, dtype=torch.int32)  # of each tie, from 1
        torch.gt(scores, threshold, out=keep)
        keep |= equal & (number > ties[0])
        return ties - number[-1]
    values, limit, kept = scores.float().numpy(), np.float32(threshold.float()), keep.numpy()
    dropped, left = ties.tolist()
    if dropped <= 0:
        np.greater_equal(values, limit, out=kept)
        return ties
    np.greater(values, limit, out=kept)  # numpy compares on one thread twice as fast as torch does on two
    if dropped == left:
        return ties
    equal = np.flatnonzero(values == limit)
    kept[equal[dropped:]] = True
    return ties - len(equal)


def _masks_by_partition(
    tensors: Sequence[Tensor], counts: Sequence[int], score: Score
) -> tuple[list[list[Tensor]], Tensor]:
    """unchecked_masks for few scores on a CPU, by a partition of a copy of them all."""
    scores = [score(tensor).float().flatten() for tensor in tensors]
    flat = scores[0] if len(scores) == 1 else torch.cat([*scores, torch.empty(0)])
    partitioned = flat.numpy().copy()
    _partition(partitioned, sorted({count - 1 for count in counts if count}))
    masks = []
    for count in counts:
        keep = _keep_of(flat.numpy(), partitioned[count - 1], count) if count else np.ones(len(flat), np.bool_)
        parts = torch.from_numpy(keep).split([tensor.numel() for tensor in tensors])
        masks.append([part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])
    return masks, flat.max().isnan() if len(flat) else torch.tensor(False)


def _keep_of(scores: np.ndarray, threshold: np.float32, dropped: int) -> np.ndarray:
    """True for all but the `dropped` lowest scores, of which `threshold` is the highest; ties as in lowest_k_mask."""
    keep = scores > threshold
    surplus = dropped - (len(keep) - np.count_nonzero(keep))
    if surplus < 0:  # more scores equal the threshold than are to be dropped: the last of them are kept
        keep[np.flatnonzero(scores == threshold)[surplus:]] = True
    return keep


def _partition(values: np.ndarray, ranks: list[int], start: int = 0) -> None:
    """Move the value of each rank to its index in sorted order, as np.partition does, in place.

    By bisection of the ranks, which visits every element about log2(ranks) times; np.partition goes over the whole
    array once for each rank.
    """
    if not ranks:
        return
    middle = len(ranks) // 2
    pivot = ranks[middle] - start
    values.partition(pivot)
    _partition(values[:pivot], ranks[:middle], start)
    _partition(values[pivot + 1 :], ranks[middle + 1 :], ranks[middle] + 1)


def apply_masks(named_parameters: Mapping[str, nn.Parameter], keep_masks: Mapping[str, Tensor]) -> None:
    """Set every weight that its mask drops to zero, in place."""
    with torch.no_grad():
        for name, keep in keep_masks.items():
            parameter = named_parameters[name]
            parameter.masked_fill_(~keep.to(parameter.device), 0)


def hold_masks(
    optimizer: torch.optim.Optimizer,
    named_parameters: Mapping[str, nn.Parameter],
    keep_masks: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor] | None = None,
) -> torch.utils.hooks.RemovableHandle:
    """After every step of `optimizer`, the last too, dropped weights are set to zero (or to their frozen values).

    Changes the parameters in place, in their dtype; a step costs one multiplication per masked weight (and one addition
    with `frozen`).

    Args:
        named_parameters: the trained parameters by name; may hold more than the masks name.
        keep_masks: True where the weight is trained; shaped like the parameter.
        frozen: values for dropped weights, shaped like the parameters; zero when None.
    Returns:
        The hook's handle; its remove() stops this.
    """
    held = []
    for name, keep in keep_masks.items():
        parameter = named_parameters[name]
        keep = keep.to(parameter.device)
        factor = keep.to(parameter.dtype)  # multiplying by a mask of the weights' dtype is 5x faster than by a boolean
        rest = frozen[name].to(parameter).masked_fill(keep, 0) if frozen is not None else None
        held.append((parameter, factor, rest))

    @torch.no_grad()
    def hold(*_: object) -> None:
        for parameter, factor, rest in held:
            parameter.mul_(factor)
            if rest is not None:
                parameter.add_(rest)

    return optimizer.register_step_post_hook(hold)


def zero_fraction(weights: Iterable[Tensor]) -> float:
    """Measured sparsity: the fraction of exactly zero entries over all `weights`."""
    nonzero: dict[torch.device, Tensor] = {}
    total = 0
    for weight in weights:
        count = weight.detach().count_nonzero()
        nonzero[weight.device] = nonzero.get(weight.device, torch.zeros_like(count)) + count
        total += weight.numel()
    return (total - sum(int(count) for count in nonzero.values())) / total  # one wait for each device
