"""scripts/benchmarks/measuring.py: its arithmetic, and what a failing process shows."""

import sys

import pytest

import measuring


def test_exponent_of_linear_quadratic_and_constant_time():
    assert measuring.growth_exponent([2, 4, 8], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert measuring.growth_exponent([2, 4, 8], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert measuring.growth_exponent([2, 4, 8], [5.0, 5.0, 5.0]) == pytest.approx(0, abs=1e-9)


def test_ratio_pairs_the_turns():
    assert measuring.ratio([6.0, 9.0, 20.0], [2.0, 3.0, 5.0]) == "3.00 (from 3.00 to 4.00)"


def test_no_ratio_to_a_peer_whose_work_fitted_into_what_loading_left():
    run = {"peak_bytes": 4_000_000, "loaded_bytes": 3_000_000}
    sides = {
        "peer": [{**run, "compressing_peak_bytes": 3_000_000}],
        "ours": [{**run, "compressing_peak_bytes": 5_000_000}],
    }
    assert measuring.memory_cells(sides) == ["4", "4", "100%", "0", "2", "-"]


def test_memory_beside_the_loaded_model():
    runs = [
        {"peak_bytes": 900, "compressing_peak_bytes": 700, "loaded_bytes": 500},
        {"peak_bytes": 950, "compressing_peak_bytes": 690, "loaded_bytes": 530},
        {"peak_bytes": 910, "compressing_peak_bytes": 720, "loaded_bytes": 540},
    ]
    assert measuring.memory(runs, beside_the_loaded=False) == 910
    assert measuring.memory(runs, beside_the_loaded=True) == 180


def test_a_failing_side_shows_its_log(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no modifier.*exit code 3"):
        measuring.run_quietly([sys.executable, "-c", "print('no modifier'); exit(3)"], None, tmp_path)
