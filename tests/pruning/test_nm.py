from pathlib import Path

import numpy as np
import pytest
import torch
from fake_accelerator import Traffic, fake_accelerator

from pruning.nm import lowest_k_of_rows_mask, nm_mask, parse_nm


def test_keeps_the_n_highest_of_every_m_inputs_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0]])
    assert nm_mask(scores, 1, 4).tolist() == [[False, False, False, True, True, False, False, False]]
    assert nm_mask(scores, 3, 4).tolist() == [[False, True, True, True, True, True, True, False]]


def test_ties_go_to_the_later_input():
    assert nm_mask(torch.ones(1, 4), 2, 4).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("m_group", [4, 8, 16])
def test_every_group_keeps_exactly_n(m_group: int):
    scores = torch.randn(6, 48, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    for n_kept in range(m_group + 1):
        mask = nm_mask(scores, n_kept, m_group)
        assert (mask.view(6, -1, m_group).sum(dim=2) == n_kept).all()


@pytest.mark.parametrize(("n_kept", "m_group"), [(2, 4), (4, 8), (6, 8), (1, 8)])
def test_equals_the_published_magnitude_masks(n_kept: int, m_group: int):
    """golden/peer_layer_a.npz: masks of one layer made by the published code (locuslab/wanda), True = pruned."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "peer_layer_a.npz")
    mask = nm_mask(torch.from_numpy(golden["weight"]).abs(), n_kept, m_group)
    assert np.array_equal(~mask.numpy(), golden[f"magnitude_pruned_{n_kept}of{m_group}"])


@pytest.mark.parametrize("m_group", [2, 4, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_sorted_twin_with_many_ties(m_group: int, dtype: torch.dtype):
    scores = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).mul(3).round().to(dtype)
    groups = scores.view(-1, m_group)
    for n_kept in (0, 1, m_group // 2, m_group):
        dropped = groups.argsort(dim=1, stable=True)[:, : m_group - n_kept]
        expected = torch.ones_like(groups, dtype=torch.bool).scatter_(1, dropped, False)
        assert torch.equal(nm_mask(scores, n_kept, m_group), expected.view(scores.shape))


@pytest.mark.parametrize("m_group", [4, 64])
def test_nan_score_is_refused(m_group: int):
    with pytest.raises(ValueError, match="a score is NaN"):
        nm_mask(torch.full((1, 64), torch.nan), 2, m_group)


def test_groups_never_cross_rows():
    with pytest.raises(ValueError, match="groups of 4 do not divide 6 inputs"):
        nm_mask(torch.ones(4, 6), 2, 4)


def test_parse_reads_kept_of_group():
    assert parse_nm("6:8") == (6, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8:8", "keeps 8 of every 8 weights; N must be from 1 to M - 1"),
        ("0:8", "keeps 0 of every 8"),
        ("9:8", "keeps 9 of every 8"),
        ("28", "2 pruned of 8; write what is kept: 6:8"),
        ("416", "not of the form N:M"),
        ("42", "not of the form N:M"),
        ("a:b", "not of the form N:M"),
        ("2:4:8", "not of the form N:M"),
    ],
)
def test_bad_ratios_say_what_to_write(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_nm(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m_group", [1, 2, 4, 32, 48])
def test_masks_on_an_accelerator_are_those_of_the_cpu(accelerator: str, m_group: int, dtype: torch.dtype):
    """With ties and infinities; groups of 48 are too long to be compared pair by pair."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 96, generator=generator).round(decimals=1)
    scores = scores.masked_fill(torch.rand(6, 96, generator=generator) < 0.1, torch.inf).to(dtype)
    for n_kept in {0, 1, m_group // 2, m_group - 1, m_group}:
        found = nm_mask(scores.to(accelerator), n_kept, m_group)
        assert torch.equal(found.cpu(), nm_mask(scores, n_kept, m_group))
        rows = lowest_k_of_rows_mask(scores.to(accelerator), n_kept)
        assert torch.equal(rows.cpu(), lowest_k_of_rows_mask(scores, n_kept))


@pytest.mark.parametrize("m_group", [4, 48])
def test_an_accelerator_is_waited_for_once_to_refuse_nan(m_group: int):
    with fake_accelerator() as meter:
        scores = torch.randn(6, 96).to("fake")
        meter.reset()
        nm_mask(scores, 2, m_group)
        assert meter.traffic == Traffic(0, 0, 0, 0, waits=1)
        scores[3, 5] = torch.nan
        with pytest.raises(ValueError, match="a score is NaN"):
            nm_mask(scores, 2, m_group)
