"""Keep-masks: drop exactly the k lowest scores, hold a mask through training, count zeros."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn


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


def lowest_k_masks(scores: Sequence[Tensor], sparsities: Sequence[float]) -> list[list[Tensor]]:
    """Keep-masks for several sparsities over several tensors ranked together, in one pass over the scores.

    Args:
        scores: importance of each weight; the tensors are ranked as one, in their order; higher is kept.
        sparsities: fractions to drop, each in [0, 1].
    Returns:
        One list per sparsity, with one boolean tensor per tensor of `scores`, of its shape and on its device. A
        weight that a lower sparsity drops is dropped by every higher one too. Of equal scores, the later one is kept.
    Raises:
        ValueError: a sparsity outside [0, 1], or a score is NaN.
    """
    for sparsity in sparsities:
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    flat = torch.cat([tensor.detach().float().flatten() for tensor in scores])
    counts = [round(sparsity * flat.numel()) for sparsity in sparsities]
    thresholds = _order_statistics(flat, {count - 1 for count in counts if count > 0})
    masks = []
    for count in counts:
        keep = _keep_above(flat, thresholds[count - 1], count) if count else torch.ones_like(flat, dtype=torch.bool)
        parts = keep.split([tensor.numel() for tensor in scores])
        masks.append([part.view(tensor.shape) for part, tensor in zip(parts, scores, strict=True)])
    return masks


def _keep_above(flat: Tensor, threshold: float, dropped: int) -> Tensor:
    """True for all but the `dropped` lowest scores, of which `threshold` is the highest; ties as in lowest_k_mask."""
    if flat.device.type == "cpu":  # numpy compares and counts on one thread twice as fast as torch does on two
        above = flat.numpy() > np.float32(threshold)
        keep, kept = torch.from_numpy(above), np.count_nonzero(above)
    else:
        keep = flat > threshold
        kept = int(keep.count_nonzero())
    surplus = dropped - (keep.numel() - kept)
    if surplus < 0:  # more scores equal the threshold than are to be dropped: the last of them are kept
        ties = (flat == threshold).nonzero().flatten()
        keep[ties[surplus:]] = True
    return keep


def _order_statistics(flat: Tensor, ranks: set[int]) -> dict[int, float]:
    """The value at each rank (0 = lowest), in one pass: a partition on a CPU, a sort on an accelerator."""
    if flat.numel() and flat.max().isnan():
        raise ValueError("a score is NaN")
    ordered = sorted(ranks)
    if flat.device.type != "cpu":
        values = flat.sort().values[ordered].tolist()
    else:
        partitioned = flat.numpy().copy()
        _partition(partitioned, ordered)
        values = partitioned[ordered].tolist()
    return dict(zip(ordered, values, strict=True))


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
    zeros = total = 0
    for weight in weights:
        zeros += weight.numel() - int(weight.detach().count_nonzero())
        total += weight.numel()
    return zeros / total
