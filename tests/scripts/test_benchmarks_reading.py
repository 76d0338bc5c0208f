"""scripts/benchmarks/reading.py: its trees can be read and described; speed is not asserted."""

import pytest

from analysis.kinds import describe
from harness import run_folder


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("benchmarks/reading")


@pytest.mark.slow
def test_the_runs_that_it_makes_up_are_sound(benchmark, tmp_path):
    benchmark.write_made_up_runs(tmp_path, 88, 20)
    rows = run_folder.read_runs(tmp_path)
    assert len({row["folder"] for row in rows}) == 88 and len(rows) == 3 * 88
    assert {row["compression"] for row in rows} == {
        "dense", "magnitude", "wanda", "sparsegpt", "ria", "rtn", "gptq", "low_rank",
    }  # fmt: skip
    tree = describe(rows, [], resamples=100)
    levels, flips, compared = tree.parts
    assert (len(levels.plots), len(flips.plots), len(compared.plots), tree.lacking) == (2, 1, 1, [])


@pytest.mark.slow
def test_a_step_is_measured_in_a_process_of_its_own(benchmark, tmp_path):
    benchmark.write_made_up_runs(tmp_path, 3, 2)
    wall, processor, peak = benchmark.measured(benchmark.program("read"), str(tmp_path), "")
    assert processor > 0 and wall > 0 and 10e6 < peak < 1e9


def test_wrong_options_are_refused(benchmark, capsys):
    for argv, message in ((["--runs", "0"], "0"), (["--steps", "seen"], "invalid choice: 'seen'")):
        with pytest.raises(SystemExit):
            benchmark.parse_args(argv)
        assert message in capsys.readouterr().err
