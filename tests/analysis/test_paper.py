import math
import tomllib
from pathlib import Path

import pytest
from of_runs import gap_table
from synthetic_runs import dense, level_run, line_run, run, write_tree

from analysis import estimators, human_gap, paper, verdicts
from analysis.contrasts import difference_table
from analysis.kinds import describe
from analysis.table import figure_sets, level_table, only_set
from analysis.verdicts import Trends
from harness import run_folder

ROOT = Path(__file__).parents[2]
NOT_TOLD = "ours cannot tell"


def values(place, what, **others):
    rows = [row for row in paper.printed() if (row["place"], row["what"]) == (place, what)]
    rows = [row for row in rows if all(row[name] == value for name, value in others.items())]
    return {row["item"]: row["value"] for row in rows}


@pytest.mark.parametrize("place", ["table 3", "appendix B, table"])
def test_the_printed_difficulties_follow_from_the_printed_scores(place):
    human, score = values(place, "human"), values(place, "dense_score")
    found = {item: round(estimators.human_gap(human[item], score[item]), 4) for item in human}
    assert found == pytest.approx(values(place, "difficulty"), abs=1.01e-4) and len(found) in (3, 8)


def test_people_score_as_the_paper_prints():
    metrics = {"cola": "matthews_correlation", "stsb": "pearson"}
    printed = values("appendix B, table", "human")
    assert printed == {task: human_gap.human_score(task, metrics.get(task, "accuracy")) for task in printed}


def test_table_2_as_printed():
    pruned = values("table 2", "spearman", setting=3, compression="magnitude")
    assert pruned == {"closed book": 0.996, "100 %": 0.996, "60 %": 0.975, "20 %": 0.987}
    assert values("table 2", "spearman", setting=2, compression="gptq") == {
        "4 options": 0.872, "3 options": 0.799, "2 options": 0.666,
    }  # fmt: skip
    assert len(values("appendix E, table", "spearman")) == 7


def test_every_printed_row_is_whole_and_every_claim_quoted():
    for row in paper.printed():
        assert set(row) == set(paper.PAPER_COLUMNS)
        assert None not in [row[name] for name in ("place", "what", "setting", "task", "item", "model", "compression")]
        claims = ("drop", "freezing", "transfer", "order", "barrier")
        assert (row["quote"] is not None) == (row["what"] in claims)


def test_the_numbers_are_shipped_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert paper.NUMBERS.name in project["tool"]["setuptools"]["package-data"][paper.NUMBERS.parent.name]


