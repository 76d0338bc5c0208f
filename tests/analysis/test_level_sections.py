import re

import pytest
from synthetic_runs import dense, level_run, run, write_tree

from analysis import level_sections, summary, verdicts
from analysis.intervals import with_intervals
from analysis.kinds import describe
from analysis.names import with_bounds
from analysis.table import level_table
from harness import run_folder

# Nine groups of items, too few for intervals, each of which holds the same scores.
NINE = [f"group {number // 4}" for number in range(36)]


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def cautions(rows):
    return summary.cautions(describe(rows, []))


def lines_of(rows):
    return summary.summary_text(describe(rows, []), ["png"]).splitlines()


def test_a_sound_tree_has_nothing_to_beware_of(read):
    rows = read(level_run(), level_run("magnitude", 0.5), *[level_run("wanda", 0.5, seed=seed) for seed in (0, 1)])
    assert cautions(rows) == []


def test_what_is_wrong_with_the_reference(read):
    levels = {"easy": (1, 1, 0, 0) * 10, "hard": (1, 0, 0, 0) * 10, "unknown": (1, 1, 0, 0) * 10}
    of_level = {"unknown": {"chance": None}}
    compressed = level_run("magnitude", 0.5, {**levels, "new": (1, 1, 0, 0) * 10})
    rows = read(level_run(levels=levels, of_level=of_level), compressed)
    # sqrt(.25 * .75 / 39)
    assert cautions(rows) == [
        "hard: DENSE NOT ABOVE CHANCE (0.250, chance 0.250, standard error 0.069), so its drops mean nothing.",
        "unknown: dense not compared with chance; a run lacks chance level or standard error.",
        "new: NOT IN THE DENSE RUN, so no drop is defined.",
    ]


def test_a_level_without_a_human_score_is_named_and_leaves_the_others_their_order(read):
    """Of three sets one has no human score; it stood first on the command line, and the verdict is of the others."""
    human = {"ARC": None, "hard": 0.95, "easy": 0.95}
    of_level = {name: {"difficulty": None, "human": score} for name, score in human.items()}
    dense = {"ARC": (1, 1, 0, 1) * 30, "hard": (1, 1, 1, 0) * 30, "easy": (1, 1, 1, 1) * 30}
    rows = read(*[
        level_run(compression, strength, {name: [own * (number % 10 >= lost[name]) for number, own in enumerate(scores)]
                                          for name, scores in dense.items()},
                  of_level=of_level, setting=5, task="human_gap")
        for compression, strength, lost in (
            ("dense", None, dict.fromkeys(human, 0)), ("wanda", 0.3, {"ARC": 1, "hard": 2, "easy": 1}),
            ("wanda", 0.5, {"ARC": 1, "hard": 4, "easy": 2}), ("wanda", 0.7, {"ARC": 1, "hard": 6, "easy": 2}),
        )
    ])  # fmt: skip
    said = "ARC: NO HUMAN SCORE, so its difficulty is not known: it stands in no order of levels, no verdict and no "
    assert [line for line in cautions(rows) if "ARC" in line] == [f"{said}Junk DNA score."]
    lines = lines_of(rows)
    assert "From easy to hard; then, of unknown difficulty: ARC." in lines
    head = next(index for index, line in enumerate(lines) if line.startswith("| level | difficulty |"))
    assert [line.split("|")[1].strip() for line in lines[head + 2 : head + 5]] == ["easy", "hard", "ARC"]
    (verdict,) = [line for line in lines if line.startswith("- Wanda by sparsity, raw slopes: ")]
    assert "monotonic: each harder level falls faster" in verdict
    assert verdict.endswith("; without ARC, of unknown difficulty.")
    assert any("2 of 3 levels compared; by luck alone once in 2; without ARC, of unknown difficulty" in line
               for line in lines)  # fmt: skip


def test_without_any_difficulty_no_order_is_claimed(read):
    of_level = {name: {"difficulty": None, "human": 0.9} for name in ("2 options", "4 options")}
    lines = lines_of(read(level_run("wanda", 0.5, of_level=of_level, setting=5, task="human_gap")))
    assert "In the order of the runs: no level's difficulty is known." in lines


