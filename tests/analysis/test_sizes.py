"""Sizes of two compressions in a row, by hand: the mask, the kept weights' bits, and scales and zero points."""

import pytest
from matplotlib.text import Text
from synthetic_runs import level_run, write_tree

from analysis import style
from analysis.names import compression_name, strength_text
from analysis.plots import levels
from analysis.sizes import amount, bytes_fraction, bytes_fraction_of_run, parts_of, plain_fraction
from analysis.table import compression_order, level_table
from harness import run_folder

GROUPS = {"group_size": 128, "symmetric": False}


def pair(strength: str, sparsity: float, kind: str = "sparsity+bits", **known) -> dict:
    return {"strength_kind": kind, "strength": strength, "requested_sparsity": sparsity, **known}


@pytest.mark.parametrize(
    ("point", "arguments", "bits"),
    [
        # a bitmap of 1 bit, half of the weights at 4 bits, and a scale of 16 and a zero of 4 bits for 128 weights
        (pair("0.5+4", 0.5), GROUPS, 1 + 0.5 * 4 + 20 / 128),
        (pair("0.5+4", 0.5), {"group_size": 32, "symmetric": True}, 1 + 0.5 * 4 + 16 / 32),
        # rounding makes zeros too, which are kept weights that are stored
        (pair("0.5+4", 0.5, measured_sparsity=0.9), GROUPS, 1 + 0.5 * 4 + 20 / 128),
        # 2 bits for each of the 2 kept of 4; of 7 of 8 the bitmap is smaller
        (pair("2:4+4", 0.5, "nm+bits"), GROUPS, 0.5 * 2 + 0.5 * 4 + 20 / 128),
        (pair("7:8+8", 0.125, "nm+bits"), GROUPS, 1 + 0.875 * 8 + 24 / 128),
        (pair("1:4+8", 0.75, "nm+bits"), GROUPS, 0.25 * 2 + 0.25 * 8 + 24 / 128),
        # at 2 bits the integers of all weights are smaller than a bitmap and those of 80 %
        (pair("0.2+2", 0.2), GROUPS, 2 + 18 / 128),
        (pair("0+4", 0.0), GROUPS, 4 + 20 / 128),
    ],
)
def test_bytes_are_counted_for_both(point: dict, arguments: dict, bits: float):
    assert bytes_fraction(point, arguments) == pytest.approx(bits / 16, abs=1e-12)


def test_a_scale_per_row_is_not_known_from_the_run():
    assert bytes_fraction(pair("0.5+4", 0.5), {"group_size": -1, "symmetric": False}) is None
    assert bytes_fraction(pair("0.5+4", 0.5)) is None


def test_what_both_remove_together():
    """Half of the weights at a quarter of their bits: an eighth is left."""
    for point in (pair("0.5+4", 0.5, measured_sparsity=0.7), pair("2:4+4", 0.5, "nm+bits")):
        assert plain_fraction(point) == 0.125 and amount(point) == 0.875
        assert [part["strength_kind"] for part in parts_of(point)] == [point["strength_kind"].partition("+")[0], "bits"]
    assert parts_of(pair("0.5+4", 0.5))[0]["strength"] == 0.5
    weak, strong = pair("0.5+8", 0.5), pair("0.25+4", 0.25)
    assert compression_order(weak) < compression_order(strong) < compression_order(pair("4:8+4", 0.5, "nm+bits"))
    assert compression_order(pair("4:8+4", 0.5, "nm+bits")) < compression_order(pair("2:4+4", 0.5, "nm+bits"))


def test_pairs_are_named_by_both():
    point = {**pair("0.5+4", 0.5), "compression": "sparsegpt+gptq", "magnitude_scope": None}
    assert (compression_name(point), strength_text(point)) == ("SparseGPT + GPTQ", "50 % and 4 bits")
    assert strength_text(pair("2:4+8", 0.5, "nm+bits")) == "2:4 and 8 bits"
    assert compression_name({**point, "compression": "mine+rtn"}) == "mine + Round to nearest"


def test_a_figure_has_a_part_for_every_kind_of_strength(tmp_path):
    strengths = {"wanda": 0.5, "ria": "2:4", "gptq": ("bits", 4), "low_rank": ("rank", 8)}
    runs = [level_run(), *(level_run(name, strength, parameter_ratio=0.4) for name, strength in strengths.items())]
    for kind, strength in (("sparsity+bits", "0.5+4"), ("sparsity+bits", "0.5+8"), ("nm+bits", "2:4+4")):
        runs.append({**level_run("wanda+rtn", "2:4"), "strength_kind": kind, "strength": strength})
    table = level_table(run_folder.read_runs(write_tree(tmp_path, *runs, **GROUPS)))
    assert [row["strength"] for row in table if row["strength_kind"] == "sparsity+bits"][:2] == ["0.5+8", "0.5+4"]
    titles = [text.get_text() for part in levels(table).subfigs for text in part.findobj(Text)]
    of_figure = [title for kind, title in style.KIND_TITLE.items() if kind != "bytes"]
    for letter, title in zip("abcdef", of_figure, strict=True):
        assert any(text.startswith(f"({letter}) {title}") for text in titles), title


def test_a_table_counts_the_bytes_of_both(tmp_path):
    found = {"strength_kind": "sparsity+bits", "strength": "0.5+4", "measured_sparsity": 0.6}
    write_tree(tmp_path, level_run())
    write_tree(tmp_path, {**level_run("wanda+rtn", "2:4"), **found}, **GROUPS)
    table = level_table(run_folder.read_runs(tmp_path))
    assert {row["compression"]: row["bytes_fraction"] for row in table} == {
        "dense": 1.0, "wanda+rtn": (1 + 2 + 20 / 128) / 16,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "strength"), [("nm", "2:4"), ("rank", 8), ("bits", 4)])
def test_the_bytes_of_some_layers_alone_are_known_of_zeros_only(tmp_path, kind, strength):
    """Of the zeros among all weights; an N:M, a rank and bits say nothing of the other layers."""
    row = {**pair(strength, 0.5, kind), "layers": "0-3", "parameter_ratio": 0.4, "folder": str(tmp_path)}
    assert bytes_fraction_of_run(row) is None
    assert bytes_fraction_of_run({**row, "layers": None}) == {"nm": 0.5625, "rank": 0.4, "bits": None}[kind]
    few = {**pair(0.5, 0.5, "sparsity", measured_sparsity=0.1), "layers": "0-3", "folder": str(tmp_path)}
    assert bytes_fraction_of_run(few) == pytest.approx(0.9 + 1 / 16)


def test_the_plain_ratio_of_n_m_is_that_of_its_name():
    """A weight that was 0 before is no smaller."""
    assert plain_fraction(pair("2:4", 0.5, "nm", measured_sparsity=0.6)) == 0.5
    assert plain_fraction(pair(0.5, 0.5, "sparsity", measured_sparsity=0.6)) == pytest.approx(0.4)
