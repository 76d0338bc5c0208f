"""How things are written: names of models, tasks and strengths in figures and files, numbers and tables in Markdown."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from analysis.estimators import MIN_STRENGTHS
from analysis.sizes import PAIRS, parts_of

# In the order of panels and legends.
COMPRESSIONS = {
    "dense": "Dense", "magnitude": "Magnitude", "wanda": "Wanda", "ria": "RIA", "sparsegpt": "SparseGPT",
    "rtn": "Round to nearest", "gptq": "GPTQ", "low_rank": "Low rank",
}  # fmt: skip
CHECKPOINT = "checkpoint:"  # before the name of a model that was compressed elsewhere
PART, LAYERS = ", ", "layers "  # between the parts of a full name, and before a choice of layers
KIND_NAME = {
    "sparsity": "unstructured sparsity", "nm": "N:M sparsity", "bits": "quantization", "rank": "low rank",
    "sparsity+bits": "unstructured sparsity and quantization", "nm+bits": "N:M sparsity and quantization",
    "bytes": "another tool",
}  # fmt: skip
TASK_NAME = {
    "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2",
    "stsb": "STS-B", "wnli": "WNLI", "commonsense_qa": "CommonsenseQA", "winogrande": "WinoGrande",
    "mawps": "MAWPS", "svamp": "SVAMP",
}  # fmt: skip
SETTING_TITLE = {
    2: "Setting 2: number of options to choose from",
    3: "Setting 3: share of the context that is given",
    4: "Setting 4: number of worked examples",
    5: "Setting 5: gap to human performance",
    6: "Setting 6: factoid questions against multiple choice",
    "multi_domain": "Multi-domain learning",
    "translation": "Translation",
}
YES_NO = {True: "yes", False: "**no**", None: ""}
ORDER = {True: "yes", False: "no", None: "cannot be told"}
OF_TEXTS = ("perplexity", "recovery")  # settings whose task and level are a text
LONGEST_FILE_NAME = 60  # letters of a model, task or text in it


def task_name(task: str) -> str:
    """The task as its authors write it."""
    return TASK_NAME.get(task, task)


def set_title(setting: int | str, task: str) -> str:
    """The setting in words."""
    return SETTING_TITLE.get(setting) or f"Own task: {task}"


def model_name(model: str) -> str:
    """Last part of a hub id or path; of roberta-base/model, the folder above."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def text_name(text: str) -> str:
    """A text's name, or the last part of its path without the endings that say how it is stored."""
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"(?<=.)(\.(txt|jsonl|parquet|gz))+$", "", last)


def model_names(models: Iterable[str]) -> dict[str, str]:
    """The model_name of each model, with a hash where several models would have the same."""
    return _distinct(models, model_name)


def text_names(texts: Iterable[str]) -> dict[str, str]:
    """The text_name of each text, with a hash where several texts would have the same."""
    return _distinct(texts, text_name)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """The names fit for file names on any system, with a hash where letters are lost or names would be the same."""
    return _distinct(names, _fit_for_files)


