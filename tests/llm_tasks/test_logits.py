import pytest
import torch

from llm_tasks.engine import log_likelihood


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_log_sums_in_parts_are_those_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "NORMALIZED_AT_ONCE_CPU", 2 * 7)
    values = 30 * torch.randn(rows, 7)
    torch.testing.assert_close(log_likelihood.log_sums(values), values.logsumexp(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 10, 100])
def test_hidden_states_are_read_as_their_logits(columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_likelihood, "AT_ONCE_CPU", 1)
    monkeypatch.setattr(log_likelihood, "FEWEST_COLUMNS", columns)
    monkeypatch.setattr(log_likelihood, "NORMALIZED_AT_ONCE_CPU", 1)
    draw = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(size, 8, generator=draw).to(dtype) for size in (6, 20))
    at, tokens = torch.tensor([0, 0, 3, 5]), torch.tensor([0, 19, 7, 19])
    asked = log_likelihood.Asked(at, tokens, firsts=torch.tensor([5, 0, 2]))
    whole = hidden @ weights.T
    for outputs, factor in ((hidden, weights), (whole, None)):
        found, top = log_likelihood.read_logits(outputs, factor, asked)
        torch.testing.assert_close(found, whole.float().log_softmax(dim=-1)[at, tokens], rtol=1e-5, atol=1e-5)
        assert top.tolist() == whole[[5, 0, 2]].argmax(dim=-1).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_anywhere_in_a_row_is_seen(dtype: torch.dtype):
    values = torch.zeros(2, 9, dtype=dtype)
    values[1, 4] = torch.nan
    asked = log_likelihood.Asked(torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([0]))
    found, _ = log_likelihood.read_logits(values, None, asked)
    assert found.isnan().tolist() == [False, True]
