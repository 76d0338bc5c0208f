from synthetic_runs import dense, level_run, line_run, perplexity_run, run, write_tree

from analysis import findings, kinds, summary, verdicts
from harness import run_folder

# Of the figures in the last test, which must all be told; a new figure may have nothing to say.
STEMS = {
    "interpolation_model-a", "perplexity_wiki.test_model-a", "setting1_data_adequacy_model-a",
    "setting1_four_transfers_model-a", "setting1_human_gap_model-a", "setting2_option_count_model-a",
    "setting2_option_count_model-a_by_size",
}  # fmt: skip
PLACE = {"setting": 2, "strength_kind": "sparsity", "strength": 0.5, "compression": "wanda", "magnitude_scope": None}


def order(verdict, **changes):
    return {**PLACE, "task": "option_count", "measure": verdicts.RAW, "verdict": verdict, "text": "why.", **changes}


def point(drop, low=None, high=None, **changes):
    same = {"level": "hard", "difficulty": 0.5}
    return {**PLACE, **same, "normalized_drop": drop, "drop_low": low, "drop_high": high, **changes}


def found(*orders, points=()):
    return verdicts.Trends(list(points), [], list(orders))


def test_one_curve_is_told_by_its_verdict_several_by_their_number():
    assert (
        findings.of_levels(found(order(verdicts.MONOTONIC)), []) == "Wanda by unstructured sparsity, raw slopes: why."
    )
    corrected = order(verdicts.CANNOT_TELL, measure=verdicts.CORRECTED)
    assert findings.of_levels(found(order(verdicts.MONOTONIC), corrected), []) == (
        "Wanda by unstructured sparsity, raw slopes: why; slopes corrected for chance: cannot tell."
    )
    several = found(
        order(verdicts.MONOTONIC), order(verdicts.CANNOT_TELL, strength_kind="nm"), order(verdicts.CANNOT_TELL),
        order(verdicts.NOT_MONOTONIC, measure=verdicts.CORRECTED),
    )  # fmt: skip
    assert findings.of_levels(several, []) == (
        "Of the raw slopes of 3 curves, one-sided, with 95 % confidence corrected for their number, 1 says that each "
        "harder level falls faster (Wanda by unstructured sparsity), 2 say nothing sure of the order of their levels; "
        "corrected for chance, 0 of 1 are monotonic."
    )


def test_the_largest_drop_comes_with_its_interval():
    points = [point(-0.1, -0.2, -0.05), point(-0.3, -0.4, -0.2), point(-0.9, dense_above_chance=False)]
    assert findings.of_levels(found(), points) == (
        "The largest drop is that of hard by Wanda, 50 %: -30.0 % [-40.0, -20.0] of the dense score."
    )
    doubtful = findings.of_levels(found(), [point(-0.3, -0.4, 0.1)])
    assert doubtful.endswith("[-40.0, +10.0] of the dense score, which may be none.")
    assert findings.of_levels(found(), [point(-0.3)]).endswith("-30.0 % of the dense score, without an interval.")
    assert findings.of_levels(found(), []) == findings.of_levels(found(), [point(None)]) == ""


def test_by_size_the_hardest_level_tells_what_loses_least_of_the_small():
    points = [
        point(-0.1, -0.2, -0.05, bytes_fraction=0.9), point(0.0, level="easy", bytes_fraction=0.4, difficulty=0.1),
        point(-0.3, -0.4, -0.2, bytes_fraction=0.5), point(-0.2, -0.3, -0.1, bytes_fraction=0.3, strength=0.7),
    ]  # fmt: skip
    told = (
        "Of 2 points with at most half of the dense bytes, Wanda, 70 % loses least at hard: -20.0 % [-30.0, -10.0] of "
        "the dense score."
    )
    assert findings.of_sizes(points) == told
    # One of unknown difficulty, though listed last, is not the hardest.
    unknown = point(-0.4, level="new", bytes_fraction=0.3, difficulty=None)
    assert findings.of_sizes([*points, unknown]) == told
    # Nor is one at which the dense model is at chance, where a compressed one may well be above it.
    at_chance = point(0.1, level="harder", bytes_fraction=0.3, difficulty=0.9, dense_above_chance=False)
    assert findings.of_sizes([*points, at_chance]) == told
    assert findings.of_sizes([unknown]).startswith("The largest drop is that of new by Wanda, 50 %: -40.0 %")
    alone = "The one point with at most half of the dense bytes at easy is Wanda, 50 %: +0.0 %"
    assert findings.of_sizes(points[1:2]).startswith(alone)


