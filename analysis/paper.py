"""The paper's printed numbers and claims, ours beside them, and in words whether they agree.

The paper's models are larger than most that this is run with: signs and orders are compared, values are set side by
side.
"""

import itertools

from analysis import counterparts, estimators
from analysis.paper_numbers import What, printed
from analysis.tables import Row, task_name
from analysis.uncertainty.trends import CANNOT_TELL, Trends
from analysis.wording import markdown

TITLE = {
    What.SPEARMAN: "Spearman of compression with loss",
    What.DIFFICULTY: "difficulty, (human - dense) / human",
    What.SCORE: "dense score",
    What.DROP: "normalized drop",
    What.FREEZING: "dense with freezing minus dense",
    What.TRANSFER: "transfers against each other",
    What.ORDER: "each harder level falls faster",
    What.BARRIER: "barrier of one task against another's",
    What.LEVELS: "number of levels",
}
CONTRAST = ("magnitude", "gptq")
# A claim of no loss is not borne out by an interval that allows more than this, as a fraction.
LARGEST_NO_LOSS = 0.05
ALPHA = 0.05

SAME_SIGN, OTHER_SIGN = "same sign", "other sign"
NO_LOSS, LOSS = "no loss seen", "ours loses"
SAME, OTHER = "same", "other"
NOT_TOLD = "ours cannot tell"

COMPARISON_COLUMNS = (
    "place", "what", "setting", "task", "item", "strength", "paper_model", "paper_compression", "paper_value",
    "our_model", "our_compression", "our_value", "our_low", "our_high", "p_value", "holm_p", "verdict", "note",
)  # fmt: skip
GROUP_COLUMNS = (
    "place", "what", "setting", "task", "paper_model", "paper_compression", "our_model", "our_compression",
)  # fmt: skip
VERDICT_COLUMNS = (*GROUP_COLUMNS, "agreement", "text")


def compare(ours: list[Row]) -> list[Row]:
    """One row of COMPARISON_COLUMNS for each of the paper's numbers and each of ours that stands beside it.

    Args:
        ours: rows of counterparts.OUR_COLUMNS; those without a counterpart are passed over.
    Returns:
        In the paper's order. verdict says of a correlation or difficulty whether the sign is the same, of a claim of no
        loss whether ours loses or its interval rules out more than LARGEST_NO_LOSS, of an order whether our verdict is
        the same, of a score or count how ours differs; NOT_TOLD where ours is missing or allows both. Signs and losses
        are told where holm_p, corrected over the rows of one table or claim, model and method, is at most ALPHA.
    """
    found = []
    for paper, own in itertools.product(printed(), ours):
        same = all(own[name] == paper[name] for name in ("what", "setting", "task", "item", "compression"))
        if same and paper["strength"] in (None, own["strength"]):
            found.append(_beside(paper, own))
    groups: dict[tuple, list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in GROUP_COLUMNS), []).append(row)
    for members in groups.values():
        for row, corrected in zip(members, estimators.holm([row["p_value"] for row in members]), strict=True):
            row["holm_p"] = corrected
            row["verdict"] = _verdict(row)
    return found


def _beside(paper: Row, own: Row) -> Row:
    shown = ("place", "what", "setting", "task", "strength")
    return {
        **{name: paper[name] for name in shown},
        "item": own["where"] or own["item"],
        **{f"paper_{name}": paper[name] for name in ("model", "compression", "value")},
        "our_model": own["model"],
        "our_compression": own["method"],
        **{f"our_{name}": own[name] for name in ("value", "low", "high")},
        **{name: own[name] for name in ("p_value", "note")},
    }


def _verdict(row: Row) -> str:
    what, paper, is_told = row["what"], row["paper_value"], row["holm_p"] is not None and row["holm_p"] <= ALPHA
    value, low, high = row["our_value"], row["our_low"], row["our_high"]
    if value is None or value == CANNOT_TELL:
        return NOT_TOLD
    if what in (What.TRANSFER, What.ORDER, What.BARRIER, What.LEVELS):
        return SAME if value == paper else OTHER
    if what == What.SCORE:
        if low is not None and low <= paper <= high:
            return "alike"
        return "ours higher" if value > paper else "ours lower"
    if what in (What.DROP, What.FREEZING):
        if is_told and value < 0:
            return LOSS
        return NO_LOSS if low is not None and low > -LARGEST_NO_LOSS else NOT_TOLD
    if value == 0 or not is_told:
        return NOT_TOLD
    return SAME_SIGN if value * paper > 0 else OTHER_SIGN


