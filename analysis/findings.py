"""One sentence for each figure: what it shows, and how sure that is.

A figure with verdicts (analysis.verdicts, analysis.contrasts) is told by these. One without is told by its largest
drop, with its interval.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from analysis import flips
from analysis.contrasts import MEAN, pair_sentences
from analysis.curves import BYTES, SIZES
from analysis.estimators import STRAIGHT_LINE
from analysis.names import KIND_NAME, compression_name, percent, strength_text, task_name
from analysis.replicates import is_of_category
from analysis.style import TRANSFER_STYLE
from analysis.table import Row
from analysis.verdicts import CANNOT_TELL, CORRECTED, MONOTONIC, NOT_MONOTONIC, RAW, Trends

NAMED_CURVES = 3  # of those that share a verdict
VERDICTS = {
    MONOTONIC: "that each harder level falls faster",
    NOT_MONOTONIC: "that some harder level falls slower than an easier one",
    CANNOT_TELL: "nothing sure of the order of their levels",
}


def of_levels(trends: Trends, table: Sequence[Row]) -> str:
    """On a setting without training: what its curves say of the order of the levels, and its largest drop."""
    return _joined(_order(trends.orders, compression_by_kind), _largest_drop(table, _level_place))


def of_tuning(trends: Trends, table: Sequence[Row]) -> str:
    """On amounts of training data: what the curves of tasks with several say of their order, and the largest drop."""
    orders, points = ([row for row in rows if not _is_of_category(row)] for rows in (trends.orders, trends.points))
    amounts: dict[str, set[float]] = {}
    for point in table:
        amounts.setdefault(point["task"], set()).add(point["data_fraction"])
    orders = [row for row in orders if len(amounts.get(row["task"], ())) != 1]
    largest = _largest_drop(
        points, lambda row: f"{task_name(row['task'])}, {row['level']} of the data, {strength_text(row)}"
    )
    return _joined(_order(orders, _task_by_kind), largest or _largest_drop(table, _tuning_place))


def of_categories(trends: Trends, table: Sequence[Row]) -> str:
    """On easy and hard tasks: whether the harder one of each category falls faster, and the largest drop."""
    orders, points = (list(filter(_is_of_category, rows)) for rows in (trends.orders, trends.points))
    largest = _largest_drop(points, lambda row: f"{row['level']}, {strength_text(row)}")
    return _joined(_order(orders, _task_by_kind), largest or _largest_drop(table, _tuning_place))


def _is_of_category(row: Row) -> bool:
    return is_of_category(row["setting"], row["task"])


def of_transfers(differences: Sequence[Row]) -> str:
    """On the four transfers: in how many comparisons one is surely above or below another."""
    pairs = [sentence.rstrip(".") for sentence in pair_sentences(differences)]
    return _joined("At 95 % confidence corrected for their number: " + "; ".join(pairs) if pairs else "")


def of_sizes(points: Sequence[Row], size: str = BYTES) -> str:
    """On sizes: which compression to at most half of the dense size loses least at the hardest level that is known.

    Args:
        points: a curves.size_table by this size.
    """
    known = [row for row in _with_drops(points) if row["difficulty"] is not None]
    small = [row for row in known if row[SIZES[size]] <= 0.5]
    if not small:
        return _joined(_largest_drop(points, _level_place))
    hardest = [row for row in small if row["level"] == small[-1]["level"]]
    best = max(hardest, key=lambda row: row["normalized_drop"])
    which = f"with at most half of the dense {'bytes' if size == BYTES else 'size'}"
    if len(hardest) == 1:
        return _joined(f"The one point {which} at {best['level']} is {_compressed(best)}: {_drop(best)}")
    return _joined(
        f"Of {len(hardest)} points {which}, {_compressed(best)} loses least at {best['level']}: {_drop(best)}"
    )


def of_flips(title: str, rows: Sequence[Row]) -> str:
    """On flips of one setting and model: where a direction outweighs, and most flips where the score may stand still.

    Args:
        rows: a flips.flip_table.
    """
    known = [row for row in rows if row["verdict"] is not None]
    if not known:
        return ""
    counts = Counter(row["verdict"] for row in known)
    lost, gained = (counts[flips.VERDICTS[is_loss]] for is_loss in (True, False))
    told = (
        f"{title}: of {len(known)} points, flips from right to wrong surely outweigh in {lost}, those from wrong to "
        f"right in {gained}"
    )
    still = [row for row in known if None not in _bounds(row) and _bounds(row)[0] <= 0 <= _bounds(row)[1]]
    if not still:
        return _joined(told)
    most = max(still, key=lambda row: row["flips"])
    bounds = most["flips_low"], most["flips_high"]
    return _joined(
        told,
        f"of those whose score may stand still, most flip at {_level_place(most)}: "
        f"{_interval(most['flips'], *bounds, sign='')} of the items, while the score changes by "
        f"{100 * most['score_change']:+.1f} points",
    )


def _transferred(row: Row) -> str:
    return f"{strength_text(row)}, {TRANSFER_STYLE[row['transfer']]['label'].lower()}"


def _bounds(row: Row) -> tuple[float | None, float | None]:
    return row["score_change_low"], row["score_change_high"]


def of_domains(table: Sequence[Row]) -> str:
    """On several domains or pairs of languages: the largest drop."""
    return _joined(_largest_drop(table, lambda row: f"{row['level']} ({row['condition']}), {_transferred(row)}"))


def of_minorities(effects: Sequence[Row]) -> str:
    """On minorities: the effect at the strongest compression, as a mean over domains where there are several."""
    known = [row for row in effects if row["corrected_effect"] is not None]
    shown = [row for row in known if row["level"] == MEAN] or known
    if not shown:
        return ""
    row = max(shown, key=lambda row: row["requested_sparsity"])
    of = "the mean over domains" if row["level"] == MEAN else row["level"]
    low, high = row["corrected_effect_low"], row["corrected_effect_high"]
    return _joined(
        f"At {_transferred(row)}, being the minority changes the drop of {of} by "
        f"{_interval(row['corrected_effect'], low, high)} of the dense score above chance: {_more_or_less(low, high)}"
    )


def of_lines(rows: Sequence[Row]) -> str:
    """On lines between models: the highest barrier in validation error, as a share of what dense learned."""
    wanted = "validation", "error", STRAIGHT_LINE
    own = [row for row in rows if (row["split"], row["quantity"], row["definition"]) == wanted]
    known = [row for row in own if row["share_of_learned"] is not None]
    if not known:
        return ""
    row = max(known, key=lambda row: row["share_of_learned"])
    strength = "" if row["strength"] is None else f", {strength_text(row)}"
    height = _interval(row["share_of_learned"], row["share_low"], row["share_high"], sign="")
    return _joined(
        f"The highest of {len(known)} barriers is that of {task_name(row['task'])}, {row['pair']}{strength}: {height} "
        "of what the dense model has learned"
    )


def of_perplexity(table: Sequence[Row]) -> str:
    """On perplexity: the compression that raises it most, and by how much."""
    dense = next((row["mean_perplexity"] for row in table if row["compression"] == "dense"), None)
    worst = max((row for row in table if row["strength_kind"] is not None), key=lambda row: row["mean_perplexity"])
    told = f"Perplexity is highest under {_compressed(worst)}: {worst['mean_perplexity']:.4g}"
    if dense is not None:
        told += f", dense {dense:.4g}"
    if worst["loss_difference"] is not None:
        error = worst["loss_difference_stderr"]
        told += (
            f"; the loss is {worst['loss_difference']:+.3f}{'' if error is None else f' ± {error:.3f}'} nats a token"
        )
    return _joined(told)


def compression_by_kind(row: Row) -> str:
    """Wanda by unstructured sparsity."""
    return f"{compression_name(row)} by {KIND_NAME.get(row['strength_kind'], row['strength_kind'])}"


def _task_by_kind(row: Row) -> str:
    name = row["task"].capitalize() if _is_of_category(row) else task_name(row["task"])
    return f"{name} by {KIND_NAME.get(row['strength_kind'], row['strength_kind'])}"


def _order(orders: Iterable[Row], name: Callable[[Row], str]) -> str:
    """What the raw slopes say of the order of levels, counted over curves where there are several; "" without any."""
    orders = list(orders)
    own = [row for row in orders if row["measure"] == RAW]
    if not own:
        return ""
    corrected = [row["verdict"] for row in orders if row["measure"] == CORRECTED]
    if len(own) == 1:
        more = f"; slopes corrected for chance: {corrected[0]}" if corrected else ""
        return f"{name(own[0])}, raw slopes: {own[0]['text'].rstrip('.')}{more}"
    told = []
    for verdict, words in VERDICTS.items():
        names = [name(row) for row in own if row["verdict"] == verdict]
        if names:
            more = "" if len(names) <= NAMED_CURVES else f"; and {len(names) - NAMED_CURVES} more"
            listed = "" if verdict == CANNOT_TELL else f" ({'; '.join(names[:NAMED_CURVES])}{more})"
            told.append(f"{len(names)} say{'s' if len(names) == 1 else ''} {words}{listed}")
    more = ""
    if corrected:
        more = f"; corrected for chance, {corrected.count(MONOTONIC)} of {len(corrected)} are {MONOTONIC}"
    sure = "one-sided, with 95 % confidence corrected for their number"
    return f"Of the raw slopes of {len(own)} curves, {sure}, {', '.join(told)}{more}"


def _with_drops(points: Iterable[Row]) -> list[Row]:
    """The compressed points whose drop means something: of levels that are judged and that the dense model learned."""
    return [
        row for row in points
        if row.get("normalized_drop") is not None and row["strength"] is not None
        and row.get("dense_above_chance") is not False and not row.get("reference_only")
    ]  # fmt: skip


def _largest_drop(points: Iterable[Row], place: Callable[[Row], str]) -> str:
    """A clause about the largest drop of the compressed points, without those whose dense model is at chance."""
    drops = _with_drops(points)
    if not drops:
        return ""
    row = min(drops, key=lambda row: row["normalized_drop"])
    return f"the largest drop is that of {place(row)}: {_drop(row)}"


def _drop(row: Row) -> str:
    low, high = row.get("drop_low"), row.get("drop_high")
    told = f"{_interval(row['normalized_drop'], low, high)} of the dense score"
    if low is None or high is None:
        return f"{told}, without an interval"
    return told if high < 0 or low > 0 else f"{told}, which may be none"


def _interval(value: float, low: float | None, high: float | None, sign: str = "+") -> str:
    """-12.0 % [-15.0, -9.0]."""
    bounds = "" if low is None or high is None else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * value:{sign}.1f} %{bounds}"


def _more_or_less(low: float | None, high: float | None) -> str:
    if low is None or high is None or low <= 0 <= high:
        return "whether it loses more cannot be told"
    return "it loses more" if high < 0 else "it loses less"


def _level_place(row: Row) -> str:
    return f"{row['level']} by {_compressed(row)}"


def _tuning_place(row: Row) -> str:
    return f"{task_name(row['task'])}, {percent(row['data_fraction'])} of the data, {strength_text(row)}"


def _compressed(row: Row) -> str:
    return f"{compression_name(row)}, {strength_text(row)}"


def _joined(*clauses: str) -> str:
    """The clauses as one sentence, empty ones left out."""
    told = "; ".join(filter(None, clauses))
    return f"{re.sub('^the ', 'The ', told)}." if told else ""