def test_sizes_are_told_by_the_axis_that_is_drawn():
    """A model whose bytes are not known has its place on the axis that a strength names."""
    points = [point(-0.1, bytes_fraction=None, plain_fraction=0.5), point(-0.4, bytes_fraction=0.4, plain_fraction=0.2)]
    told = "Of 2 points with at most half of the dense size, Wanda, 50 % loses least at hard: -10.0 % of the dense"
    assert findings.of_sizes(points, "plain").startswith(told)


def test_no_drop_is_named_that_means_nothing():
    """Neither of a mere reference nor where the dense model is at chance."""
    others = [point(-0.9, level="reference", reference_only=True), point(-0.8, dense_above_chance=False)]
    assert "that of easy by Wanda, 50 %: -10.0 %" in findings.of_levels(found(), [point(-0.1, level="easy"), *others])
    tuned = [{**each, "setting": 1, "task": "qnli", "level": "10 %"} for each in (others[1], point(-0.1))]
    assert ": -10.0 % of" in findings.of_tuning(found(points=tuned), [])


def test_an_own_task_named_like_a_category_is_none():
    orders = [order(verdicts.MONOTONIC, task="commonsense reasoning", setting=setting) for setting in ("own_task", 1)]
    assert findings.of_categories(found(*orders), []) == ""
    assert findings.of_tuning(found(orders[1]), []).startswith("commonsense reasoning by unstructured sparsity")


def test_a_single_amount_of_data_has_no_order():
    orders = [order(verdicts.CANNOT_TELL, setting=1, task=task) for task in ("cola", "sst2")]
    table = [
        {"task": task, "data_fraction": fraction, "normalized_drop": None}
        for task, fraction in (("cola", 1.0), ("sst2", 1.0), ("sst2", 0.5))
    ]
    assert findings.of_tuning(found(*orders), table) == "SST-2 by unstructured sparsity, raw slopes: why."
    assert findings.of_tuning(found(*orders), table[:2]) == ""


def test_the_largest_drop_of_a_category_is_that_of_its_own_points():
    """Points by the amount of training data lie in the same list."""
    hard = point(-0.4, -0.5, -0.3, setting=5, task="single sentence", level="CoLA")
    other = point(-0.9, -1.0, -0.8, setting=1, task="cola", level="10 %")
    assert findings.of_categories(found(points=[hard, other]), []) == (
        "The largest drop is that of CoLA, 50 %: -40.0 % [-50.0, -30.0] of the dense score."
    )


def test_of_domains_the_transfer_is_named():
    row = point(-0.2, level="movies", condition="80 to 20", transfer="sparse_to_dense")
    told = "The largest drop is that of movies (80 to 20), 50 %, sparse to dense transfer: -20.0 %"
    assert findings.of_domains([row]).startswith(told)


def test_being_the_minority():
    effect = {**PLACE, "transfer": "sparse_transfer", "level": "tweets", "requested_sparsity": 0.5,
              "corrected_effect": -0.2}  # fmt: skip
    bounds = {"corrected_effect_low": -0.3, "corrected_effect_high": -0.1}
    told = findings.of_minorities([{**effect, **bounds}])
    assert told == (
        "At 50 %, sparse transfer, being the minority changes the drop of tweets by -20.0 % [-30.0, -10.0] of the "
        "dense score above chance: it loses more."
    )
    assert findings.of_minorities([{**effect, **bounds, "corrected_effect_high": 0.1}]).endswith("cannot be told.")
    assert findings.of_minorities([{**effect, "corrected_effect": None}]) == ""


