"""OWL's allocation by hand and against twins; exact totals; files of sparsities."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.allocation import exact_counts, file_sparsities, outlier_ratio, owl_sparsities, read_allocation


def test_outlier_ratio_by_hand():
    """Scores [[1, 4], [2, 40]] and [[3, 10]]: their mean is 10, so above 3 times it is one of six."""
    weights = {"a": torch.tensor([[1.0, -2.0], [2.0, 20.0]]), "b": torch.tensor([[-3.0, 1.0]])}
    norms = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([1.0, 100.0])}
    assert outlier_ratio(weights, norms, 3.0) == 1 / 6
    assert outlier_ratio(weights, norms, 4.0) == 0  # an outlier is above, not at
    assert outlier_ratio({"a": torch.zeros(2, 2)}, {"a": torch.ones(2)}, 5.0) == 0


def test_outlier_ratio_is_that_of_all_scores_at_once():
    torch.manual_seed(0)
    weights = {name: torch.randn(rows, 7) ** 3 for name, rows in (("a", 5), ("b", 11))}
    norms = {name: torch.rand(7) for name in weights}
    scores = torch.cat([(weights[name].double().abs() * norms[name].double().sqrt()).flatten() for name in weights])
    for outliers in (1.0, 2.0, 5.0):
        assert outlier_ratio(weights, norms, outliers) == (scores > outliers * scores.mean()).double().mean().item()


def published(ratios: list[float], sparsity: float, spread: float) -> np.ndarray:
    """The published code's shares that are kept, turned into sparsities: scaled to a width of 2 lambda, and shifted."""
    array = np.array(ratios)
    kept = (array - array.min()) / (array.max() - array.min()) * 2 * spread
    return 1 - (kept - kept.mean() + 1 - sparsity)


def test_owl_by_hand():
    """Ratios 0, 1, 2 scale to 0, 0.1, 0.2 that are kept more; their mean 0.1 is shifted to sparsity 0.6."""
    found = owl_sparsities({0: 0.0, 1: 1.0, 2: 2.0}, {0: 10, 1: 10, 2: 10}, 0.6, 0.1)
    assert list(found.values()) == pytest.approx([0.7, 0.6, 0.5])
    # Block 0 weighs twice as much: the mean of 0, 0.1, 0.2 is 0.075, block 2 would be 0.125 below and is held at 0.1.
    found = owl_sparsities({0: 0.0, 1: 1.0, 2: 2.0}, {0: 20, 1: 10, 2: 10}, 0.6, 0.1)
    assert found[2] == pytest.approx(0.5) and found[0] - found[1] == pytest.approx(0.1)
    assert 20 * found[0] + 10 * found[1] + 10 * found[2] == pytest.approx(0.6 * 40)


def test_owl_has_the_mean_keeps_to_the_range_and_spares_outliers():
    draw = random.Random(0)
    for _ in range(200):
        blocks, spread = draw.randrange(2, 9), draw.choice([0.02, 0.08])
        sparsity = draw.uniform(spread, 1 - spread - 1e-9)
        ratios = [draw.uniform(0, 0.1) ** draw.choice([1, 3]) for _ in range(blocks)]
        sizes = {block: draw.choice([100, 300]) for block in range(blocks)}
        values = np.array(list(owl_sparsities(dict(enumerate(ratios)), sizes, sparsity, spread).values()))
        assert abs(values - sparsity).max() <= spread + 1e-12
        assert np.average(values, weights=list(sizes.values())) == pytest.approx(sparsity, abs=1e-12)
        assert (np.diff(values[np.argsort(ratios)]) <= 1e-12).all()  # more outliers, never more pruned
        free = abs(values - sparsity) < spread - 1e-9  # those not held at an end differ as the published code's do
        twin = published(ratios, sparsity, spread)
        assert not free.any() or np.ptp((values - twin)[free]) < 1e-9


def test_owl_is_the_published_codes_where_the_ratios_lie_evenly_about_their_middle():
    """Then the mean is half-way, and the code's sparsities keep to the range by themselves."""
    draw = random.Random(1)
    for _ in range(50):
        half = [draw.uniform(0, 0.1) for _ in range(draw.randrange(1, 5))]
        ratios = [*half, *(0.1 - ratio for ratio in half)]
        found = owl_sparsities(dict(enumerate(ratios)), dict.fromkeys(range(len(ratios)), 7), 0.6, 0.08)
        assert list(found.values()) == pytest.approx(published(ratios, 0.6, 0.08).tolist(), abs=1e-9)


def test_blocks_alike_are_pruned_alike():
    assert owl_sparsities({3: 0.1, 5: 0.1}, {3: 1, 5: 9}, 0.5) == {3: 0.5, 5: 0.5}
    assert owl_sparsities({3: 0.1}, {3: 1}, 0.5) == {3: 0.5}


@pytest.mark.parametrize(("sparsity", "spread"), [(0.05, 0.08), (0.92, 0.08), (0.5, 0.6)])
def test_a_range_beyond_zero_and_one_is_refused(sparsity: float, spread: float):
    with pytest.raises(ValueError, match=rf"--sparsity {sparsity}: .* leaves \[0, 1\); a smaller --owl_range"):
        owl_sparsities({0: 0.0, 1: 1.0}, {0: 1, 1: 1}, sparsity, spread)