def verdicts(comparison: list[Row]) -> list[Row]:
    """One row of VERDICT_COLUMNS for each table or claim of the paper and each model and method of ours.

    Args:
        comparison: what `compare` returned.
    Returns:
        agreement in a few words and text as a sentence. Numbers whose value depends on the model alone (scores, counts)
        have no verdict. What agrees or not is said where it was tested; text also counts the pairs of levels whose
        estimates are in the paper's order, of those that differ in both. A table of two compressions has a further row
        for which of them correlates more closely, told where intervals lie apart.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in comparison:
        groups.setdefault(tuple(row[name] for name in GROUP_COLUMNS), []).append(row)
    judged = {
        **dict.fromkeys((What.SPEARMAN, What.DIFFICULTY), _signs),
        **dict.fromkeys((What.DROP, What.FREEZING), _losses),
        **dict.fromkeys((What.TRANSFER, What.ORDER, What.BARRIER), _claims),
    }
    found = []
    for key, members in groups.items():
        row = dict(zip(GROUP_COLUMNS, key, strict=True))
        if row["what"] in judged:
            agreement, text = judged[row["what"]](members)
            found.append({**row, "agreement": agreement, "text": f"{_heading(row)}: {agreement}; {text}."})
    return found + _contrasts(groups)


def _heading(row: Row) -> str:
    method = "" if row["paper_compression"] == "dense" else f", {row['our_compression']}"
    place = f"{row['place'][0].upper()}{row['place'][1:]}"
    beside = f"{row['our_model']} beside {row['paper_model']}"
    return f"{place}, {TITLE[row['what']]}, setting {row['setting']}{method}, {beside}"


def _signs(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members if row["verdict"] != NOT_TOLD]
    known = [row for row in members if row["our_value"] is not None]
    held, total = pairs_in_order([row["paper_value"] for row in known], [row["our_value"] for row in known])
    text = f"the sign is the same in {told.count(SAME_SIGN)} of {len(members)}"
    text += (
        f"; of the estimates, {held} of {total} pairs are in its order" if total else "; no pair has an order in both"
    )
    return OTHER_SIGN if OTHER_SIGN in told else SAME_SIGN if told else NOT_TOLD, text


def pairs_in_order(one: list[float], other: list[float]) -> tuple[int, int]:
    """How many pairs of places have both values in the same order, and how many have an order in both lists."""
    pairs = itertools.combinations(zip(one, other, strict=True), 2)
    signs = [(first[0] - second[0]) * (first[1] - second[1]) for first, second in pairs]
    return sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs)


def _losses(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members]
    items = ", ".join(f"{_item(row)} {_value(row, row['our_value'])}" for row in members)
    agreement = LOSS if LOSS in told else NO_LOSS if set(told) == {NO_LOSS} else NOT_TOLD
    return agreement, f"the paper sees none, ours is sure of a loss in {told.count(LOSS)} of {len(told)} ({items})"


def _claims(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members]
    agreement = OTHER if OTHER in told else SAME if SAME in told else NOT_TOLD
    paper = ", ".join(dict.fromkeys(row["paper_value"] for row in members))
    counts = ", ".join(f"{value} in {told.count(value)}" for value in (SAME, OTHER, NOT_TOLD) if value in told)
    return agreement, f"the paper says {paper}; ours: {counts} of {len(told)}"


def _contrasts(groups: dict[tuple, list[Row]]) -> list[Row]:
    """Of a table with both compressions of CONTRAST, in how many levels the first surely correlates more closely."""
    found = []
    for (key, members), (other_key, others) in itertools.product(groups.items(), repeat=2):
        row, other = (dict(zip(GROUP_COLUMNS, each, strict=True)) for each in (key, other_key))
        same = ("place", "what", "setting", "paper_model", "our_model")
        if row["what"] != What.SPEARMAN or any(row[name] != other[name] for name in same):
            continue
        if (row["paper_compression"], other["paper_compression"]) != CONTRAST:
            continue
        beside = {each["item"]: each for each in others}
        pairs = [(each, beside[each["item"]]) for each in members if each["item"] in beside]
        paper = [one["paper_value"] > two["paper_value"] for one, two in pairs]
        signs = [_surely_above(one, two) - _surely_above(two, one) for one, two in pairs]
        told = [sign == (1 if above else -1) for sign, above in zip(signs, paper, strict=True) if sign]
        agreement = NOT_TOLD if not told else SAME if all(told) else OTHER
        named = {name: f"{row[name]} against {other[name]}" for name in ("paper_compression", "our_compression")}
        text = (
            f"the first is surely closer in {signs.count(1)}, surely less close in {signs.count(-1)} of {len(pairs)} "
        )
        text += f"levels, in the paper closer in {sum(paper)} of {len(paper)}"
        row |= named
        found.append({**row, "agreement": agreement, "text": f"{_heading(row)}: {agreement}; {text}."})
    return found


def _surely_above(one: Row, other: Row) -> bool:
    """Whether the interval of one lies wholly above that of the other, which asks for more than a test of 5 % does."""
    return None not in (one["our_low"], other["our_high"]) and one["our_low"] > other["our_high"]


def comparison(rows: list[Row], found: Trends | None = None) -> list[Row]:
    """Ours beside the paper's, rows of COMPARISON_COLUMNS; empty where the tree holds nothing that the paper prints.

    Args:
        rows: what results.read_runs returned.
        found: as in counterparts.our_numbers.
    """
    return compare(counterparts.our_numbers(rows, found))


def summary_lines(compared: list[Row]) -> list[str]:
    """The verdicts and the numbers behind them in Markdown; empty without a comparison."""
    if not compared:
        return []
    head = ["where", "what", "item", "paper", "paper's model", "ours", "our model", "our compression", "verdict"]
    body = [
        [
            row["place"], TITLE[row["what"]], _item(row), _value(row, row["paper_value"]), row["paper_model"],
            _ours(row), row["our_model"], row["our_compression"],
            row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
        ]
        for row in compared
    ]  # fmt: skip
    sentences = [f"- {row['text']}" for row in verdicts(compared)]
    return [*sentences, *([""] if sentences else []), *markdown(head, body)]


def _item(row: Row) -> str:
    strength = "" if row["strength"] is None else f" at {row['strength']:g}"
    return f"{task_name(row['item'])}{strength}"


def _ours(row: Row) -> str:
    text = _value(row, row["our_value"])
    if row["our_low"] is None or row["our_high"] is None:
        return text
    return f"{text} [{_value(row, row['our_low'])}, {_value(row, row['our_high'])}]"


def _value(row: Row, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if row["what"] != What.LEVELS else f"{value}"