def test_the_summary_opens_with_a_sentence_per_figure_which_stands_over_it_too(tmp_path):
    three = [dense(), run(), run("sparse_to_dense"), dense(task="rte"), run(task="rte")]
    levels = [level_run(), level_run("wanda", 0.5), level_run("gptq", ("bits", 4))]
    others = [line_run(), perplexity_run(), perplexity_run("wanda", 0.5, (4.0, 4.5))]
    rows = run_folder.read_runs(write_tree(tmp_path, *three, *levels, *others, group_size=128, symmetric=False))
    tree = kinds.describe(rows, [], 200)
    lines = summary.summary_text(tree, ["png"]).splitlines()
    drawn = [plot for part in tree.parts for plot in part.plots if plot.draw and (plot.finding or plot.stem in STEMS)]
    assert {plot.stem for plot in drawn} >= STEMS and all(plot.finding.endswith(".") for plot in drawn)
    assert lines[2] == "## What was found"
    opening = lines[4 : lines.index("", 4)]
    assert [line.partition("**: ")[2] for line in opening] == [plot.finding for plot in drawn]
    for plot in drawn:
        place = lines.index(f"![{plot.stem}.png]({plot.stem}.png)")
        assert lines[place - 2] == plot.finding
    # 3.25 and 4.25 nats over two windows
    assert next(plot.finding for plot in drawn if plot.stem.startswith("perplexity_")) == (
        "Perplexity is highest under Wanda, 50 %: 70.11, dense 25.79; the loss is +1.000 ± 0.000 nats a token."
    )
    assert lines.index("## The runs") > max(place for place, line in enumerate(lines) if line.startswith("!["))


def test_of_flips_those_are_told_whose_score_may_stand_still():
    def flipped(level, flips, change, low, high):
        return {**PLACE, "level": level, "verdict": "cannot tell", "flips": flips, "flips_low": flips - 0.05,
                "flips_high": flips + 0.05, "score_change": change, "score_change_low": low,
                "score_change_high": high}  # fmt: skip

    rows = [flipped("lost", 0.5, -0.3, -0.4, -0.2), flipped("few", 0.1, 0.0, -0.05, 0.05),
            flipped("most", 0.2, -0.04, -0.1, 0.02), {**flipped("none", 0, 0, 0, 0), "verdict": None}]  # fmt: skip
    assert findings.of_flips("Setting 2", rows) == (
        "Setting 2: of 3 points, flips from right to wrong surely outweigh in 0, those from wrong to right in 0; of "
        "those whose score may stand still, most flip at most by Wanda, 50 %: 20.0 % [15.0, 25.0] of the items, while "
        "the score changes by -4.0 points."
    )


def test_the_effect_of_the_strongest_compression_is_told():
    effect = {**PLACE, "transfer": "sparse_transfer", "level": "tweets"}
    effect |= {"corrected_effect_low": -0.6, "corrected_effect_high": -0.1}
    rows = [{**effect, "strength": own, "requested_sparsity": own, "corrected_effect": -own} for own in (0.3, 0.5)]
    told = findings.of_minorities(rows)
    assert told.startswith("At 50 %, ") and "being the minority changes the drop of tweets by -50.0 %" in told


def test_the_highest_barrier_is_told_with_the_interval_of_its_share():
    line = {"split": "validation", "quantity": "error", "definition": "straight_line", "pair": "dense-sparse",
            **PLACE, "interval_low": 0.01, "interval_high": 0.02}  # fmt: skip
    rows = [
        {**line, "task": "qqp", "share_of_learned": 0.1, "share_low": 0.05, "share_high": 0.15},
        {**line, "task": "stsb", "share_of_learned": 0.4, "share_low": 0.3, "share_high": 0.5},
        {**line, "task": "rte", "share_of_learned": 0.9, "share_low": 0.8, "share_high": 1.0, "split": "train"},
    ]
    assert findings.of_lines(rows) == (
        "The highest of 2 barriers is that of STS-B, dense-sparse, 50 %: 40.0 % [30.0, 50.0] of what the dense model "
        "has learned."
    )


def test_the_highest_perplexity_is_told():
    same = {**PLACE, "loss_difference": None}
    rows = [{**same, "compression": "dense", "strength_kind": None, "strength": None, "mean_perplexity": 20.0}]
    rows += [{**same, "strength": own, "mean_perplexity": 50 * own} for own in (0.5, 0.9, 0.7)]
    assert findings.of_perplexity(rows) == "Perplexity is highest under Wanda, 90 %: 45, dense 20."
