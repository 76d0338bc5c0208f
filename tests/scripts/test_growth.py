"""scripts/benchmarks/growth.py: a row per method; speed itself is never asserted."""

import growth


def test_growth_prints_a_row_per_method(capsys):
    growth.main(
        ["--methods", "wanda", "--nsamples", "1", "2", "4", "--blocks", "1", "2", "3", "--hidden_size", "64",
         "--calibration_length", "8", "--turns", "1", "--dtype", "float32"]
    )  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert [len(row) for row in rows] == [5, 5]