def ours(what, value, low=None, high=None, p=None, setting=2, item="2 options", compression="magnitude", **others):
    tasks = {1: paper.TUNED, 2: "option_count", 3: "context_length", 5: "human_gap"}
    own = {"task": tasks[setting], "where": None, "model": "model-a", "method": compression.upper(), "note": None}
    same = {"what": what, "setting": setting, "item": item, "compression": compression, "strength": None}
    return {**own, **same, "value": value, "low": low, "high": high, "p_value": p, **others}


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (ours("spearman", 0.5), "ours cannot tell"),  # without a test nothing is said
        (ours("spearman", -0.5), "ours cannot tell"),
        (ours("spearman", 0.5, 0.1, 0.9, p=0.05), "same sign"),
        (ours("spearman", -0.5, -0.9, -0.1, p=0.01), "other sign"),
        (ours("spearman", 0.5, -0.1, 0.9, p=0.06), "ours cannot tell"),
        (ours("spearman", None), "ours cannot tell"),
        (ours("spearman", 0.0), "ours cannot tell"),
        (ours("difficulty", 0.1, setting=1, item="qqp", compression="dense"), "ours cannot tell"),
        (ours("difficulty", 0.1, p=0.04, setting=1, item="qqp", compression="dense"), "other sign"),
        (ours("difficulty", 0.1, p=0.2, setting=1, item="qqp", compression="dense"), "ours cannot tell"),
        (ours("dense_score", 0.9, setting=1, item="qqp", compression="dense"), "ours lower"),
        (ours("dense_score", 0.9, 0.88, 0.92, setting=1, item="qqp", compression="dense"), "alike"),
        (ours("dense_score", 0.99, 0.98, 1.0, setting=1, item="qqp", compression="dense"), "ours higher"),
        (ours("freezing", -0.1, -0.2, -0.01, p=0.01, setting=1, item="sst2", strength=0.9), "ours loses"),
        (ours("freezing", -0.01, -0.049, 0.01, p=0.5, setting=1, item="sst2", strength=0.9), "no loss seen"),
        (ours("freezing", -0.01, -0.051, 0.01, p=0.5, setting=1, item="sst2", strength=0.9), "ours cannot tell"),
        (ours("freezing", 0.1, 0.01, 0.2, p=0.01, setting=1, item="sst2", strength=0.9), "no loss seen"),
        (ours("freezing", -0.1, setting=1, item="sst2", strength=0.9), "ours cannot tell"),
        (ours("drop", -0.02, -0.03, -0.01, p=0.01, strength=0.1), "ours loses"),
        (ours("drop", -0.02, -0.03, 0.01, p=0.06, strength=0.1), "no loss seen"),
        (ours("order", "monotonic", item="raw"), "same"),
        (ours("order", "not monotonic", item="raw"), "other"),
        (ours("order", "cannot tell", item="raw"), "ours cannot tell"),
        (ours("order", "monotonic", item="raw", compression="gptq"), "other"),
        (ours("levels", 3, item="levels", compression="dense"), "same"),
        (ours("levels", 2, item="levels", compression="dense"), "other"),
        (
            ours("transfer", "lower", setting=1, item="dense_transfer_freezing - sparse_to_dense", where="RTE"),
            "other",
        ),
    ],
)
def test_verdict_of_one_number(own, verdict):
    (row,) = paper.compare([own])
    assert set(row) == set(paper.COMPARISON_COLUMNS)
    assert row["verdict"] == verdict and (row["our_value"], row["our_low"]) == (own["value"], own["low"])
    assert row["item"] == own["where"] or row["item"] == own["item"]
    assert row["p_value"] == row["holm_p"] == own["p_value"]  # of a single row


def test_signs_and_losses_are_told_after_holms_correction_over_their_table():
    """p of .02 and .04 is .04 and .04; .03 and .03 is .06: neither is told, though each alone would be."""
    names = ("4 options", "2 options")
    for p_values, holm, verdict in (((0.02, 0.04), (0.04, 0.04), "same sign"), ((0.03, 0.03), (0.06, 0.06), NOT_TOLD)):
        own = [ours("spearman", 0.9, 0.1, 1.0, p=p, item=item) for p, item in zip(p_values, names, strict=True)]
        # Another method's are a family of their own, and what has no p-value does not count.
        other = ours("spearman", 0.9, 0.1, 1.0, p=0.05, compression="gptq")
        rows = paper.compare([*own, ours("spearman", 0.9, item="3 options"), other])
        shown = {(row["item"], row["paper_compression"]): row for row in rows}
        told = [shown[item, "magnitude"] for item in names]
        assert [row["holm_p"] for row in told] == pytest.approx(holm) and [row["verdict"] for row in told] == [
            verdict
        ] * 2
        assert shown["3 options", "magnitude"]["holm_p"] is None
        assert (shown["2 options", "gptq"]["holm_p"], shown["2 options", "gptq"]["verdict"]) == (0.05, "same sign")


def test_what_the_paper_does_not_print_is_passed_over():
    others = [
        ours("spearman", 0.5, item="5 options"), ours("spearman", 0.5, compression="wanda"),
        ours("freezing", 0.1, 0, 1, setting=1, item="sst2", strength=0.7), ours("drop", -0.1, strength=0.5),
        ours("difficulty", 0.1, setting=1, item="mnli", compression="dense"),
    ]  # fmt: skip
    assert paper.compare(others) == []


def spearmans(setting=2, compression="magnitude", **levels):
    names = {f"o{number}": f"{number} options" for number in (2, 3, 4)}
    found = []
    for name, value in levels.items():
        p = None if value is None else 0.001
        found.append(ours("spearman", value, p=p, item=names[name], compression=compression))
    return found


