import pytest
from synthetic_runs import level_run, write_tree

from analysis.table import bytes_fraction, level_table
from harness import run_folder


def row(kind, strength, **known):
    return {"strength_kind": kind, "strength": strength, "requested_sparsity": known.pop("requested", 0.0), **known}


@pytest.mark.parametrize(
    ("kind", "strength", "known", "expected"),
    [
        (None, None, {}, 1.0),
        ("sparsity", 0.5, {"requested": 0.5}, 0.5 + 1 / 16),  # half of the values and a bit each
        ("sparsity", 0.5, {"requested": 0.5, "measured_sparsity": 0.6}, 0.4 + 1 / 16),
        ("sparsity", 0.05, {"requested": 0.05}, 1.0),  # .95 + .0625 is more than dense
        ("nm", "2:4", {}, 0.5 + 0.5 * 2 / 16),  # two bits for each value that is kept
        ("nm", "1:8", {}, 0.125 + 0.125 * 3 / 16),
        ("nm", "7:8", {}, 0.875 + 1 / 16),  # three bits for 7 of 8 are more than a bitmap
        ("rank", 64, {"parameter_ratio": 0.4}, 0.4),
        ("rank", 64, {"parameter_ratio": None}, None),
        ("rank", 64, {}, None),
    ],
)
def test_what_compressed_weights_take_of_the_dense_bytes(kind, strength, known, expected):
    assert bytes_fraction(row(kind, strength, **known)) == (expected and pytest.approx(expected, abs=1e-12))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"group_size": 128, "symmetric": False}, (4 + 20 / 128) / 16),  # scale and zero point: 16 + 4 bits
        ({"group_size": 32, "symmetric": True}, (4 + 16 / 32) / 16),
        ({"group_size": -1, "symmetric": False}, None),
        ({"group_size": 128}, None),
        (None, None),
    ],
)
def test_bits_come_with_their_scales(arguments, expected):
    found = bytes_fraction(row("bits", 4), arguments)
    assert found == (expected and pytest.approx(expected, abs=1e-12))


def test_a_table_says_what_each_point_takes(tmp_path):
    write_tree(tmp_path, level_run(), level_run("magnitude", 0.5), level_run("rtn", ("bits", 3)))
    write_tree(tmp_path, level_run("gptq", ("bits", 4)), group_size=64, symmetric=False)
    table = level_table(run_folder.read_runs(tmp_path))
    found = {point["compression"]: point["bytes_fraction"] for point in table}
    assert found == {"dense": 1.0, "magnitude": 0.5625, "rtn": None, "gptq": (4 + 20 / 64) / 16}