def test_many_empty_answers_are_said_of_every_model(read):
    """A model that falls silent loses its score whatever it knows; one empty answer of twenty is no such thing."""

    def answers(easy: float, hard: float) -> dict:
        return {"easy": {"metrics": {"empty": easy}}, "hard": {"metrics": {"contains": 0.5, "empty": hard}}}

    levels = {"easy": (1, 1, 0, 0) * 10, "hard": (1, 1, 0, 0) * 10}
    rows = read(
        level_run(levels=levels, of_level=answers(0.05, 0.4)),
        level_run("magnitude", 0.3, levels, of_level=answers(0.0, 0.98)),
    )
    assert cautions(rows) == [
        "hard: MANY ANSWERS ARE EMPTY (dense: 40 %, Magnitude (threshold: layer) at 30 %: 98 %), so that its drops "
        "say whether the model answers as much as what it knows; --chat_template, where the model has one, or "
        "--min_new_tokens 8 asks for an answer."
    ]


def test_written_answers_stand_by_every_metric_with_the_originals_explained(read):
    def answers(exact: float, original: float) -> dict:
        return {"facts": {"reader": "answer", "metrics": {"exact_match": exact, "freebaseqa_original": original}}}

    levels = {"choice": (1, 1, 0, 0), "facts": (1, 1, 0, 0)}
    lines = lines_of(read(
        level_run(levels=levels, of_level=answers(0.5, 0.625)),
        level_run("magnitude", 0.3, levels, of_level=answers(0.25, 0.5)),
    ))  # fmt: skip
    start = lines.index("### Written answers by every metric")
    assert "freebaseqa original: the original's match for FreebaseQA" in lines[start + 2]
    assert "em original" not in lines[start + 2]
    assert lines[start + 4 : start + 8] == [
        "| level | compression | strength | exact match | freebaseqa original |",
        "| --- | --- | --- | --- | --- |",
        "| facts | Dense |  | 0.5 | 0.625 |",
        "| facts | Magnitude (threshold: layer) | 30 % | 0.25 | 0.5 |",
    ]


def test_options_to_choose_from_are_no_written_answers(read):
    assert "### Written answers by every metric" not in lines_of(read(level_run()))


def test_a_missing_dense_run_is_said_and_named_among_several_sets(read):
    rows = read(level_run("magnitude", 0.5), dense(seed=0), dense(seed=1), run(seed=0), run(seed=1))
    assert cautions(rows) == [
        "Setting 2: number of options to choose from, model-a: NO DENSE RUN, so no drop is defined."
    ]


def test_runs_that_do_not_agree_in_chance_are_named(read):
    """Older runs had 1/2 where all items are answered yes or no, newer ones the share of what is right most often."""
    rows = read(level_run(chance=0.5), level_run("magnitude", 0.5, chance=0.62))
    told = [line for line in cautions(rows) if "CHANCE (" in line and "AGREE" in line]
    assert len(told) == 2 and "2 options: THE RUNS DO NOT AGREE IN CHANCE (0.500 in" in told[0]


def test_what_is_wrong_with_seeds(read):
    one = {"easy": (1, 1, 0, 0) * 10}
    rows = read(
        level_run(levels=one), level_run(levels=one, seed=1), level_run("magnitude", 0.5, one),
        *[level_run("magnitude", 0.6, one, seed) for seed in (0, 1)],
        level_run("wanda", 0.5, one), *[level_run("wanda", 0.6, one, seed) for seed in (0, 1)],
    )  # fmt: skip
    assert cautions(rows) == [
        "1 of 2 calibrated points rest on one calibration sample: the bands leave its spread out.",
        "2 of 5 points lack seeds of the dense model (0 1); each point is compared with the dense runs of its own "
        "seeds.",
        "The calibrated points do not have the same seeds (seeds: number of points; 0: 1; 0 1: 1), "
        "so differences hold the seeds' noise.",
        "The points without calibration do not have the same seeds (seeds: number of points; 0: 1; 0 1: 1), "
        "so differences hold the seeds' noise.",
    ]


def test_what_is_wrong_with_items_and_strengths(read):
    known = [f"item {number}" for number in range(40)]
    rows = read(
        level_run(), level_run("magnitude", 0.5, items=[*known[:39], "other"]),
        level_run("magnitude", 0.6, items=[f"other {name}" for name in known], magnitude_scope="global"),
        level_run("magnitude", 0.7, measured_sparsity=0.6),
        level_run("rtn", ("bits", 4), {"2 options": (1,) * 30}), level_run("rtn", ("bits", 3)),
    )  # fmt: skip
    assert cautions(rows) == [
        "2 of 9 points have no items in common with the dense run: no interval.",
        "3 of 9 points have items that the dense run lacks, or lack some of its items: left out of scores, drops "
        "and intervals (at most 10: 2 options, Round to nearest at 4 bits).",
        "4 options, Round to nearest: lacks 4 bits, which other levels have.",
        "Magnitude (threshold: layer) at 70 %: the measured sparsity is 0.600, not 0.700.",
    ]