@pytest.mark.parametrize(
    ("values", "agreement", "counts"),
    [
        ({"o4": 0.7, "o3": 0.8, "o2": 0.9}, "same sign", "3 of 3; of the estimates, 2 of 2 pairs are in its order"),
        ({"o4": 0.8, "o3": 0.7, "o2": 0.9}, "same sign", "3 of 3; of the estimates, 1 of 2 pairs are in its order"),
        ({"o4": 0.8, "o3": -0.7, "o2": 0.9}, "other sign", "2 of 3; of the estimates, 1 of 2 pairs are in its order"),
        ({"o4": 0.8}, "same sign", "1 of 1; no pair has an order in both"),
        ({"o4": None, "o3": None}, "ours cannot tell", "0 of 2; no pair has an order in both"),
    ],
)
def test_verdict_of_a_table(values, agreement, counts):
    """The paper has .979, 1 and 1 at 4, 3 and 2 options: of its three pairs two have an order."""
    (row,) = paper.verdicts(paper.compare(spearmans(**values)))
    assert set(row) == set(paper.VERDICT_COLUMNS) and row["agreement"] == agreement
    assert row["text"] == (
        f"Table 2, Spearman of compression with loss, setting 2, MAGNITUDE, model-a beside Vicuna-7B: {agreement}; "
        f"the sign is the same in {counts}."
    )


def test_pruning_against_quantization_level_by_level():
    pruned = spearmans(o4=0.9, o3=0.9, o2=0.9)
    for own, closer, less in (((0.5, 0.5), 2, 0), ((0.5, 1.0), 1, 1), ((0.9, 0.95), 0, 1), ((0.86, None), 1, 0)):
        quantized = spearmans(compression="gptq", o4=own[0], o3=own[1], o2=None)
        *_, row = paper.verdicts(paper.compare([*pruned, *quantized]))
        assert row["agreement"] == "ours cannot tell" and row["paper_compression"] == "magnitude against gptq"
        assert row["text"].endswith(
            f"by the estimates the first is closer in {closer}, less close in {less} of 3 levels, "
            "in the paper closer in 3 of 3."
        )


def test_verdict_of_claims():
    freezing = [
        ours("freezing", -0.001, -0.01, 0.01, p=0.6, setting=1, item="sst2", strength=0.9),
        ours("freezing", -0.2, -0.3, -0.1, p=0.001, setting=1, item="cola", strength=0.7),
    ]  # fmt: skip
    orders = [
        ours("order", value, setting=1, item="raw", where=task)
        for task, value in (("QNLI", "monotonic"), ("RTE", "cannot tell"))
    ]
    one, other = paper.verdicts(paper.compare([*freezing, *orders]))
    assert one["agreement"] == "ours loses"
    assert one["text"].endswith(
        "the paper sees none, ours is sure of a loss in 1 of 2 (SST-2 at 0.9 -0.001, CoLA at 0.7 -0.200)."
    )
    assert other["agreement"] == "same" and other["text"].startswith("Figure 1, each harder level falls faster")
    assert other["text"].endswith("the paper says monotonic; ours: same in 1, ours cannot tell in 1 of 2.")


@pytest.mark.parametrize(
    ("losses", "agreement"),
    [
        ([(-0.001, -0.01, 0.6), (0.0, -0.02, 1.0)], "no loss seen"),
        # One of them allows more than 5 %: that no loss is seen is not borne out for both.
        ([(-0.001, -0.01, 0.6), (-0.01, -0.09, 0.6)], "ours cannot tell"),
        ([(-0.001, -0.01, 0.6), (-0.01, None, None)], "ours cannot tell"),
        ([(-0.2, -0.3, 0.02), (-0.01, -0.09, 0.6)], "ours loses"),
        # .03 counts twice.
        ([(-0.2, -0.3, 0.03), (-0.01, -0.04, 0.6)], "ours cannot tell"),
    ],
)
def test_no_loss_is_seen_where_every_interval_rules_it_out(losses, agreement):
    own = [
        ours("freezing", value, low, None if low is None else 0.0, p=p, setting=1, item=item, strength=strength)
        for (value, low, p), (item, strength) in zip(losses, (("sst2", 0.9), ("cola", 0.7)), strict=True)
    ]
    (row,) = paper.verdicts(paper.compare(own))
    assert row["agreement"] == agreement