def with_short_names(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of runs with the names of figures instead of hub ids and paths of models and texts, no two alike."""
    found = [
        {name: row[name] for name in ("task", "level") if row.get(name)} if row["setting"] in OF_TEXTS else {}
        for row in rows
    ]
    texts = text_names({text for own in found for text in own.values()})
    models = model_names({row["model"] for row in rows})
    return [
        {**row, "model": models[row["model"]], **{name: texts[text] for name, text in own.items()}}
        for row, own in zip(rows, found, strict=True)
    ]


def _fit_for_files(name: str) -> str:
    fit = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    loses = len(fit) > LONGEST_FILE_NAME or any(letter.isalnum() and not letter.isascii() for letter in name)
    return f"{fit[:LONGEST_FILE_NAME].rstrip('-')}-{_short_hash(name)}" if loses else fit


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def _distinct(originals: Iterable[str], shorten: Callable[[str], str]) -> dict[str, str]:
    names = {original: shorten(original) for original in originals}
    counts = Counter(names.values())
    return {
        original: name if counts[name] == 1 else f"{name}-{_short_hash(original)}" for original, name in names.items()
    }


def percent(fraction: float) -> str:
    """0.25 -> "25 %"."""
    return f"{100 * fraction:.4g} %"


def with_full_names(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the allocation of sparsity and the choice of layers in the name of the compression.

    So runs that differ in these are runs of two methods: "wanda", "wanda, owl", "magnitude, layers 0-3".
    """
    return [
        {**row, "compression": full_name(row["compression"], row.get("allocation"), row.get("layers"))}
        if row.get("allocation") or row.get("layers")
        else row
        for row in rows
    ]


def full_name(compression: str, allocation: str | None, layers: str | None) -> str:
    """The compression's name with an allocation and layers; one that has them stays as it is."""
    if PART in compression:
        return compression
    parts = [compression, *([allocation] if allocation else []), *([f"{LAYERS}{layers}"] if layers else [])]
    return PART.join(parts)


def base_name(compression: str) -> str:
    """Of "wanda, owl", the method: "wanda"; of a checkpoint its whole name."""
    return compression if compression.startswith(CHECKPOINT) else compression.partition(PART)[0]


def method_name(compression: str) -> str:
    """Wanda; SparseGPT + GPTQ; Wanda, OWL; Magnitude, layers 0-3.

    A method that users added, and a model that was compressed elsewhere, go by their own names.
    """
    if compression.startswith(CHECKPOINT):
        return compression.removeprefix(CHECKPOINT)
    base, *parts = compression.split(PART)
    named = COMPRESSIONS.get(base) or " + ".join(COMPRESSIONS.get(name, name) for name in base.split("+"))
    shown = [re.sub(r"^owl\b", "OWL", part.replace("_", " ").replace("owl ", "owl, ")) for part in parts]
    return PART.join([named, *shown])


def compression_name(point: Mapping[str, Any]) -> str:
    """Wanda; Wanda, OWL; Magnitude (threshold: layer); the name of a checkpoint."""
    name = method_name(point["compression"])
    return name if point["magnitude_scope"] is None else f"{name} (threshold: {point['magnitude_scope']})"


def strength_text(point: Mapping[str, Any]) -> str:
    """50 %, 2:4, 4 bits, rank 64, 50 % and 4 bits, 27.3 % of the bytes; empty for a dense model."""
    kind, strength = point["strength_kind"], point["strength"]
    if kind in PAIRS:
        return " and ".join(map(strength_text, parts_of(point)))
    if kind == "sparsity":
        return percent(strength)
    if kind == "bytes":
        return f"{100 * strength:.3g} % of the bytes"
    return {None: "", "nm": f"{strength}", "bits": f"{strength} bits", "rank": f"rank {strength}"}[kind]


def count_span(counts: Iterable[int]) -> str:
    """(3, 2, 3) -> "2 to 3"; a single number where all are the same."""
    found = sorted(set(counts))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def number(value: float | None) -> str:
    """Three decimals; empty for None."""
    return "" if value is None else f"{value:.3f}"


def rounded(count: int) -> str:
    """The number with two digits; it is not more exact than that."""
    return "more than a million" if count > 1_000_000 else f"{float(f'{count:.2g}'):,.0f}"


def p_text(p_value: float) -> str:
    """p = 0.012, or p < 0.001."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def with_bounds(value: float | None, low: float | None, high: float | None) -> str:
    """-0.345 [-0.844, 0.188]; an unknown bound is left empty, and the brackets where neither is known."""
    return number(value) if low is None and high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def spearman_text(level: Mapping[str, Any]) -> str:
    """A curve's Spearman correlation, or why it has none.

    Args:
        level: with spearman and strengths, such as curves.curve_statistics.
    """
    if level["spearman"] is not None:
        return number(level["spearman"])
    count = len(level["strengths"])
    if count < MIN_STRENGTHS:
        return f"undefined: {count} point{'s' if count > 1 else ''}"
    return "undefined: the same score everywhere"


def markdown(head: list[str], body: list[list]) -> list[str]:
    """The lines of a Markdown table; bars, line breaks and "<" in cells are escaped."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _cell(value: object) -> str:
    return without_tags(" ".join(str(value).splitlines()).replace("|", "\\|"))


def without_tags(line: str) -> str:
    """A line of Markdown with every "<" outside `code` escaped, so that it begins no tag of HTML."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if place % 2 else re.sub(r"(?<!\\)<", r"\<", piece) for place, piece in enumerate(pieces))
