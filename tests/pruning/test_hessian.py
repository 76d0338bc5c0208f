import logging

import pytest
import torch
from fake_accelerator import Traffic, fake_accelerator

from pruning import hessian as hessian_module
from pruning.hessian import add_gram, factor_inverse
from pruning.walk import InputStatistics


def correlated_inputs(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, features, generator=generator) @ torch.randn(features, features, generator=generator)


def test_factor_by_hand():
    factor = factor_inverse(torch.tensor([[4.0, 0.0], [0.0, 16.0]]), damping=0)
    assert factor.upper.tolist() == [[0.5, 0], [0, 0.25]]
    assert factor.dead.tolist() == [False, False] and factor.damping == 0 and factor.order is None


@pytest.mark.parametrize("size", [1, 2, 5, 300, 601])
@pytest.mark.parametrize("act_order", [False, True])
def test_factor_is_that_of_the_float64_inverse(size: int, act_order: bool):
    """300 and 601 inputs are above a leaf of the recursion, with halves of equal and unequal size."""
    X = torch.randn(2 * size + 5, size, generator=torch.Generator().manual_seed(1))
    H = X.T @ X
    factor = factor_inverse(H, 0.01, act_order)
    damped = H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(size, dtype=torch.float64)
    if act_order:
        assert (H.diagonal()[factor.order].diff() <= 0).all()
        damped = damped[factor.order][:, factor.order]
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert torch.equal(factor.upper, factor.upper.triu())
    torch.testing.assert_close(factor.upper.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("act_order", [False, True])
def test_scale_and_dead_inputs_leave_the_others_alone(act_order: bool):
    X = correlated_inputs(50, 6)
    X[:, [1, 4]] = 0
    H = X.T @ X
    factor = factor_inverse(H, act_order=act_order)
    assert factor.dead.tolist() == [False, True, False, False, True, False]
    scaled = factor_inverse(2.0**20 * H, act_order=act_order)
    live = ~(factor.dead if factor.order is None else factor.dead[factor.order])
    assert torch.equal(scaled.upper[live][:, live] * 2**10, factor.upper[live][:, live])
    assert torch.equal(factor.upper[~live], torch.eye(6)[~live])


def test_all_inputs_dead():
    factor = factor_inverse(torch.zeros(3, 3))
    assert factor.dead.all() and torch.equal(factor.upper, torch.eye(3))


def test_rank_deficient_hessian_needs_no_more_damping():
    X = correlated_inputs(3, 20)
    factor = factor_inverse(X.T @ X)
    assert factor.damping == 0.01 and factor.upper.isfinite().all()


def test_damping_is_raised_with_a_warning(caplog: pytest.LogCaptureFixture):
    H = torch.tensor([[1.0, 1.05], [1.05, 1.0]])  # positive definite from damping 0.05 upward
    with caplog.at_level(logging.WARNING):
        factor = factor_inverse(H, 0.01)
    assert factor.damping == pytest.approx(0.1) and "used 0.1" in caplog.text
    assert factor_inverse(torch.ones(2, 2), 0.0).damping == 0.01


def test_indefinite_matrix_is_refused_never_the_identity():
    with pytest.raises(ValueError, match=r"not positive definite even at damping 1 in float64"):
        factor_inverse(torch.tensor([[1.0, 5.0], [5.0, 1.0]]))


@pytest.mark.parametrize(
    ("H", "damping", "message"),
    [
        (torch.ones(2, 3), 0.01, r"shape \(2, 3\) is not square"),
        (torch.full((2, 2), torch.nan), 0.01, "NaN or infinity"),
        (torch.full((2, 2), torch.inf), 0.01, "NaN or infinity"),
        (-torch.eye(2), 0.01, "diagonal holds -1"),
        (torch.eye(2), -0.5, "damping -0.5"),
        (torch.eye(2), float("nan"), "damping nan"),
    ],
)
def test_bad_input_is_named(H: torch.Tensor, damping: float, message: str):
    with pytest.raises(ValueError, match=message):
        factor_inverse(H, damping)


def test_factors_of_every_damping_and_order_are_kept_apart():
    inputs = InputStatistics("hessian", 5, torch.device("cpu"))
    inputs.add(correlated_inputs(20, 5))
    for damping, act_order in [(0.01, False), (0.01, True), (0.5, False), (0.01, False)]:
        found = inputs.inverse_factor(damping, act_order)
        expected = factor_inverse(inputs.hessian, damping, act_order=act_order)
        assert torch.equal(found.upper, expected.upper) and (found.order is None) is not act_order


def test_hessian_is_left_alone():
    X = correlated_inputs(9, 4)
    H = X.T @ X
    before = H.clone()
    factor_inverse(H)
    factor_inverse(H, act_order=True)
    assert torch.equal(H, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_gram_is_added_as_in_float64(dtype: torch.dtype, tokens: int):
    X = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    for inputs in (X, torch.cat([X, X], dim=1)[:, :40]):  # contiguous or not
        H = torch.eye(40)
        add_gram(H, inputs)
        expected = torch.eye(40, dtype=torch.float64) + X.double().T @ X.double()
        torch.testing.assert_close(H.double(), expected, rtol=1e-5, atol=1e-4)


def test_bfloat16_gram_without_the_library_is_the_same(monkeypatch: pytest.MonkeyPatch):
    X = torch.randn(64, 16).bfloat16()
    with_library, without = torch.zeros(16, 16), torch.zeros(16, 16)
    add_gram(with_library, X)
    monkeypatch.setattr(hessian_module, "_bfloat16_matmul", lambda: None)
    add_gram(without, X)
    torch.testing.assert_close(with_library, without, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("H", "X", "message"),
    [
        (torch.zeros(3, 3), torch.ones(5, 4), r"shape \(5, 4\) do not fit"),
        (torch.zeros(4, 4), torch.ones(4), "do not fit"),
        (torch.zeros(4, 4).bfloat16(), torch.ones(5, 4), "must be float32"),
    ],
)
def test_gram_refuses_what_does_not_fit(H: torch.Tensor, X: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        add_gram(H, X)


@pytest.mark.gpu
@pytest.mark.parametrize("at_once", [hessian_module.GRAM_AT_ONCE, 64 * 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gram_on_a_gpu_accumulates_in_float32(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch):
    """Also in parts of 20 rows, the last of 4."""
    monkeypatch.setattr(hessian_module, "GRAM_AT_ONCE", at_once)
    X = torch.randn(4096, 64).to(dtype)
    H = torch.ones(64, 64, device="cuda")
    add_gram(H, X.cuda())
    torch.testing.assert_close(H.cpu().double(), X.double().T @ X.double() + 1, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gram_on_an_accelerator_is_that_of_the_cpu(accelerator: str, dtype: torch.dtype):
    X = torch.randn(70, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    mine, there = torch.eye(16), torch.eye(16).to(accelerator)
    add_gram(mine, X)
    add_gram(there, X.to(accelerator))
    torch.testing.assert_close(there.cpu(), mine, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [5, 601])
def test_factor_on_an_accelerator_is_that_of_the_cpu(accelerator: str, size: int, act_order: bool):
    X = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(3))
    X[:, 2] = 0
    mine = factor_inverse(X.T @ X, act_order=act_order)
    there = factor_inverse((X.T @ X).to(accelerator), act_order=act_order)
    assert {there.upper.device.type, there.dead.device.type} == {accelerator}
    assert torch.equal(there.dead.cpu(), mine.dead) and there.damping == mine.damping
    assert there.order is mine.order is None or torch.equal(there.order.cpu(), mine.order)
    torch.testing.assert_close(there.upper.cpu(), mine.upper, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", [5, 300, 1100])
def test_waits_do_not_grow_with_the_size(size: int, act_order: bool):
    """One to refuse NaN and one to look whether the factor exists; the diagonal is copied to the CPU."""
    H = torch.eye(size) + 0.01
    with fake_accelerator() as meter:
        there = H.to("fake")
        meter.reset()
        factor_inverse(there, act_order=act_order)
        assert meter.traffic == Traffic(copies_in=0, copies_out=1, bytes_in=0, bytes_out=4 * size, waits=2)


def test_matrices_held_at_once():
    """Beside H one that becomes L^-1, and two quarters of it, or one that is U."""
    H = torch.eye(1024) + 0.01
    with fake_accelerator() as meter:
        there = H.to("fake")
        meter.reset()
        factor_inverse(there, act_order=True)
        assert meter.peak_bytes < 3.1 * 4 * 1024**2


@pytest.mark.parametrize("act_order", [False, True])
def test_an_attempt_in_float64_is_made_where_there_is_one(monkeypatch: pytest.MonkeyPatch, act_order: bool):
    """No float32 attempt is made here; a device without float64 has the CPU try, and gets its factor back."""
    X = correlated_inputs(50, 6)
    H = X.T @ X
    monkeypatch.setattr(hessian_module, "_attempts", lambda damping: [(torch.float64, damping)])
    mine = factor_inverse(H, act_order=act_order)
    for has_float64, bytes_in in [(True, 0), (False, 36 * 4)]:
        monkeypatch.setattr(
            hessian_module, "has_float64", lambda device, here=has_float64: here or device.type == "cpu"
        )
        with fake_accelerator() as meter:
            there = H.to("fake")
            meter.reset()
            upper = factor_inverse(there, act_order=act_order).upper
            assert upper.device.type == "fake" and torch.equal(upper.cpu(), mine.upper)
            assert meter.traffic.bytes_in == bytes_in