def test_scores_and_counts_have_no_verdict_and_models_are_kept_apart():
    score = ours("dense_score", 0.9, setting=1, item="qqp", compression="dense")
    assert paper.verdicts(paper.compare([score])) == []
    two = [*spearmans(o4=0.9), *[{**row, "model": "model-b"} for row in spearmans(o4=0.8)]]
    assert [row["our_model"] for row in paper.verdicts(paper.compare(two))] == ["model-a", "model-b"]


@pytest.fixture
def read(tmp_path):
    return lambda *runs: run_folder.read_runs(write_tree(tmp_path, *runs))


def found(rows, what):
    return {(row["item"], row["strength"]): row for row in rows if row["what"] == what}


def numbers(rows):
    """Everything in the rows that the paper prints too."""
    members = only_set(figure_sets(rows), ("setting", "model", "scope"))
    return paper.our_numbers(
        rows,
        paper.Measured(
            levels=level_table(rows), gaps=[gap_table(members)] if members else [],
            differences=difference_table(members) if members else [],
        ),
    )  # fmt: skip


def two_sided(z):
    return math.erfc(z / 2**0.5)


def test_difficulties_of_settings_without_training(read):
    levels = {"PIQA": (1, 1, 1, 0) * 25, "OpenBookQA": (1, 0, 0, 0) * 25}
    human = {"PIQA": {"human": 0.95}, "OpenBookQA": {"human": 0.92}}
    rows = read(level_run(levels=levels, of_level=human, setting=5, task="human_gap", difficulty=None))
    own = numbers(rows)
    stderr = (0.75 * 0.25 / 99) ** 0.5  # over items, each a group of its own
    difficulty = found(own, "difficulty")["PIQA", None]
    assert difficulty["value"] == pytest.approx(0.2 / 0.95)
    assert difficulty["high"] - difficulty["value"] == pytest.approx(1.96 * stderr / 0.95)
    assert difficulty["p_value"] == pytest.approx(two_sided(0.2 / stderr))
    score = found(own, "dense_score")["OpenBookQA", None]
    assert score["value"] == 0.25 and score["p_value"] is None
    assert found(own, "levels")["levels", None]["value"] == 2
    compared = paper.compare(own)
    assert [row["verdict"] for row in compared if row["what"] == "difficulty"] == ["same sign", "same sign"]
    assert [row["agreement"] for row in paper.verdicts(compared)] == ["same sign"]


def test_a_gap_to_people_that_items_do_not_show_has_no_sign(read):
    # 3 of 4 and people's 95 %: a gap of .2 with an error of sqrt(3/4 / 3 / 4) = .25.
    human = {"PIQA": {"human": 0.95}}
    rows = read(level_run(levels={"PIQA": (1, 1, 1, 0)}, of_level=human, setting=5, task="human_gap", difficulty=None))
    (row,) = [row for row in describe(rows).compared if row["what"] == "difficulty"]
    assert row["p_value"] == pytest.approx(two_sided(0.8)) and row["verdict"] == "ours cannot tell"


def test_difficulties_freezing_and_fractions_of_fine_tuned_tasks(read):
    rows = read(
        dense(0.95, task="sst2", stderr=0.01), dense(0.9, fraction=0.5, task="sst2"),
        run("dense_transfer_freezing", 0.9, 0.9, task="sst2"), run("sparse_to_dense", 0.9, 0.8, task="sst2"),
        dense(0.9, task="own"), run("dense_transfer_freezing", "2:4", 0.9, task="sst2"),
    )  # fmt: skip
    own = numbers(rows)
    difficulty = found(own, "difficulty")["sst2", None]
    assert difficulty["value"] == pytest.approx(0.028 / 0.978) and difficulty["p_value"] == pytest.approx(
        two_sided(2.8)
    )
    score = found(own, "dense_score")["sst2", None]
    assert score["low"] == pytest.approx(0.95 - 0.0196) and len(found(own, "dense_score")) == 1
    assert found(own, "levels")["levels", None]["value"] == 2
    freezing = found(own, "freezing")
    assert list(freezing) == [("sst2", 0.9)] and freezing["sst2", 0.9]["value"] == pytest.approx(-0.05 / 0.95)
    assert freezing["sst2", 0.9]["note"] == "no predictions on the same items"
    assert found(own, "transfer")["sparse_to_dense - dense_transfer", None]["value"] == "cannot tell"
    # They come from the differences that were measured.
    without = paper.our_numbers(rows, paper.Measured())
    assert not found(without, "freezing") and not found(without, "transfer")


