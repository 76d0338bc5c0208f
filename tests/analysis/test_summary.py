import re

import numpy as np
import pytest
from synthetic_runs import dense, perplexity_run, run, write_tree

from analysis import names, summary
from analysis.kinds import describe
from harness import run_folder


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def cautions(rows, unfinished=()):
    return summary.cautions(describe(rows, list(unfinished)))


def lines(rows):
    return summary.summary_text(describe(rows, []), ["png"]).splitlines()


def both_seeds(*runs):
    return [{**each, "seed": seed} for each in runs for seed in (41, 42)]


def test_a_sound_tree_has_nothing_to_beware_of(read):
    rows = read(*both_seeds(dense(), run(), run(strength="2:4")))
    assert cautions(rows) == []
    assert "Nothing was found." in lines(rows) and "## What is missing" not in lines(rows)


def test_what_is_wrong_with_the_reference(read):
    rows = read(
        *both_seeds(run(), dense(0.51, fraction=0.5), run(fraction=0.5), run(fraction=0.25)),
        dense(0.9, fraction=0.25, seed=41), dense(0.5, fraction=0.25, seed=42),
        *both_seeds(dense(0.8, task="cola", chance=None), run(task="cola", chance=None)),
    )  # fmt: skip
    assert cautions(rows) == [
        "CoLA, 100 % data: dense not compared with chance; a run lacks chance level or standard error.",
        "QNLI, 100 % data: NO DENSE TRANSFER, so no drop is defined.",
        "QNLI, 50 % data: DENSE NOT ABOVE CHANCE (0.510, chance 0.500, standard error 0.010), "
        "so its drops mean nothing.",
        "QNLI, 25 % data: dense transfer with seed 42 is not above chance (0.500, chance 0.500, standard error 0.010) "
        "and moves the mean that all drops are relative to.",
    ]


def test_a_training_that_ends_with_one_answer_is_told_apart_from_what_weights_hold(read):
    """Of the same drop, one model answers everything alike; one item whose label is the only one proves nothing."""
    labels = np.array([0, 1, 1])
    answers = {"label": labels, "prediction": np.array([0, 0, 0])}
    alike, other = ({**answers, "prediction": np.array(own)} for own in ([1, 1, 1], [1, 0, 0]))
    constant = {"label": np.ones(3), "prediction": np.ones(3)}
    rows = read(
        *both_seeds(dense(items=answers), run(strength=0.7, items=other)), run(strength=0.3, seed=41, items=other),
        run(strength=0.3, seed=42, items=alike), *both_seeds(run(strength=0.5, items=alike)),
        *both_seeds(dense(task="cola"), run(task="cola", items=constant)),
    )  # fmt: skip
    assert [line for line in cautions(rows) if "ONE ANSWER" in line] == [
        "QNLI, 100 % data, sparse_transfer: ONE ANSWER TO ALL ITEMS at 30 % (seed 42), 50 % (seed 41, 42): that "
        "training may have failed, and its drop counts this as loss; more steps or another --learning_rate may tell."
    ]


@pytest.mark.parametrize(("other", "is_told"), [(0.70, True), (0.83, False), (0.85, False), (0.89, False)])
def test_dense_seeds_that_differ_by_more_than_items_explain(read, other: float, is_told: bool):
    """0.9 against 0.7 is 14 standard errors of a difference, and 22 % of the score; 0.83 is 5 of them, but 8 %."""
    told = cautions(read(*both_seeds(run()), dense(0.9, seed=41), dense(other, seed=42)))
    expected = (
        "QNLI, 100 % data: THE DENSE SEEDS ARE UNLIKE: 0.900 with seed 41, 0.700 with seed 42, far more apart than the "
        "choice of items explains: one training learnt less, and drops relative to their mean are of neither."
    )
    assert (expected in told) is is_told and ("UNLIKE" in "".join(told)) is is_told


def test_what_is_wrong_with_seeds_and_points(read):
    rows = read(
        *both_seeds(dense(), run(), dense(fraction=0.5), run(fraction=0.5)),
        run(strength=0.7, measured_sparsity=0.68), run("sparse_to_dense", measured_sparsity=0.0),
    )  # fmt: skip
    assert cautions(rows) == [
        "2 of 6 points rest on one seed: no interval tells how trainings differ.",
        "QNLI, 100 % data: the points do not have the same seeds "
        "(seeds: number of points; 41 42: 2; 41: 2), so differences hold the seeds' noise.",
        "QNLI, 100 % data, sparse_transfer: at 0.7 the measured sparsity is 0.680, not 0.700.",
        "QNLI, 50 % data, sparse_transfer: lacks 0.7, which other amounts of data have.",
    ]


