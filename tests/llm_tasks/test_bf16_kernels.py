import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from llm_tasks.engine import bf16_kernels

NAN, INFINITY = math.nan, math.inf


@pytest.fixture(params=[1, 3], ids=["a thread", "three threads"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(bf16_kernels, "NUMBERS_PER_THREAD", 1)
    yield
    torch.set_num_threads(before)


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(torch.bfloat16)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (2, 3, 577)])
def test_a_norm_is_that_of_transformers(shape: tuple[int, ...]):
    hidden, norm = draw(*shape, scale=3), LlamaRMSNorm(shape[-1], eps=1e-5).to(torch.bfloat16)
    norm.weight.data = draw(shape[-1], seed=1)
    # The sum's order may move a number to its neighbour in bf16, at most 2^-7 away; nothing else may.
    torch.testing.assert_close(
        bf16_kernels.rms_norm(hidden, norm.weight, 1e-5), norm(hidden).detach(), rtol=2**-7, atol=0
    )


def test_a_norm_by_hand():
    hidden = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16)  # of a root mean square of sqrt(12.5)
    found = bf16_kernels.rms_norm(hidden, torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 0.5)
    expected = torch.tensor([[3 / 13**0.5, 8 / 13**0.5], [0, 0]])
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=0)


def test_a_gate_is_that_of_torch_to_the_bit():
    gate, factor = draw(40, 515, scale=8), draw(40, 515, seed=1)
    expected = nn.functional.silu(gate) * factor
    found = bf16_kernels.silu_times_(gate, factor)
    assert found is gate
    assert (bits(found) == bits(expected)).float().mean() > 0.9999  # an exponential on the edge between two numbers
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)


def test_a_gate_far_from_zero():
    gate = torch.tensor([300.0, -300.0, INFINITY, NAN, 0.0], dtype=torch.bfloat16)
    found = bf16_kernels.silu_times_(gate, torch.full((5,), 2.0, dtype=torch.bfloat16)).tolist()
    assert found[0] == 600 and found[1] == pytest.approx(0, abs=1e-30) and found[2] == INFINITY
    assert math.isnan(found[3]) and found[4] == 0


@pytest.mark.parametrize("angles", [1, 3], ids=["positions of all rows", "positions of each row"])
def test_a_rotation_is_that_of_transformers_to_the_bit(angles: int):
    queries, keys = draw(3, 7, 4, 10), draw(3, 7, 2, 10, seed=1)
    turned = torch.randn(angles, 7, 5)
    cos, sin = (torch.cat([value, value], dim=-1).to(torch.bfloat16) for value in (turned.cos(), turned.sin()))
    expected = apply_rotary_pos_emb(queries.transpose(1, 2), keys.transpose(1, 2), cos, sin)
    found = bf16_kernels.rotate(queries, cos, sin), bf16_kernels.rotate(keys, cos, sin)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_log_sums_are_those_of_float64(scale: float):
    logits = draw(5, 4099, scale=scale)
    expected = logits.double().logsumexp(dim=-1)
    torch.testing.assert_close(bf16_kernels.log_sums(logits).double(), expected, rtol=1e-6, atol=2e-6)


def test_log_sums_of_extremes():
    rows = [[-INFINITY, 1.0], [-3e38, 0.0], [3e38, 3e38], [NAN, 1.0], [-NAN, 1.0], [1.0, NAN]]
    found = bf16_kernels.log_sums(torch.tensor(rows, dtype=torch.bfloat16)).tolist()
    assert found[:2] == [1.0, 0.0]
    assert found[2] == pytest.approx(3e38, rel=2**-8)
    assert all(map(math.isnan, found[3:]))


def test_the_sign_of_nan_does_not_hide_it():
    """A processor's own NaN, of 0 / 0, has its sign set: as a whole number it is the least of all."""
    logits = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    bits(logits)[0, 1] = -64  # 0xFFC0
    assert logits[0, 1].isnan()
    assert bf16_kernels.log_sums(logits).isnan().all()
    assert bf16_kernels.softmax_(logits[None], 1.0, torch.zeros_like(logits)).isnan().all()


@pytest.mark.parametrize("scale", [0.125, 8.0])
def test_weights_of_attention_are_those_of_float64(scale: float):
    scores, mask = draw(3, 5, 67, scale=4), draw(5, 67, seed=1)
    hidden = torch.rand(5, 67, generator=torch.Generator().manual_seed(2)) < 0.4
    hidden[:, 0] = False
    hidden[2, 1:] = True  # sees one key
    mask[hidden] = torch.finfo(torch.bfloat16).min
    expected = (scale * scores.double() + mask.double()).softmax(dim=-1)
    found = bf16_kernels.softmax_(scores, scale, mask)
    assert found is scores
    torch.testing.assert_close(found.double(), expected, rtol=2**-8 + 1e-5, atol=1e-30)
    assert (found[:, 2, 0] == 1).all() and (found[:, hidden] == 0).all()


def test_weights_of_attention_by_hand_and_of_extremes():
    lowest = torch.finfo(torch.bfloat16).min
    scores = torch.tensor([[[math.log(2) * 64, 0, 5], [1e38, -1e38, 3e38], [-9, -9, -9]]]).to(torch.bfloat16)
    mask = torch.tensor([[0, 0, lowest], [0, 0, 0], [lowest, lowest, lowest]]).to(torch.bfloat16)
    found = bf16_kernels.softmax_(scores, 1 / 64, mask)[0].float()
    torch.testing.assert_close(found[0], torch.tensor([2 / 3, 1 / 3, 0]), rtol=2**-7, atol=0)
    assert found[1].tolist() == [0, 0, 1]
    assert found[2].sum() == pytest.approx(1, rel=2**-8)  # what sees nothing must not become NaN