@pytest.mark.parametrize("groups", [9, 10])
def test_items_of_few_groups_are_said(read, groups):
    names = [f"group {number % groups}" for number in range(40)]
    rows = read(level_run(groups=names), level_run("magnitude", 0.5, groups=names))
    few = "2 of 2 points have no interval: the runs of their curve have fewer than 10 groups of items in common."
    assert cautions(rows) == ([few] if groups < 10 else [])


def test_a_level_for_reference_is_not_said_to_lack_groups(read):
    of_level = {"4 options": {"facts": {"reference_only": 1}}}
    assert cautions(read(level_run(of_level=of_level), level_run("magnitude", 0.5, of_level=of_level))) == []


def test_a_recorded_error_that_knows_no_groups_makes_no_dense_score_above_chance(read):
    """Ten groups of twenty equal outcomes, six of them right: .6 ± .163 by groups, where .035 was recorded of items."""
    one = {"levels": {"easy": (1,) * 120 + (0,) * 80}, "groups": [f"{number // 20}" for number in range(200)]}
    dense, pruned = level_run(**one, chance=0.5), level_run("magnitude", 0.5, **one, chance=0.5)
    for made in (dense, pruned):
        made["levels"][0]["stderr"] = 0.035
    told = cautions(read(dense, pruned))
    assert told == [
        "easy: DENSE NOT ABOVE CHANCE (0.600, chance 0.500, standard error 0.163), so its drops mean nothing."
    ]


def test_items_of_one_group_are_not_even_compared_with_chance(read):
    one = {"levels": {"easy": (1, 1, 1, 0) * 10}, "groups": ["law"] * 40}
    assert cautions(read(level_run(**one), level_run("magnitude", 0.5, **one))) == [
        "easy: dense not compared with chance; a run lacks chance level or standard error.",
        "1 of 1 points have no interval: the runs of their curve have fewer than 10 groups of items in common.",
    ]


def test_what_the_construction_left_out_is_said_once_for_levels_that_share_it(read):
    of_level = {"2 options": {"facts": {"options_refer_to_others": 649, "mean_tokens": 12.5}},
                "4 options": {"facts": {"options_refer_to_others": 649, "shortened": 0}}}  # fmt: skip
    rows = read(level_run(of_level=of_level), level_run("magnitude", 0.5, of_level=of_level))
    assert cautions(rows) == ["2 options, 4 options: options refer to others 649."]
    lines = lines_of(rows)
    assert next(line for line in lines if line.startswith("| 2 options | 0 |")).endswith(
        "| accuracy 0.75 | options refer to others 649, mean tokens 12.5 |"
    )


def test_the_section_holds_levels_slopes_and_scores(read):
    easy, hard = "2 options", "4 options"
    of_level = {easy: {"chance": 0.5, "human": 0.9}}
    counts = {
        None: ((1, 1, 1, 0), (1, 1, 0, 0)), 0.2: ((1, 1, 1, 0), (1, 1, 0, 0)), 0.4: ((1, 1, 1, 0), (1, 0.8, 0, 0)),
        0.6: ((1, 1, 0.7, 0), (1, 0, 0, 0)),
    }  # fmt: skip
    rows = read(*[
        level_run("dense" if strength is None else "wanda", strength, {easy: one * 9, hard: other * 9},
                  of_level=of_level, groups=NINE)
        for strength, (one, other) in counts.items()
    ])  # fmt: skip
    lines = lines_of(rows)
    assert "| 2 | model-a | option_count | 4 | 0 | one | `" + rows[0]["folder"] + "/args.json` |" in lines
    assert "## Setting 2: number of options to choose from, model-a" in lines and any(
        line.startswith("![setting2_option_count_model-a.png](") for line in lines
    )
    # All groups are alike: the mean has no spread over them.
    assert (
        "| 2 options | 0 | mmlu | accuracy | letter | 36 | 0.500 | 0.900 | 0.750 ± 0.000 | yes | accuracy 0.75 |  |"
        in lines
    )
    # Drops 0, 0, -.1: slopes 0, -.25, -.5; drops 0, -.1, -.5: -.5, -1.25, -2. Above chance the scores are a third and
    # a half as high. Ranks of loss 1.5, 1.5, 3 and 1, 2, 3.
    assert "| Wanda | sparsity | 2 options | 0 | 0.750 ± 0.000 | 0.500 | yes | 3 | 0.866 | -0.250 | -0.750 |" in lines
    assert "| Wanda | sparsity | 4 options | 1 | 0.500 ± 0.000 | 0.250 | yes | 3 | 1.000 | -1.250 | -2.500 |" in lines
    basis = "2 of 2 levels compared; by luck alone once in 2"
    assert f"| Wanda | sparsity | raw | yes | {basis} |" in lines
    assert f"| Wanda | sparsity | chance-corrected | yes | {basis} |" in lines
    assert [line for line in lines if line.startswith("The raw order alone says little here: with fewer options")]
    assert "| Dense |  | 0 | 0.750 | 0.500 |" in lines
    assert "| Wanda | 60 % | 0 | 0.675 (-10.0 %) | 0.250 (-50.0 %) |" in lines


