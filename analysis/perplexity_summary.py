"""What summary.md says of perplexities: a line per point, and what to beware of."""

from collections import Counter

from analysis.tables import Row
from analysis.wording import compression_name, markdown, misses_sparsity, strength_text, uneven_seeds

# Below this the windows drawn move a perplexity by more than most compressions do.
FEW_WINDOWS = 100


def section(table: list[Row]) -> list[str]:
    """The lines of one of tables.perplexity_sets; `table` is its perplexity_table."""
    first = table[0]
    head = ["compression", "strength", "zeros", "parameters", "perplexity", "seeds' range", "loss - dense", "seeds"]
    body = [
        [
            compression_name(point), strength_text(point), _share(point["measured_sparsity"]),
            _share(point["parameter_ratio"]), f"{point['mean_perplexity']:.4g}", _seed_range(point),
            _difference(point), " ".join(map(str, point["seeds"])) if point["calibrated"] else "",
        ]
        for point in table
    ]  # fmt: skip
    return [
        f"Perplexity over {first['windows']} windows, mean over seeds; lower is better, {first['vocabulary']} (the "
        "vocabulary) is knowing nothing. Zeros: among the weights of the decoder blocks; quantization rounds some to "
        "zero too. Parameters: of both factors of a low rank, as a share of the weights. Loss - dense: nats per token "
        "± its standard error over the windows, each compared with the dense model's loss on it; the spread over seeds "
        "is not in it. Seeds: where a calibration text is drawn.",
        "",
        *markdown(head, body),
    ]


def cautions(table: list[Row]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to."""
    dense, windows = table[0], table[0]["windows"]
    found = []
    if dense["compression"] != "dense":
        found.append("NO DENSE RUN, so no difference is defined.")
    else:
        unpaired = sum(point["loss_difference"] is None for point in table)
        if unpaired:
            found.append(f"{unpaired} of {len(table)} points lack losses on the windows of the dense run.")
    if windows < FEW_WINDOWS:
        error = (
            ""
            if dense["mean_stderr"] is None
            else f" ({compression_name(dense).lower()}: {dense['mean_perplexity']:.4g} ± {dense['mean_stderr']:.2g})"
        )
        found.append(
            f"The text has {windows} windows{error}: others give other perplexities; compare within this table alone."
        )
    seeds = Counter(point["seeds"] for point in table if point["calibrated"])
    single = sum(count for own, count in seeds.items() if len(own) == 1)
    if single:
        found.append(f"{single} of {seeds.total()} calibrated points rest on one calibration sample: no band.")
    if len(seeds) > 1:
        found.append(f"The calibrated points {uneven_seeds(seeds)}")
    for point in table:
        where = f"{compression_name(point)} at {strength_text(point)}"
        if point["strength_kind"] in ("sparsity", "nm") and misses_sparsity(point):
            found.append(
                f"{where}: the measured sparsity is {point['measured_sparsity']:.3f}, "
                f"not {point['requested_sparsity']:.3f}."
            )
        if point["mean_perplexity"] > point["vocabulary"]:
            found.append(
                f"{where}: a perplexity of {point['mean_perplexity']:.4g} is above the vocabulary of "
                f"{point['vocabulary']}: worse than knowing nothing, so by how much means nothing."
            )
    return found


def _share(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def _seed_range(point: Row) -> str:
    if len(point["seeds"]) == 1:
        return ""
    return f"{point['lowest_perplexity']:.4g} to {point['highest_perplexity']:.4g}"


def _difference(point: Row) -> str:
    if point["compression"] == "dense" or point["loss_difference"] is None:
        return ""
    error = point["loss_difference_stderr"]
    return f"{point['loss_difference']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