def test_the_same_dense_runs_count_once_beside_two_magnitude_scopes_and_models_of_one_name_apart(read):
    """Three dense runs of two models that are called alike; N:M, which has no scope, has one curve."""
    runs = [each(task="sst2", model=model, score=0.8) for model in ("a/lm", "b/lm") for each in (dense, run)]
    more = [run(task="sst2", model="a/lm", magnitude_scope="layer"), dense(task="rte", model="a/lm")]
    more += [run(task="sst2", strength=strength, model="a/lm") for strength in ("6:8", "4:8", "2:8")]
    tree = describe(read(*runs, *more), resamples=100)
    own = [(row["our_model"], row["item"]) for row in tree.compared if row["what"] == "difficulty"]
    assert len({model for model, _ in own}) == 2 and sorted(item for _, item in own) == ["rte", "sst2", "sst2"]
    curves = [(row["model"], row["strength_kind"], row["magnitude_scope"]) for row in tree.trends.levels]
    assert len(set(curves)) == len(curves) == 4
    assert [scope for _, kind, scope in curves if kind == "nm"] == [None]


def test_transfers_of_several_models_are_not_counted_together():
    row = {
        "model": "model-a", "magnitude_scope": "global", "task": "rte", "strength_kind": "sparsity", "strength": 0.5,
        "transfer": "dense_transfer_freezing", "against": "sparse_to_dense", "dense_above_chance": True,
        "difference": 0.1, "difference_low": 0.05, "difference_high": 0.15, "p_value": 0.001, "reason": "",
        "verdict": "higher",
    }  # fmt: skip
    rows = [row, {**row, "strength": 0.7}, {**row, "model": "model-b", "verdict": "lower"}]
    at_chance = {**row, "model": "model-c", "dense_above_chance": False}
    own = paper.our_numbers([], paper.Measured(differences=[*rows, at_chance]))
    told = [(each["model"], each["value"]) for each in own if each["what"] == "transfer"]
    assert told == [("model-a", "higher"), ("model-b", "lower")]


def test_spearmans_orders_and_drops_come_from_the_trends(read):
    curve = {
        "setting": 2, "model": "lab/model-a", "task": "option_count", "compression": "magnitude",
        "magnitude_scope": "layer", "strength_kind": "sparsity",
    }  # fmt: skip
    level = {**curve, "level": "2 options", "spearman": 0.9, "spearman_p": 0.01, "points": 4}  # fmt: skip
    order = {**curve, "measure": "raw", "verdict": "monotonic", "levels": 3}
    category = {**order, "setting": 5, "task": "single sentence", "verdict": "cannot tell"}
    point = {
        **curve,
        "level": "2 options",
        "strength": 0.1,
        "normalized_drop": -0.1,
        "drop_low": -0.2,
        "drop_high": 0.0,
        "loss_p": 0.03,
    }
    nm = {"strength_kind": "nm"}
    trended = Trends(
        [point, {**point, **nm, "strength": "7:8"}], [level, {**level, **nm}, {**level, "compression": "wanda"}],
        [order, {**order, "measure": "chance-corrected", "verdict": "cannot tell"}, category, {**order, **nm},
         {**order, "task": "own", "levels": 1}],
    )  # fmt: skip
    compared = paper.compare(paper.our_numbers([], paper.Measured(trended)))
    shown = [(row["place"], row["what"], row["our_compression"], row["our_value"], row["note"]) for row in compared]
    assert shown == [
        ("table 2", "spearman", "Magnitude (threshold: layer)", 0.9, "number of strengths: 4"),
        ("section 3.1.5 ❶", "drop", "Magnitude (threshold: layer)", -0.1, None),
        ("figure 2", "order", "Magnitude (threshold: layer)", "monotonic", "chance-corrected: cannot tell"),
        ("figure 2", "order", "Magnitude (threshold: layer), nm", "monotonic", None),
        ("appendix B", "order", "Magnitude (threshold: layer)", "cannot tell", None),
    ]
    assert compared[0]["our_model"] == "lab/model-a" and compared[-1]["item"] == "single sentence"
    assert (compared[0]["our_low"], compared[1]["our_high"]) == (None, 0.0)
    assert [row["p_value"] for row in compared] == [0.01, 0.03, None, None, None]
    assert [row["verdict"] for row in compared[:2]] == ["same sign", "ours loses"]