def test_levels_at_chance_and_missing_references_show_scores_alone(read):
    def runs(name, strength, **levels):
        return level_run(name, strength, {level: own * 9 for level, own in levels.items()}, groups=NINE, setting=4)

    rows = read(
        runs("dense", None, easy=(1, 1, 0, 0), hard=(1, 0, 0, 0)),
        runs("wanda", 0.5, easy=(1, 0, 0, 0), hard=(0, 0, 0, 0), new=(1, 1, 1, 1)),
        *[runs("rtn", ("bits", bits), easy=(1, 1, 0, 0), hard=(0, 0, 0, bits)) for bits in (4, 3)],
    )  # fmt: skip
    lines = lines_of(rows)
    assert "| compression | strength | seeds | easy | hard (**dense at chance**) | new |" in lines
    assert "| Dense |  | 0 | 0.500 | 0.250 |  |" in lines
    assert "| Wanda | 50 % | 0 | 0.250 (-50.0 %) | 0.000 | 1.000 |" in lines
    assert "| new | 2 | mmlu | accuracy | letter | 36 | 0.250 |  | **missing** |  |  |  |" in lines
    assert "| Wanda | sparsity | hard | 1 | 0.250 ± 0.000 | 0.250 | **no** | 1 |  |  |  |" in lines
    assert "| Round to nearest | bits | hard | 1 | 0.250 ± 0.000 | 0.250 | **no** | 2 |  |  |  |" in lines
    assert "| Wanda | sparsity | raw | cannot be told | 0 of 3 levels can be compared |" in lines
    assert not [line for line in lines if "chance" in line and "The levels differ" in line]


def test_levels_that_differ_in_chance_are_said(read):
    of_level = {"MMLU": {}, "FreebaseQA": {"chance": 0.0}}
    levels = {"MMLU": (1, 1) * 20, "FreebaseQA": (1, 0) * 20}
    rows = read(level_run(levels=levels, of_level=of_level, setting=6), level_run("wanda", 0.5, levels, setting=6))
    assert any("The levels differ in chance (0.000 to 0.250), below which no score" in line for line in lines_of(rows))


def right(count, of=40):
    """Scores of items of which so many are right."""
    return [1.0] * count + [0.0] * (of - count)


def told(rows):
    """The section with intervals, by paragraph heading."""
    found = verdicts.measure(rows, resamples=2000)
    lines = level_sections.level_section(with_intervals(level_table(rows), found), found)
    heads = [place for place, line in enumerate(lines) if line.startswith("### ")]
    return {lines[place]: lines[place:end] for place, end in zip(heads, [*heads[1:], len(lines)], strict=True)}


