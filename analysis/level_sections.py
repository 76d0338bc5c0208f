"""What summary.md says of models that were compressed without training: levels, slopes, scores, sizes, perplexity."""

from collections.abc import Iterable

from analysis.compression_plots import curve_label
from analysis.curves import (
    corrected_levels,
    curve_statistics,
    is_comparable,
    level_curves,
    order_cells,
    size_curves,
    size_spearman,
    unknown_difficulty,
)
from analysis.names import (
    YES_NO,
    compression_name,
    markdown,
    number,
    p_text,
    spearman_text,
    strength_text,
    with_bounds,
)
from analysis.table import LEVEL_KEY, Row, grouped, point_order
from analysis.verdicts import Trends, verdict_lines

REFERENCE = "reference_only"
SPEARMAN_CELL = 6  # of _slope_cells
# Metrics of written answers whose names do not say what they are.
METRIC_NOTES = {
    "em_original": "the original's match, one of the two anywhere inside the other letter by letter, right for an "
    "empty answer too",
    "freebaseqa_original": "the original's match for FreebaseQA, an accepted answer anywhere in question and answer "
    "without spaces, also inside a longer word or in the question itself",
    "empty": "share of answers without a word, lower where better and so no score to draw",
}


def level_section(table: list[Row], trends: Trends) -> list[str]:
    """The lines of summary.md on one setting, model and task.

    Args:
        table: its level_table, with intervals.
        trends: verdicts.of_figure of its curves.
    """
    return [
        "### Levels", "", *_levels(table), "",
        "### How fast the score falls", "", *_slopes(table, trends), "",
        *_verdicts(trends),
        "### Scores", "", *_scores(table), *_written_answers(table),
    ]  # fmt: skip


def _levels(table: list[Row]) -> list[str]:
    head = [
        "level", "difficulty", "data set", "metric", "read by", "items", "chance", "people", "dense ± standard error",
        "above chance", "dense by every metric", "how it was made",
    ]  # fmt: skip
    body = []
    for (name,), (first, *_) in grouped(table, ["level"]).items():
        is_dense = first["strength_kind"] is None
        body.append(
            [
                f"{name} (reference only)" if first["reference_only"] else name, _difficulty(first["difficulty"]),
                first["dataset"] or "", first["metric"], first["reader"] or "", first["num_examples"],
                number(first["chance"]), number(first["human"]),
                _with_error(first["mean_score"], first["mean_stderr"]) if is_dense else "**missing**",
                YES_NO[first["dense_above_chance"]], _listed(first["metrics"]) if is_dense else "",
                _listed(fact for fact in first["facts"] if not fact.startswith(REFERENCE) and not fact.endswith("=0")),
            ]
        )  # fmt: skip
    return [_about_order(table), "", *markdown(head, body)]


def _about_order(table: list[Row]) -> str:
    """In which order the levels stand."""
    shown = [point for point in table if not point["reference_only"]]
    unknown = unknown_difficulty(shown)
    if not unknown:
        return "From easy to hard."
    if all(point["difficulty"] is None for point in shown):
        return "In the order of the runs: no level's difficulty is known."
    return f"From easy to hard; then, of unknown difficulty: {unknown}."


def _listed(told: Iterable[str]) -> str:
    """("accuracy=0.5", "accuracy_norm=0.6") -> accuracy 0.5, accuracy norm 0.6"""
    return ", ".join(text.replace("_", " ").replace("=", " ") for text in told)


