import pytest
from synthetic_runs import dense, run, write_tree

from analysis import results, summary


@pytest.fixture
def read(tmp_path):
    return lambda *runs: results.read_runs(write_tree(tmp_path, *runs))


def both_seeds(*runs):
    return [{**each, "seed": seed} for each in runs for seed in (41, 42)]


def test_a_sound_tree_has_nothing_to_beware_of(read):
    rows = read(*both_seeds(dense(), run(), run(strength="2:4")))
    assert summary.cautions(rows, []) == []
    assert "Nothing was found." in summary.summary_text(rows, [], {})


def test_what_is_wrong_with_the_reference(read):
    rows = read(
        *both_seeds(run(), dense(0.51, fraction=0.5), run(fraction=0.5), run(fraction=0.25)),
        dense(0.9, fraction=0.25, seed=41), dense(0.5, fraction=0.25, seed=42),
        *both_seeds(dense(0.8, task="cola", chance=None), run(task="cola", chance=None)),
    )  # fmt: skip
    assert summary.cautions(rows, []) == [
        "CoLA, 100 % data: dense not compared with chance; a run lacks chance level or standard error.",
        "QNLI, 100 % data: NO DENSE TRANSFER, so no drop is defined.",
        "QNLI, 50 % data: DENSE NOT ABOVE CHANCE (0.510, chance 0.500, standard error 0.010), "
        "so its drops mean nothing.",
        "QNLI, 25 % data: dense transfer with seed 42 is not above chance (0.500, chance 0.500, standard error 0.010) "
        "and moves the mean that all drops are relative to.",
    ]


def test_what_is_wrong_with_seeds_and_points(read):
    rows = read(
        *both_seeds(dense(), run(), dense(fraction=0.5), run(fraction=0.5)),
        run(strength=0.7, measured_sparsity=0.68), run("sparse_to_dense", measured_sparsity=0.0),
    )  # fmt: skip
    assert summary.cautions(rows, []) == [
        "2 of 6 points rest on one seed: no interval, no band.",
        "QNLI, 100 % data: the points do not have the same seeds "
        "(seeds: number of points; 41 42: 2; 41: 2), so differences hold the seeds' noise.",
        "QNLI, 100 % data, sparse_transfer: at 0.7 the measured sparsity is 0.680, not 0.700.",
        "QNLI, 50 % data, sparse_transfer: lacks 0.7, which other amounts of data have.",
    ]


def test_what_does_not_count_is_said(read, tmp_path):
    rows = read(*both_seeds(dense(), run()))
    rows.append({**rows[0], "setting": 2, "transfer": None})
    unfinished = [tmp_path / str(number) for number in range(12)]
    first, second = summary.cautions(rows, unfinished)
    assert first.startswith("12 runs were started and are not complete; they do not count: `")
    assert first.endswith(f"`{unfinished[9]}` and 2 more.")
    assert second == "No figure is made of setting 2 (1 rows)."


def test_cautions_name_the_model_where_there_are_several(read):
    rows = read(*both_seeds(dense(), run(), run(model="lab/model-b")))
    (caution,) = summary.cautions(rows, [])
    assert caution.startswith("Setting 1, model-b, magnitude threshold global: QNLI, 100 % data: NO DENSE")


def test_the_tables_hold_means_intervals_drops_and_slopes(read):
    strengths = (0.2, 0.4, 0.6)
    rows = read(
        dense(0.8, seed=41), dense(0.8, seed=42), run(strength=0.2, score=0.7, seed=41),
        run(strength=0.2, score=0.74, seed=42), run(strength=0.4, score=0.64), run(strength=0.6, score=0.56),
        dense(0.6, fraction=0.1),
        *[run(strength=strength, score=0.6 * (1 - 0.6 * strength), fraction=0.1) for strength in strengths],
    )  # fmt: skip
    lines = summary.summary_text(rows, [], {}).splitlines()
    assert "| 1 | model-a | qnli | 10 | 41 42 | one | `" + rows[0]["folder"] + "/args.json` |" in lines
    assert "**QNLI, 100 % data** (accuracy; chance 0.500): dense transfer 0.800 ± 0.000" in lines
    assert "| 0.2 | 0.720 ± 0.254 (-10.0 %) |" in lines  # 12.706 * 0.02
    assert "| 0.4 | 0.640 (-20.0 %) |" in lines
    # Drops -.1, -.2, -.3 at .2, .4, .6
    assert "| QNLI | sparsity | sparse_transfer | 100 % | 0.800 | yes | 3 | 1.000 | -0.500 |" in lines
    assert "| QNLI | sparsity | sparse_transfer | 10 % | 0.600 | yes | 3 | 1.000 | -0.600 |" in lines
    assert "| QNLI | sparsity | sparse_transfer | yes | 2 of 2 levels compared; by luck alone once in 2 |" in lines


def test_missing_numbers_are_empty_cells(read):
    rows = read(run("sparse_transfer", 0.5, 0.6), run("sparse_to_dense", 0.6, 0.7))
    lines = summary.summary_text(rows, [], {}).splitlines()
    assert "**QNLI, 100 % data** (accuracy; chance 0.500): dense transfer missing" in lines
    assert "| 0.5 | 0.600 |  |" in lines and "| 0.6 |  | 0.700 |" in lines
    assert "| QNLI | sparsity | sparse_transfer | 100 % |  |  | 1 |  |  |" in lines
    assert "| QNLI | sparsity | sparse_transfer | cannot be told | 0 of 1 levels can be compared |" in lines


def test_figures_are_linked(read):
    text = summary.summary_text(read(dense()), [], {(1, "lab/model-a", None): ["a.png", "a.pdf", "a.csv"]})
    assert "\n\n![a.png](a.png)\n\n`a.pdf`\n\n`a.csv`\n\n" in text
