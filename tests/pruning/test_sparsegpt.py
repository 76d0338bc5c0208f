from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Traffic, fake_accelerator

from pruning import column_kernels, sparsegpt
from pruning.hessian import InverseFactor, factor_inverse
from pruning.masks import lowest_k_mask
from pruning.nm import nm_mask
from pruning.sparsegpt import sparsegpt_prune

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "peer_layer_a.npz")
NM = [(2, 4), (4, 8), (6, 8), (1, 8)]


def layer(rows: int, features: int, tokens: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and correlated inputs for it."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(features) + torch.randn(features, features, generator=generator) / features**0.5
    X = torch.randn(tokens or 3 * features, features, generator=generator) @ mixing
    return torch.randn(rows, features, generator=generator), X


def output_error(W: torch.Tensor, pruned: torch.Tensor, X: torch.Tensor) -> float:
    return float(((pruned - W).double() @ X.double().T).norm())


def optimal_brain_surgeon(
    W: torch.Tensor, H: torch.Tensor, block: int, sparsity: float | None = None, nm: tuple[int, int] | None = None
) -> torch.Tensor:
    """Brute force in float64: the full inverse Hessian of the columns not yet visited, downdated one at a time."""
    W, H = W.double(), H.double()
    features = len(H)
    H = H + 0.01 * H.diagonal().mean() * torch.eye(features, dtype=torch.float64)
    saliency = torch.stack([torch.linalg.inv(H[j:, j:])[0, 0] for j in range(features)])
    inverse, done = torch.linalg.inv(H), 0
    keep = torch.ones_like(W, dtype=torch.bool)
    for j in range(features):
        if j % (block if nm is None else nm[1]) == 0:
            part = slice(j, min(j + (block if nm is None else nm[1]), features))
            scores = W[:, part] ** 2 / saliency[part]
            count = round(sparsity * len(W) * part.stop) - done if nm is None else 0
            done += count
            keep[:, part] = lowest_k_mask(scores, count / scores.numel()) if nm is None else nm_mask(scores, *nm)
        pruned = torch.where(keep[:, j], 0, W[:, j])
        W = W - torch.outer(pruned / inverse[j, j], inverse[j])
        W[~keep] = W[~keep].where(torch.arange(features).expand_as(W)[~keep] > j, 0)
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return W.where(keep, 0)


@pytest.mark.parametrize("strength", [{"sparsity": 0.5}, {"sparsity": 0.3}, {"nm": (2, 4)}, {"nm": (3, 4)}])
@pytest.mark.parametrize("block_size", [4, 8, 24, 128])
def test_equals_brute_force_optimal_brain_surgeon(strength: dict, block_size: int):
    W, X = layer(7, 24)
    expected = optimal_brain_surgeon(W, X.T @ X, min(block_size, 24), **strength)
    pruned = sparsegpt_prune(W, X.T @ X, block_size=block_size, **strength)
    assert torch.equal(pruned == 0, expected == 0)
    torch.testing.assert_close(pruned.double(), expected, rtol=1e-4, atol=1e-4)


def test_two_weights_by_hand():
    """H = [[2, 1], [1, 1]] has the inverse [[1, -1], [-1, 2]]: without the first weight, 1, the second gains 1."""
    H = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    pruned = sparsegpt_prune(torch.tensor([[1.0, 5.0]]), H, 0.5, damping=0)
    torch.testing.assert_close(pruned, torch.tensor([[0.0, 6.0]]))


@pytest.mark.parametrize("nm", NM)
def test_agrees_with_the_published_code_on_nm(nm: tuple[int, int]):
    """Damping is set so that, like there, an input that is always 0 counts 1 in the mean diagonal."""
    W, H, X = (torch.from_numpy(GOLDEN[key]) for key in ("weight", "hessian", "inputs"))
    published = torch.from_numpy(GOLDEN[f"sparsegpt_{nm[0]}of{nm[1]}"])
    pruned = sparsegpt_prune(W, H, nm=nm, damping=0.01 * float(1 + (H.diagonal() == 0).sum() / H.diagonal().sum()))
    assert torch.isclose(pruned, published, rtol=1e-4, atol=1e-6).float().mean() > 0.999
    inputs = X.reshape(-1, 192)
    assert output_error(W, pruned, inputs) == pytest.approx(output_error(W, published, inputs), rel=1e-3)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_agrees_with_the_published_code_on_unstructured(sparsity: float):
    """There one weight more of each 128-column block goes, which shifts the rest of that row a little."""
    W, H, X = (torch.from_numpy(GOLDEN[key]) for key in ("weight", "hessian", "inputs"))
    published = torch.from_numpy(GOLDEN[f"sparsegpt_{sparsity}"])
    pruned = sparsegpt_prune(W, H, sparsity)
    assert torch.isclose(pruned, published, rtol=1e-4, atol=1e-6).float().mean() > 0.98
    inputs = X.reshape(-1, 192)
    assert output_error(W, pruned, inputs) == pytest.approx(output_error(W, published, inputs), rel=5e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("shape", [(13, 40), (1, 40), (13, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_count_over_all_blocks(sparsity: float, shape: tuple[int, int], dtype: torch.dtype):
    W, X = layer(*shape)
    pruned = sparsegpt_prune(W.to(dtype), X.T @ X, sparsity, block_size=16)
    assert pruned.dtype == dtype and pruned.shape == W.shape
    assert int((pruned == 0).sum()) == round(sparsity * W.numel())


def test_sparsity_0_changes_nothing_and_input_is_left_alone():
    W, X = layer(6, 20)
    H = X.T @ X
    before = W.clone(), H.clone()
    assert torch.equal(sparsegpt_prune(W, H, 0.0), W)
    sparsegpt_prune(W, H, 0.5)
    assert torch.equal(W, before[0]) and torch.equal(H, before[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_uncorrelated_equal_inputs_give_magnitude_in_each_block(scale: float):
    W, _ = layer(9, 32)
    pruned = sparsegpt_prune(W, scale * torch.eye(32), 0.5, block_size=16)
    for part in (slice(0, 16), slice(16, 32)):
        torch.testing.assert_close(pruned[:, part], W[:, part] * lowest_k_mask(W[:, part].abs(), 0.5), rtol=0, atol=0)
    by_group = sparsegpt_prune(W, scale * torch.eye(32), nm=(2, 4))
    torch.testing.assert_close(by_group, W * nm_mask(W.abs(), 2, 4), rtol=0, atol=0)


def test_ties_go_to_the_later_input():
    H = torch.eye(4)
    assert (sparsegpt_prune(torch.ones(2, 4), H, nm=(2, 4)) != 0).tolist() == [[False, False, True, True]] * 2
    assert (sparsegpt_prune(torch.ones(1, 4), H, 0.5) != 0).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"nm": (2, 4)}])
def test_output_error_is_below_that_of_magnitude_and_of_its_own_mask(seed: int, strength: dict):
    """Not a theorem: on inputs that hardly correlate a mask chosen without looking ahead can lose to magnitude.

    Here 12 hidden causes and a little noise drive 48 inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    W, causes = torch.randn(24, 48, generator=generator), torch.randn(200, 12, generator=generator)
    X = causes @ torch.randn(12, 48, generator=generator) + 0.3 * torch.randn(200, 48, generator=generator)
    pruned = sparsegpt_prune(W, X.T @ X, **strength)
    keep = nm_mask(W.abs(), *strength["nm"]) if "nm" in strength else lowest_k_mask(W.abs(), **strength)
    assert output_error(W, pruned, X) < output_error(W, W * keep, X)
    assert output_error(W, pruned, X) < output_error(W, W * (pruned != 0), X)


def test_rank_deficient_hessian_and_dead_inputs():
    W, X = layer(12, 40, tokens=10)
    X[:, [3, 17]] = 0
    pruned = sparsegpt_prune(W, X.T @ X, 0.5)
    assert pruned.isfinite().all() and (pruned[:, [3, 17]] == 0).all()
    assert int((pruned == 0).sum()) == 240
    assert output_error(W, pruned, X) < output_error(W, W * lowest_k_mask(W.abs(), 0.5), X)


def test_shared_factor_equals_the_hessian_bit_for_bit():
    W, X = layer(8, 30)
    factor = factor_inverse(X.T @ X)
    for strength in ({"sparsity": 0.4}, {"nm": (1, 2)}):
        separate = sparsegpt_prune(W, X.T @ X, **strength)
        assert torch.equal(sparsegpt_prune(W, factor, **strength), separate)
        assert torch.equal(sparsegpt_prune(W[:5], factor, **strength), sparsegpt_prune(W[:5], X.T @ X, **strength))


@pytest.mark.parametrize("nm", [(0, 0), (2, 4), (5, 8)])
@pytest.mark.parametrize("rows", [1, 130, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_kernel_equals_the_torch_loop(nm: tuple[int, int], rows: int, threads: int):
    generator = torch.Generator().manual_seed(3)
    columns = torch.randn(32, rows, generator=generator)
    upper = torch.randn(32, 32, generator=generator).triu() * 0.1 + torch.eye(32)
    keep = torch.rand(32, rows, generator=generator) < 0.5
    ours = columns.clone(), keep.clone(), torch.empty_like(columns)
    twin = columns.clone(), keep.clone(), torch.empty_like(columns)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        column_kernels.prune_columns(ours[0], upper, ours[1], ours[2], *nm)
    finally:
        torch.set_num_threads(before)
    sparsegpt._prune_columns_torch(twin[0], upper, twin[1], twin[2], *nm, [])
    assert torch.equal(ours[1], twin[1])
    torch.testing.assert_close(ours[0], twin[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[2], twin[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "not both and not neither"),
        ({"sparsity": 0.5, "nm": (2, 4)}, "not both"),
        ({"sparsity": -0.5}, "sparsity -0.5"),
        ({"nm": (2, 5)}, "groups of 5 do not divide 8"),
        ({"nm": (2, 4), "block_size": 6}, "block_size 6 is not a positive multiple of 4"),
        ({"sparsity": 0.5, "block_size": 0}, "block_size 0"),
        ({"sparsity": 0.5, "hessian": torch.eye(7)}, r"shape \(7, 7\) does not fit 8 inputs"),
        ({"sparsity": 0.5, "hessian": factor_inverse(torch.eye(7))}, "does not fit 8 inputs"),
        ({"sparsity": 0.5, "hessian": factor_inverse(torch.eye(8), act_order=True)}, "factored with act_order=True"),
        ({"sparsity": 0.5, "hessian": torch.full((8, 8), torch.nan)}, "the Hessian holds NaN"),
        ({"sparsity": 0.5, "W": torch.full((2, 8), torch.inf)}, "the weight holds NaN or infinity"),
        ({"sparsity": 0.5, "W": torch.ones(2, 8).long()}, "matrix of floats"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sparsegpt_prune(**({"W": torch.ones(2, 8), "hessian": torch.eye(8)} | arguments))


@pytest.mark.parametrize(
    ("strength", "dtype"),
    [
        ({"sparsity": 0.5}, torch.bfloat16), ({"nm": (2, 4)}, torch.float32),
        *slow_cases(
            ({"sparsity": 0.5}, torch.float32), ({"sparsity": 0.5}, torch.float16),
            ({"nm": (2, 4)}, torch.bfloat16), ({"nm": (2, 4)}, torch.float16),
            *(({"nm": (3, 64)}, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
        ),
    ],
)  # fmt: skip
def test_an_accelerator_agrees_with_the_cpu(accelerator: str, strength: dict, dtype: torch.dtype):
    W, X = layer(64, 256)
    W[:, 7], X[:, 9] = 0, 0
    W, H = W.to(dtype), X.T @ X
    on_cpu = sparsegpt_prune(W, H, **strength)
    there = sparsegpt_prune(W.to(accelerator), H.to(accelerator), **strength)
    assert there.device.type == accelerator and there.dtype == dtype
    there = there.cpu()
    if "sparsity" in strength:
        least = round(0.5 * W.numel())
        assert least <= int((there == 0).sum()) <= least + 2 * len(W)  # kept weights are 0 at the two dead inputs alone
    else:
        n_kept, m_group = strength["nm"]
        assert ((there != 0).view(64, -1, m_group).sum(dim=2) <= n_kept).all()
    assert output_error(W, there, X) == pytest.approx(output_error(W, on_cpu, X), rel=5e-3)


@pytest.mark.parametrize("strength", [{"sparsity": 0.5}, *slow_cases({"nm": (2, 4)}, {"nm": (3, 64)})])
def test_waits_do_not_grow_with_the_columns(strength: dict):
    """For W's values, the scores', and the factor's (one for H's values, one for whether it exists)."""
    for features in (64, 320):
        W, X = layer(5, features)
        with fake_accelerator() as meter:
            W, H = W.to("fake"), (X.T @ X).to("fake")
            meter.reset()
            sparsegpt_prune(W, H, block_size=64, **strength)
            assert meter.traffic == Traffic(0, 1, 0, 4 * features, waits=4)
            factor = factor_inverse(H)
            meter.reset()
            sparsegpt_prune(W, factor, block_size=64, **strength)
            assert meter.traffic == Traffic(0, 0, 0, 0, waits=2)


@pytest.mark.parametrize("strength", [{"sparsity": 0.5}, {"nm": (2, 4)}])
def test_scores_that_overflow_to_nan_are_refused(accelerator: str, strength: dict):
    """The first dropped weight makes the next one infinite, and the two together all later ones NaN."""
    upper = torch.full((16, 16), 10.0).triu(1) + torch.eye(16)
    factor = InverseFactor(upper, torch.zeros(16, dtype=torch.bool), 0.01, None)
    there = factor._replace(upper=factor.upper.to(accelerator), dead=factor.dead.to(accelerator))
    W = torch.full((3, 16), 3e38)
    with pytest.raises(ValueError, match="a score is NaN"):
        sparsegpt_prune(W.to(accelerator), there, block_size=4, **strength)
    if "sparsity" in strength:
        with pytest.raises(ValueError, match="a score is NaN"):
            sparsegpt_prune(W, factor, block_size=4, **strength)