def test_intervals_stand_beside_slopes_and_verdicts_below(read):
    counts = {None: (90, 90), 0.2: (90, 81), 0.4: (90, 72), 0.6: (90, 63)}
    rows = read(*[
        level_run("dense" if strength is None else "magnitude", strength,
                  {"easy": right(easy, 120), "hard": right(hard, 120)}, chance=0.0)
        for strength, (easy, hard) in counts.items()
    ])  # fmt: skip
    parts = told(rows)
    (easy,) = [line for line in parts["### How fast the score falls"] if "| easy |" in line]
    (hard,) = [line for line in parts["### How fast the score falls"] if "| hard |" in line]
    # A level that never falls has no correlation in any resample, and a slope by what an unseen item might lose.
    slope = r"0\.000 \[-0\.\d{3}, 0\.\d{3}\]"
    assert re.search(rf"\| 0\.750 ± 0\.040 \|.* 3 \| undefined: all scores are equal \| {slope} \| {slope} \|$", easy)
    assert re.search(r"\| 3 \| 1\.000 \|( -0\.500 \[-\d\.\d{3}, -0\.\d{3}\] \|){2}$", hard)
    (verdict,) = [line for line in parts["### Verdicts"] if line.startswith("- Magnitude")]
    assert verdict.startswith(
        "- Magnitude (threshold: layer) by sparsity, raw slopes: monotonic: each harder level falls"
    )
    begins = parts["### Where the score begins to fall"]
    start = "| Magnitude (threshold: layer) | sparsity |"
    never = "a loss of 5 % and 10 % is not reached within 0.6"
    # None of 90 is lost: with 97.5 % confidence less than 1 - .025 ** (1 / 90) = 4 %.
    assert f"{start} easy | 120 | 120 | 1 | not reached | not reached | {never} |" in begins
    (hard,) = [line for line in begins if line.startswith(f"{start} hard | 120 | 120 | 1 | 0.100 [0.")]
    assert "| 0.200 [0." in hard  # 10 % at .2; the items are too few for a sharp bound
    # Of the drops, too: 9 of 90 right answers are lost, and none.
    (scores,) = [line for line in parts["### Scores"] if line.startswith("| Magnitude (threshold: layer) | 20 % |")]
    assert re.search(
        r"\| 0\.750 \(\+0\.0 \[-\d+\.\d, \d+\.\d\] %\) \| 0\.675 \(-10\.0 \[-\d\d\.\d, -?\d\.\d\] %\) \|$", scores
    )


def test_what_has_no_interval_is_blank_and_says_why(read):
    levels = {"easy": right(20), "hard": right(9)}
    rows = read(
        level_run(levels=levels), level_run("rtn", ("bits", 4), levels), level_run("low_rank", ("rank", 8), levels),
    )  # fmt: skip
    begins = told(rows)["### Where the score begins to fall"]
    # Of 20 right answers none is lost, but 1 - .01905 ** (1 / 20) = .1796 may be: .01905 is the tail beyond Student's
    # 2.0227 with 39 degrees of freedom, times the root of 41 / 39. 5 % are then reached at .05 / .1796 of .75.
    pattern = (
        r"\| Round to nearest \| bits \| easy \| 40 \| 40 \| 1 \| not reached \[(.*), \] \| not reached \[(.*), \] \| "
        r"one strength only; a loss of 5 % and 10 % is not reached within 0.75 \|"
    )
    (lows,) = [found.groups() for line in begins if (found := re.fullmatch(pattern, line))]
    assert [float(low) for low in lows] == pytest.approx([0.75 * 0.05 / 0.1796, 0.75 * 0.1 / 0.1796], rel=0.1)
    assert "| Round to nearest | bits | hard | 40 | 40 | 1 |  |  | the dense score is not above chance |" in begins
    unknown = "the share of the parameters that the ranks save is not known"
    assert f"| Low rank | rank | easy | 40 | 40 | 1 |  |  | {unknown} |" in begins


def test_a_dense_run_alone_has_no_verdict(read):
    assert "Nothing was compressed." in told(read(level_run()))["### Verdicts"]


def test_bounds_that_are_not_known_are_blank():
    assert with_bounds(0.1, 0.05, None) == "0.100 [0.050, ]"
    assert with_bounds(0.1, None, None) == "0.100"
    assert with_bounds(None, None, None) == ""


def test_a_compressed_model_alone_that_falls_silent_is_said(read):
    """The dense model answers, as does another seed: the largest share of a strength counts."""
    levels = {"hard": (1, 1, 0, 0) * 10}
    rows = read(*[
        level_run(name, strength, levels, seed, of_level={"hard": {"metrics": {"empty": share}}})
        for name, strength, seed, share in (("dense", None, 0, 0.0), ("wanda", 0.3, 0, 0.98), ("wanda", 0.3, 1, 0.02))
    ])  # fmt: skip
    (told,) = [line for line in cautions(rows) if "EMPTY" in line]
    assert told.startswith("hard: MANY ANSWERS ARE EMPTY (dense: 0 %, Wanda at 30 %: 98 %), so that its drops")


def test_the_error_beside_a_dense_score_is_the_dense_models(read):
    """sqrt(.75 * .25 / 39); that of the compressed half is .080."""
    rows = read(level_run(levels={"easy": right(30)}), level_run("wanda", 0.5, {"easy": right(20)}))
    assert "| Wanda | sparsity | easy | 0 | 0.750 ± 0.069 | 0.250 | yes | 1 |  |  |  |" in lines_of(rows)