def test_what_does_not_count_is_said(read, tmp_path):
    rows = read(*both_seeds(dense(), run()))
    rows.append({**rows[0], "setting": 77, "transfer": None})
    unfinished = [tmp_path / str(number) for number in range(12)]
    first, second = cautions(rows, unfinished)
    assert first.startswith("12 runs were started and are not complete; they do not count: `")
    assert first.endswith(f"`{unfinished[9]}` and 2 more.")
    assert second == "No figure is made of setting 77 (1 rows)."


def test_cautions_name_the_model_where_there_are_several(read):
    rows = read(*both_seeds(dense(), run(), run(model="lab/model-b")))
    (caution,) = cautions(rows)
    assert caution.startswith("Setting 1, model-b, magnitude threshold global: QNLI, 100 % data: NO DENSE")


def test_the_tables_hold_means_intervals_drops_and_slopes(read):
    strengths = (0.2, 0.4, 0.6)
    rows = read(
        dense(0.8, seed=41), dense(0.8, seed=42), run(strength=0.2, score=0.7, seed=41),
        run(strength=0.2, score=0.74, seed=42), run(strength=0.4, score=0.64), run(strength=0.6, score=0.56),
        dense(0.6, fraction=0.1),
        *[run(strength=strength, score=0.6 * (1 - 0.6 * strength), fraction=0.1) for strength in strengths],
    )  # fmt: skip
    found = lines(rows)
    assert "| 1 | model-a | qnli | 10 | 41 42 | one | `" + rows[0]["folder"] + "/args.json` |" in found
    assert "**QNLI, 100 % data** (accuracy; chance 0.500): dense transfer 0.800 ± 0.000" in found
    assert "| 0.2 | 0.720 ± 0.254 (-10.0 %) |" in found  # 12.706 * 0.02
    assert "| 0.4 | 0.640 (-20.0 %) |" in found
    # Drops -.1, -.2, -.3 at .2, .4, .6
    assert "| QNLI | sparsity | sparse_transfer | 100 % | 0.800 | yes | 3 | 1.000 | -0.500 |" in found
    assert "| QNLI | sparsity | sparse_transfer | 10 % | 0.600 | yes | 3 | 1.000 | -0.600 |" in found
    assert "| QNLI | sparsity | sparse_transfer | yes | 2 of 2 levels compared; by luck alone once in 2 |" in found


def test_missing_numbers_are_empty_cells(read):
    rows = read(run("sparse_transfer", 0.5, 0.6), run("sparse_to_dense", 0.6, 0.7))
    found = lines(rows)
    assert "**QNLI, 100 % data** (accuracy; chance 0.500): dense transfer missing" in found
    assert "| 0.5 | 0.600 |  |" in found and "| 0.6 |  | 0.700 |" in found
    assert "| QNLI | sparsity | sparse_transfer | 100 % |  |  | 1 | undefined: 1 point |  |" in found
    assert "| QNLI | sparsity | sparse_transfer | cannot be told | 0 of 1 levels can be compared |" in found


def test_figures_are_linked(read):
    rows = read(dense(), run())
    text = summary.summary_text(describe(rows, []), ["png", "pdf"])
    stem = "setting1_data_adequacy_model-a"
    assert f"\n\n![{stem}.png]({stem}.png)\n\n`{stem}.pdf`\n\n`{stem}.csv`\n\n" in text


def test_constant_scores_have_no_spearman_and_it_is_said(read):
    rows = read(dense(0.8), *[run(strength=strength, score=0.6) for strength in (0.2, 0.4, 0.6)])
    expected = "| QNLI | sparsity | sparse_transfer | 100 % | 0.800 | yes | 3 | undefined: the same score everywhere |"
    assert any(line.startswith(expected) for line in lines(rows))


def test_what_is_missing_is_listed(read):
    rows = read(dense(), run(strength=0.3), run(strength=0.5), dense(fraction=0.1), run(strength=0.3, fraction=0.1))
    found = lines(rows)
    assert "## What is missing" in found
    assert "| 1 | model-a | qnli | sparse_transfer | 10 % data | 50 % (seed 41) |" in found


def many(loss, windows=100):
    return (loss,) * windows


def test_a_sound_tree_of_perplexities_has_nothing_to_beware_of(read):
    rows = read(perplexity_run(losses=many(3.0)), *[perplexity_run("wanda", 0.5, many(3.5), seed) for seed in (0, 1)])
    assert cautions(rows) == []


