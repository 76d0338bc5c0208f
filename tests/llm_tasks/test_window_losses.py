"""Losses, divergences and their summary by hand, and where memory runs out."""

import math

import numpy as np
import pytest
import torch
from tiny_models import make_model

from llm_tasks.engine import window_losses
from pruning.blocks import CPU, HostBlocks
from pruning.layers import decoder_blocks


def test_window_losses_by_hand():
    logits = torch.zeros(2, 3, 4)
    logits[1, 0, 2] = math.log(5)  # probabilities 1/8, 1/8, 5/8, 1/8
    windows = torch.tensor([[0, 1, 2], [0, 2, 3]])
    found = window_losses.window_losses(logits, windows)
    assert found == pytest.approx([math.log(4), (math.log(8 / 5) + math.log(4)) / 2])
    rounded = logits.bfloat16()  # losses are in float32 all the same
    assert window_losses.window_losses(rounded, windows) == window_losses.window_losses(rounded.float(), windows)


def test_a_loss_too_large_for_a_perplexity_is_named():
    level = window_losses.describe_perplexity("text", {"window_loss": np.array([699.0, 701.0])}, 40)
    assert level["score"] == math.exp(700) and level["stderr"] == pytest.approx(math.exp(700))  # (701 - 699) / 2
    with pytest.raises(FloatingPointError, match="the mean loss is 710 nats per token: too large for a perplexity"):
        window_losses.describe_perplexity("text", {"window_loss": np.array([709.0, 711.0])}, 40)


def test_a_mean_divergence_has_a_standard_error_of_its_own():
    items = {"window_loss": np.array([1.0, 1.0]), window_losses.KL: np.array([0.25, 0.75])}
    level = window_losses.describe_perplexity("text", items, 40)
    assert (level["kl"], level["kl_stderr"], level["stderr"]) == (0.5, pytest.approx(0.25), 0)  # (0.75 - 0.25) / 2


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["window_loss", "window_kl"])
def test_a_loss_or_divergence_that_is_no_number_is_an_error(name: str, wrong: float):
    items = {"window_loss": np.ones(2), "window_kl": np.ones(2), name: np.array([1.0, wrong])}
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        window_losses.describe_perplexity("text", items, 40)


def test_divergences_by_hand():
    """From (3/4, 1/4) to (1/2, 1/2) at the first of two positions; the last distribution is of no token here."""
    dense, compressed = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    dense[1, 0, 0] = math.log(3)
    dense[:, 2, 0] = 9.0
    found = window_losses.window_divergences(dense, compressed)
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert found == pytest.approx([0, expected], abs=1e-7)
    excluded = dense.clone()
    excluded[:, :, 1] = -torch.inf  # certain of the first token: KL is minus the log of its probability
    assert window_losses.window_divergences(excluded, compressed) == pytest.approx([math.log(2)] * 2)
    rounded = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    both = window_losses.window_divergences(dense.bfloat16(), rounded)
    assert both == window_losses.window_divergences(dense.bfloat16().float(), rounded.float())


@pytest.mark.parametrize("blockwise", [False, True])
def test_where_memory_runs_out_once_every_window_is_still_measured_once(
    blockwise: bool, monkeypatch: pytest.MonkeyPatch
):
    model, windows = make_model("llama"), torch.randint(0, 40, (7, 8), generator=torch.Generator().manual_seed(0))
    storage = HostBlocks(decoder_blocks(model)[1], CPU)

    def losses() -> np.ndarray:
        if blockwise:
            return window_losses.losses_blockwise(model, storage, windows, 16, "no")
        return window_losses.measured_in_memory(model, windows, 16, "no")["window_loss"]

    expected, calls, measure = losses(), [], window_losses.window_losses

    def limited(*given: torch.Tensor) -> list[float]:
        calls.append(len(given[0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(*given)

    monkeypatch.setattr(window_losses, "window_losses", limited)
    np.testing.assert_allclose(losses(), expected, rtol=1e-5)
    assert calls == [2, 2, 1, 1, 1, 1, 1]