def test_barriers_of_two_tasks_are_compared_by_their_intervals(read):
    """A dense score of .9 is .4 above chance; a dip of .1 below the line is a barrier of a quarter of that."""
    flat, dip = {"scores": (0.9, 0.8, 0.7)}, {"scores": (0.9, 0.7, 0.7)}
    rows = read(
        line_run(task="qqp", **flat), line_run(task="stsb", **dip), line_run(task="qqp", strength=0.7, **dip),
        line_run(task="stsb", strength=0.7, **flat), line_run(task="rte", noise=0.1, **flat),
        line_run(task="qnli", noise=0.1, **dip), line_run(task="qnli", strength=0.9, **dip),
        line_run("dense-pruned", task="rte", strength=0.9, **dip),
    )  # fmt: skip
    compared = [row for row in describe(rows).compared if row["what"] == "barrier"]
    assert [(row["item"], row["our_value"], row["verdict"]) for row in compared] == [
        ("STS-B - QQP, 50 %", "higher", "same"), ("STS-B - QQP, 70 %", "lower", "other"),
        ("QNLI - RTE, 50 %", "cannot tell", "ours cannot tell"),
    ]  # fmt: skip
    assert compared[0]["note"] == "0.250 and 0.000 of what dense learned"
    (row,) = paper.verdicts(compared)
    assert row["agreement"] == "other" and row["text"].endswith(
        "the paper says higher; ours: same in 1, other in 1, ours cannot tell in 1 of 3."
    )


def test_a_tree_is_measured(read):
    levels = {"2 options": (1,) * 9 + (0,), "4 options": (1,) * 8 + (0,) * 2}
    fewer = {"2 options": (1,) * 8 + (0,) * 2, "4 options": (1,) * 6 + (0,) * 4}
    least = {"2 options": (1,) * 6 + (0,) * 4, "4 options": (1,) * 3 + (0,) * 7}
    rows = read(
        level_run(levels=levels), level_run("magnitude", 0.2, levels), level_run("magnitude", 0.4, fewer),
        level_run("magnitude", 0.6, least),
    )  # fmt: skip
    compared = describe(rows).compared
    assert {(row["item"], row["our_value"]) for row in compared if row["what"] == "spearman"} == {
        ("2 options", 1.0), ("4 options", 1.0),
    }  # fmt: skip
    assert [row["place"] for row in compared if row["what"] == "order"] == ["figure 2"]


def test_the_summary_names_both_models(read):
    lines = paper.comparison_lines(paper.compare(spearmans(o4=0.9)))
    assert lines[0].startswith(
        "- Table 2, Spearman of compression with loss, setting 2, MAGNITUDE, model-a beside Vicuna-7B"
    )
    assert lines[-1] == (
        "| table 2 | Spearman of compression with loss | 4 options | 0.979 | Vicuna-7B | 0.900 | "
        "model-a | MAGNITUDE | same sign |"
    )
    assert paper.comparison_lines([]) == [] and describe(read(run(task="own"))).compared != []


def test_trends_of_all_kinds_are_measured_together(read):
    rows = read(dense(), run(), level_run(), level_run("magnitude", 0.5))
    joined = verdicts.measure(rows)
    assert {level["setting"] for level in joined.levels} == {1, 2} and isinstance(joined, verdicts.Trends)