def test_what_is_wrong_with_perplexities(read):
    rows = read(
        perplexity_run(losses=(8.0, 8.0)), perplexity_run("wanda", 0.5, measured_sparsity=0.45),
        *[perplexity_run("wanda", "2:4", seed=seed) for seed in (0, 1)], perplexity_run("magnitude", 0.5, (3.5,)),
        perplexity_run("rtn", ("bits", 2), (8.0, 8.0), measured_sparsity=0.3),
    )  # fmt: skip
    assert cautions(rows) == [
        "1 of 5 points lack losses on the windows of the dense run.",
        "The text has 2 windows (dense: 2981 ± 0.5): others give other perplexities; compare within this table alone.",
        "1 of 2 calibrated points rest on one calibration sample: no band.",
        "The calibrated points do not have the same seeds (seeds: number of points; 0: 1; 0 1: 1), "
        "so differences hold the seeds' noise.",
        "Dense: a perplexity of 2981 is above the vocabulary of 1000: worse than guessing, so its size means nothing.",
        "Wanda at 50 %: the measured sparsity is 0.450, not 0.500.",
        "Round to nearest at 2 bits: a perplexity of 2981 is above the vocabulary of 1000: worse than "
        "guessing, so its size means nothing.",
    ]


def test_a_perplexity_without_dense_is_said_and_named_among_several_sets(read):
    rows = read(perplexity_run("rtn", ("bits", 2), many(3.0)), *both_seeds(dense(), run()))
    assert cautions(rows) == ["Perplexity, model-a on wiki.test: NO DENSE RUN, so no difference is defined."]


def test_the_perplexity_table_has_a_line_per_point(read):
    rows = read(
        perplexity_run(losses=(3.0, 3.5)), perplexity_run("magnitude", 0.5, (4.0, 4.0)),
        *[perplexity_run("wanda", "2:4", (3.5 + seed, 4.0 + seed), seed) for seed in (0, 1)],
        perplexity_run("low_rank", ("rank", 8), (4.0, 4.5), parameter_ratio=0.25),
    )  # fmt: skip
    found = lines(rows)
    assert "| perplexity | model-a | wiki.test | 5 | 0 1 | one | `" + rows[0]["folder"] + "/args.json` |" in found
    assert "## Perplexity, model-a on wiki.test" in found and "`perplexity_wiki.test_model-a.csv`" in found
    assert "| Dense |  | 0.0 % |  | 25.79 |  |  |  |" in found  # e to the 3.25
    # Differences 1 and .5: their deviation is .5 / sqrt(2), the mean's error .25.
    assert "| Magnitude (threshold: layer) | 50 % | 50.0 % |  | 54.6 |  | +0.750 ± 0.250 |  |" in found
    # (e to the 3.75 + e to the 4.75) / 2; both seeds' windows lie .5 and 1.5 above dense.
    assert "| Wanda | 2:4 | 50.0 % |  | 79.05 | 42.52 to 115.6 | +1.000 ± 0.000 | 0 1 |" in found
    assert "| Low rank | rank 8 | 0.0 % | 25.0 % | 70.11 |  | +1.000 ± 0.000 |  |" in found
    assert not [text for text in found if "No figure is made" in text or "How fast the score falls" in text]


def test_bars_and_line_breaks_do_not_end_a_cell():
    assert names.markdown(["a|b"], [["c\nd"]]) == ["| a\\|b |", "| --- |", "| c d |"]


def test_names_begin_no_tag_and_end_no_cell(read):
    (cell,) = names.markdown(["a<b>|c", "`<d>`", "e\u2028f"], [])[:1]
    assert cell == r"| a\<b>\|c | `<d>` | e f |"
    text = "\n".join(lines(read(dense(task="<script>", model="lab/m<i>"), run(task="<script>", model="lab/m<i>"))))
    assert r"| m\<i> | \<script> |" in text and r"## Setting 1, m\<i>" in text and not re.search(r"[^\\]<", text)


def test_dense_seeds_of_few_items_may_differ(read):
    """.2 of the score apart, and less than 3 standard errors of a difference."""
    rows = read(*both_seeds(run()), dense(0.9, seed=41, stderr=0.05), dense(0.7, seed=42, stderr=0.05))
    assert not any("UNLIKE" in told for told in cautions(rows))


@pytest.mark.parametrize(("windows", "is_told"), [(99, True), (100, False)])
def test_few_windows_are_said(read, windows: int, is_told: bool):
    rows = read(perplexity_run(losses=(3.0,) * windows), perplexity_run("rtn", ("bits", 4), (3.1,) * windows))
    told = [line for line in cautions(rows) if line.startswith(f"The text has {windows} windows")]
    assert len(told) == is_told