def _difficulty(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _with_error(score: float, error: float | None) -> str:
    return f"{score:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _slopes(table: list[Row], trends: Trends) -> list[str]:
    bounds = {_curve_place(row): row for row in trends.levels}
    errors = {point["level"]: point["mean_stderr"] for point in table if point["strength_kind"] is None}
    body, orders = [], []
    for (kind, _, _), of_level in level_curves(table).items():
        if kind == "bytes":
            continue
        levels = [curve_statistics(points) for points in of_level.values()]
        place = [compression_name(next(iter(of_level.values()))[0]), kind]
        for level, points in zip(levels, of_level.values(), strict=True):
            own = bounds.get(_curve_place(points[0]), {})
            cells = _slope_cells(level, errors.get(level["level"]), own)
            if len({point["mean_score"] for point in points}) == 1 < len(points):
                cells[SPEARMAN_CELL] = "undefined: all scores are equal"
            body.append([*place, *cells])
        for measure, own in {"raw": levels, "chance-corrected": corrected_levels(levels)}.items():
            orders.append([*place, measure, *order_cells(own)])
    head = [
        "compression", "strength", "level", "difficulty", "dense score", "chance", "above chance", "points",
        "Spearman", "slope", "chance-corrected slope",
    ]  # fmt: skip
    return [
        "Spearman: rank correlation of the weights removed with the loss of score, 1 where every step loses. Slope: "
        "Theil-Sen, normalized drop per unit of weights removed (sparsity, 1 - N/M, 1 - bits/16, or the share of the "
        "parameters that a low rank saves), negative where the score falls. Chance-corrected: of the score above "
        "chance, (score - chance) / (dense - chance) - 1. A level whose dense score is not above chance has no slope."
        f" {_ABOUT_INTERVALS}",
        "",
        *markdown(head, body),
        "",
        "The hypothesis says that the slope steepens with difficulty:",
        "",
        *markdown(["compression", "strength", "slopes", "each harder level falls faster", "basis"], orders),
        *_about_chance(table),
    ]


_ABOUT_INTERVALS = (
    "In brackets 95 % intervals: whole curves resampled over groups of items and over seeds, the same ones for the "
    "dense model, all strengths and all levels that share items."
)


def _curve_place(row: Row) -> tuple:
    return tuple(row[name] for name in ("strength_kind", "compression", "magnitude_scope", "level"))


def _verdicts(trends: Trends) -> list[str]:
    lines = [f"- {line}" for line in verdict_lines(trends.orders)]
    return [
        "### Verdicts", "",
        "Whether the score falls faster at every harder level, tested one-sided at 5 % with Holm's correction over the "
        "lines of one measure. The slopes decide; Page's test of the losses, averaged over the strengths, stands "
        "beside them where all levels share groups of items that are large enough to be ranked.",
        "", *(lines or ["Nothing was compressed."]), "",
        "### Where the score begins to fall", "", *_beginnings(trends.levels), "",
    ]  # fmt: skip


def _beginnings(levels: list[Row]) -> list[str]:
    head = ["compression", "strength", "level", "items", "groups", "seeds", "5 % lost at", "10 % lost at", "remark"]
    body = [
        [
            compression_name(row), row["strength_kind"], row["level"], *(_known(row[name]) for name in
            ("items", "clusters", "seeds")), _beginning(row, "amount_at_5"), _beginning(row, "amount_at_10"),
            "; ".join(filter(None, (row["reason"], row["amount_reason"]))),
        ]
        for row in levels
    ]  # fmt: skip
    return [
        "The share of the weights removed (measured as the slopes are) at which the drop reaches 5 and 10 % of the "
        "dense score, on the falling curve (isotonic) nearest to the points, with its 95 % interval; an empty "
        "bound lies beyond the measured strengths.",
        "",
        *markdown(head, body),
    ]


def _known(value: int | None) -> str:
    return "" if value is None else str(value)


def _beginning(row: Row, name: str) -> str:
    value, low, high = (row[f"{name}{ending}"] for ending in ("", "_low", "_high"))
    if value is None:
        return "" if row["amount_reason"] is None else "not reached" + ("" if low is None else f" [{number(low)}, ]")
    return with_bounds(value, low, high)


def _slope_cells(level: Row, error: float | None, bounds: Row) -> list:
    dense = level["dense_mean_score"]
    slope = level["theil_sen_slope"] if is_comparable(level) else None
    return [
        level["level"], _difficulty(level["difficulty"]), "" if dense is None else _with_error(dense, error),
        number(level["chance"]), YES_NO[level["dense_above_chance"]], len(level["strengths"]),
        *(
            with_bounds(value, bounds.get(f"{name}_low"), bounds.get(f"{name}_high"))
            for name, value in
            (("spearman", level["spearman"]), ("slope", slope), ("corrected_slope", level["corrected_slope"]))
        ),
    ]  # fmt: skip


def _about_chance(table: list[Row]) -> list[str]:
    """A paragraph on chance, where levels that differ in it may have ordered raw slopes for this reason alone."""
    chances = {point["chance"] for point in table if not point["reference_only"]} - {None}
    if table[0]["setting"] == 2:
        return [
            "",
            "The raw order alone says little here: with fewer options chance is higher, and no score falls far below "
            "it. A compression that destroys the same share of the knowledge at every number of options already gives "
            "raw drops that steepen from 2 options to 4; only its chance-corrected slopes are alike.",
        ]
    if len(chances) > 1:
        return [
            "",
            f"The levels differ in chance ({number(min(chances))} to {number(max(chances))}), below which no score "
            "falls far: the same loss of knowledge gives different raw drops, and equal chance-corrected ones.",
        ]
    return []


def _scores(table: list[Row]) -> list[str]:
    levels = {name: points[0]["dense_above_chance"] for (name,), points in grouped(table, ["level"]).items()}
    heads = [f"{name} (**dense at chance**)" if learned is False else name for name, learned in levels.items()]
    body = []
    for points in sorted(grouped(table, LEVEL_KEY).values(), key=lambda points: point_order(points[0])):
        point, of_level = points[0], {point["level"]: _score(point) for point in points}
        cells = [of_level.get(level, "") for level in levels]
        body.append([compression_name(point), strength_text(point), " ".join(map(str, point["seeds"])), *cells])
    return [
        "Mean over seeds; in brackets the normalized drop with its 95 % interval over groups of items and over seeds, "
        "each item compared with the dense model's outcome on it. No drop where the dense score is not above chance.",
        "",
        *markdown(["compression", "strength", "seeds", *heads], body),
    ]


def _written_answers(table: list[Row]) -> list[str]:
    """A table of written answers by every metric that was recorded; no lines without such answers."""
    points = [point for point in table if (point["reader"] or "").startswith("answer") and point["metrics"]]
    recorded = [dict(text.split("=", 1) for text in point["metrics"]) for point in points]
    names = list(dict.fromkeys(name for metrics in recorded for name in metrics))
    if not names:
        return []
    notes = [f"{name.replace('_', ' ')}: {note}" for name, note in METRIC_NOTES.items() if name in names]
    body = [
        [point["level"], compression_name(point), strength_text(point), *(metrics.get(name, "") for name in names)]
        for point, metrics in zip(points, recorded, strict=True)
    ]
    return [
        "", "### Written answers by every metric", "",
        f"`plot_results.py --metric NAME` draws another. {'. '.join(notes)}.", "",
        *markdown(["level", "compression", "strength", *(name.replace("_", " ") for name in names)], body),
    ]  # fmt: skip


def _score(point: Row) -> str:
    """0.412 (-12.3 [-15.5, -9.1] %); unknown numbers are left out."""
    text = f"{point['mean_score']:.3f}"
    drop = point["normalized_drop"]
    if point["strength_kind"] is None or drop is None or point["dense_above_chance"] is False:
        return text
    half = ""
    if point["drop_low"] is not None and point["drop_high"] is not None:
        half = f" [{100 * point['drop_low']:.1f}, {100 * point['drop_high']:.1f}]"
    return f"{text} ({100 * drop:+.1f}{half} %)"


def size_section(points: list[Row]) -> list[str]:
    """Spearman's correlation by level and compression, laid out as table 2 of the paper.

    Args:
        points: a curves.size_table.
    """
    found = size_curves(points)
    keys = list(dict.fromkeys(key for own in found.values() for key in own))
    body = [
        [level, *(spearman_text(_size_statistics(own[key])) if key in own else "" for key in keys)]
        for level, own in found.items()
    ]
    return [
        "",
        "### Pruning, quantization and low rank (paper: section 4, table 2, appendix E)",
        "",
        "Spearman's rank correlation of the strength of compression with the loss of score, over the means of the "
        "seeds: 1 where every stronger compression loses more.",
        "",
        *markdown(["level", *map(curve_label, keys)], body),
    ]


def _size_statistics(points: list[Row]) -> Row:
    return {"spearman": size_spearman(points), "strengths": tuple(point["strength"] for point in points)}


ABOUT_FLIPS = (
    "Every compressed model beside the dense one, item by item, with paired 95 % intervals over groups of items and "
    "over seeds. Right to wrong, wrong to right: share of the items whose answer flips; their difference is the change "
    "of the score (of a score between 0 and 1, such as f1, what is lost and what is gained). Changed: share with "
    "another answer at all, another option or another text. KL: mean over items of KL(dense to compressed) in nats, of "
    "the softmax of the options' scores; it counts disagreement and has no direction. Outweighs: the direction of "
    "flips that is surely the more frequent one, two-sided at 5 % with Holm's correction over the points of a setting "
    "and model; by an exact McNemar test where items are independent and one run is compared with one, else resampled."
)


def flip_section(title: str, rows: list[Row]) -> list[str]:
    """The lines of summary.md on the flips of one setting, model and task.

    Args:
        title: of these.
        rows: their flips.flip_table.
    """
    head = [
        "level", "compression", "strength", "items", "score, points", "right to wrong, %", "wrong to right, %",
        "changed, %", "KL, nats", "outweighs", "remark",
    ]  # fmt: skip
    body = [
        [
            f"{row['level']} (**dense at chance**)" if row["dense_above_chance"] is False else row["level"],
            compression_name(row), strength_text(row), _known(row["items"]),
            *(_share(row, name) for name in ("score_change", "right_to_wrong", "wrong_to_right", "changed")),
            with_bounds(row["kl"], row["kl_low"], row["kl_high"]), _outweighing(row), row["reason"] or "",
        ]
        for row in rows
    ]  # fmt: skip
    scores = sorted({row["kl_of"] for row in rows if row["kl_of"]})
    about = f"KL is of the options' {' and '.join(scores)}." if scores else "No option scores are recorded: no KL."
    return [f"### {' '.join(title.split())}", "", about, "", *markdown(head, body)]


def _share(row: Row, name: str) -> str:
    """12.3 [10.1, 14.9], in percent; empty where it is not known."""
    sign = "+" if name == "score_change" else ""
    value, low, high = (
        "" if row[f"{name}{ending}"] is None else f"{100 * row[f'{name}{ending}']:{sign}.1f}"
        for ending in ("", "_low", "_high")
    )
    return f"{value} [{low}, {high}]" if low or high else value


def _outweighing(row: Row) -> str:
    if row["verdict"] is None:
        return ""
    return row["verdict"] if row["holm_p"] is None else f"{row['verdict']} ({p_text(row['holm_p'])})"


def perplexity_section(table: list[Row]) -> list[str]:
    """The lines of one model and text; `table` is their perplexity_table."""
    first = table[0]
    head = ["compression", "strength", "zeros", "parameters", "perplexity", "seeds' range", "loss - dense", "seeds"]
    body = [
        [
            compression_name(point), strength_text(point), _percent_or_empty(point["measured_sparsity"]),
            _percent_or_empty(point["parameter_ratio"]), f"{point['mean_perplexity']:.4g}", _seed_range(point),
            _loss_difference(point), " ".join(map(str, point["seeds"])) if point["calibrated"] else "",
        ]
        for point in table
    ]  # fmt: skip
    told = ""
    if any(point["kl"] is not None for point in table):
        head.append("KL")
        body = [[*cells, _divergence(point)] for cells, point in zip(body, table, strict=True)]
        told = (
            " KL: mean KL(dense to compressed) of the next token in nats ± its standard error over the windows; it "
            "counts disagreement and has no direction."
        )
    return [
        f"Perplexity over {first['windows']} windows, mean over seeds; lower is better, {first['vocabulary']} (the "
        "vocabulary) is guessing. Zeros: among the weights of the decoder blocks; quantization rounds some to "
        "zero too. Parameters: of both factors of a low rank, as a share of the weights. Loss - dense: nats per token "
        "± its standard error over the windows, each compared with the dense model's loss on it; the spread over seeds "
        f"is not in it. Seeds: where a calibration text is drawn.{told}",
        "",
        *markdown(head, body),
    ]


def _divergence(point: Row) -> str:
    if point["kl"] is None:
        return ""
    return f"{point['kl']:.4g}" + ("" if point["kl_stderr"] is None else f" ± {point['kl_stderr']:.2g}")


def _percent_or_empty(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def _seed_range(point: Row) -> str:
    if len(point["seeds"]) == 1:
        return ""
    return f"{point['lowest_perplexity']:.4g} to {point['highest_perplexity']:.4g}"


def _loss_difference(point: Row) -> str:
    if point["compression"] == "dense" or point["loss_difference"] is None:
        return ""
    error = point["loss_difference_stderr"]
    return f"{point['loss_difference']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
