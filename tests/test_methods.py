"""llm_tasks/methods.py: what the table of compressions says of each."""

import pytest

from llm_tasks.methods import METHODS, Options


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (Options(), 1),
        (Options(group_size=-1), 1),
        (Options(group_size=256), 1),
        (Options(group_size=64), 2),
        (Options(group_size=127, act_order=True), 2),
        (Options(group_size=192), 2),  # its second group begins inside a block
        (Options(group_size=64, block_size=32), 1),
        (Options(group_size=64, static_groups=True), 1),
    ],
)
def test_gptq_has_another_arithmetic_where_groups_begin_inside_a_block(options: Options, number: int):
    assert METHODS["gptq"].arithmetic(options) == number


def test_what_never_changed_keeps_its_first_arithmetic():
    others = [method for name, method in METHODS.items() if name != "gptq"]
    assert [method.arithmetic(Options(group_size=32)) for method in others] == [1] * len(others)