def test_exact_counts_by_hand():
    """Shares 1.5, 1.5, 2.0 of 5: one half is rounded up, the earlier one."""
    assert exact_counts({"a": 0.5, "b": 0.5, "c": 0.5}, {"a": 3, "b": 3, "c": 4}, 5) == {"a": 2, "b": 1, "c": 2}
    assert exact_counts({"a": 0.0, "b": 1.0}, {"a": 3, "b": 3}, 3) == {"a": 0, "b": 3}


def test_counts_sum_to_the_total_and_are_within_one_of_their_shares():
    """Against all ways to round: none is nearer to the shares."""
    draw = random.Random(1)
    for _ in range(100):
        numels = {name: draw.randrange(1, 9) for name in "abcd"}
        sparsities = {name: draw.uniform(0.2, 0.8) for name in numels}
        exact = sum(sparsities[name] * numels[name] for name in numels)
        total = round(exact)
        counts = exact_counts(sparsities, numels, total)
        assert sum(counts.values()) == total and all(0 <= counts[name] <= numels[name] for name in counts)
        shift = (total - exact) / sum(numels.values())
        shares = [(sparsities[name] + shift) * numels[name] for name in counts]
        possible = [way for way in itertools.product(*(range(size + 1) for size in numels.values()))
                    if sum(way) == total]  # fmt: skip
        best = min(sum((a - b) ** 2 for a, b in zip(way, shares, strict=True)) for way in possible)
        assert sum((a - b) ** 2 for a, b in zip(counts.values(), shares, strict=True)) == pytest.approx(best)


BLOCKS = {f"layers.{block}.{kind}.weight": block for block in range(3) for kind in ("up", "down")}
NUMELS = {name: 10 if "up" in name else 30 for name in BLOCKS}


def spread(given: dict[str, float], sparsity: float, numels: dict[str, int] = NUMELS) -> list[float]:
    return list(file_sparsities("f.json", given, BLOCKS, numels, sparsity).values())


def test_a_file_names_some_and_the_rest_share_what_is_left():
    """Block 0 has 40 of 120 weights at 0.2: 60 - 8 zeros are left for 80 weights."""
    assert spread({"0": 0.2}, 0.5) == pytest.approx([0.2, 0.2, *[0.65] * 4])
    # The name counts where it names fewer weights than the range.
    assert spread({"0-1": 0.2, "1.down": 0.4}, 0.5) == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.95, 0.95])
    assert spread({"up": 0.2, "down": 0.6}, 0.5) == [0.2, 0.6] * 3
    assert spread({"up": 0.2, "down": 0.6004}, 0.5) == [0.2, 0.6004] * 3  # 0.5003 in all
    chosen = {name: size for name, size in NUMELS.items() if BLOCKS[name] < 2}
    assert spread({"0": 0.3}, 0.5, chosen) == pytest.approx([0.3, 0.3, 0.7, 0.7])


@pytest.mark.parametrize(
    ("given", "sparsity", "message"),
    [
        ({"3": 0.5}, 0.5, "'3' names no weight; there are blocks 0 to 2 and in them up, down"),
        ({"gate": 0.5}, 0.5, "'gate' names no weight"),
        ({"0": 0.5, "layers.0.*": 0.4}, 0.5, r"'0' and 'layers\.0\.\*' both name layers\.0\.up\.weight"),
        ({"up": 0.2, "down": 0.5}, 0.5, "names every weight, and 0.4250 of them in all; --sparsity is 0.5"),
        ({"up": 0.2, "down": 0.599}, 0.5, "names every weight"),  # 0.4992 in all
        ({"0-1": 0.25}, 0.5, "leaves 1.0000 for"),
        ({"0-1": 0.9}, 0.5, "--sparsity 0.5 in all leaves -0.3000 .* which is 0.6000 to 0.9333 in all"),
        ({"0": 0.0}, 0.7, "leaves 1.0500"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(given: dict[str, float], sparsity: float, message: str):
    with pytest.raises(ValueError, match=r"--allocation f\.json: ") as error:
        spread(given, sparsity)
    assert error.match(message)
    assert "\n" not in str(error.value)


def test_a_weight_that_is_left_dense_has_no_sparsity():
    for left in ("layers.1.up.weight", "layers.1.down.weight"):  # the first or the last of those that '1' names
        with pytest.raises(ValueError, match=f"'1' names {left}, which --only_layers or --skip_layers leaves"):
            spread({"1": 0.5}, 0.5, {name: size for name, size in NUMELS.items() if name != left})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a JSON object"),
        ("[0.5]", "must be a JSON object"),
        ("{", "no valid JSON"),
        ('{"0": 1.0}', r"the sparsity of '0' is 1.0; allowed: numbers in \[0, 1\)"),
        ('{"0": -0.1}', "the sparsity of '0' is -0.1"),
        ('{"0": "0.5"}', "the sparsity of '0' is '0.5'"),
        ('{"0": true}', "the sparsity of '0' is True"),
        ('{"0": NaN}', "the sparsity of '0' is nan"),
        ('{"0": 0.5, "0": 0.4}', "'0' is there twice"),
    ],
)
def test_a_broken_file_is_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "allocation.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_allocation(path)


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "allocation.json"
    path.write_text(json.dumps({"0": 0, "down_proj": 0.25}))
    assert read_allocation(path) == {"0": 0.0, "down_proj": 0.25}
    with pytest.raises(ValueError, match="allowed: uniform, owl or a JSON file"):
        read_allocation(tmp_path / "none.json")
