"""Which weights a choice of layers names: by hand, against sets, and what is said where it names none."""

import pytest
import torch
from conftest import decoder_configs
from transformers import AutoModelForCausalLM

from pruning.layer_choice import block_indices, choose_weights, layers_label, matching, parse_layers

KINDS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
BLOCKS = {f"model.layers.{block}.{kind}.weight": block for block in range(12) for kind in KINDS}


def named(*wanted: tuple[int, str]) -> list[str]:
    return [f"model.layers.{block}.{kind}.weight" for block, kind in wanted]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("1", named(*((1, kind) for kind in KINDS))),
        ("0,11", named(*((0, kind) for kind in KINDS), *((11, kind) for kind in KINDS))),
        ("9-11", named(*((block, kind) for block in (9, 10, 11) for kind in KINDS))),
        ("3.mlp", named((3, "mlp.up_proj"), (3, "mlp.down_proj"))),
        ("3.mlp.up_proj", named((3, "mlp.up_proj"))),
        ("model.layers.1.mlp.up_proj.weight", named((1, "mlp.up_proj"))),
        ("model.layers.1.mlp.up_proj", named((1, "mlp.up_proj"))),
        ("down_proj", named(*((block, "mlp.down_proj") for block in range(12)))),
        ("*.1.*_proj", named(*((1, kind) for kind in KINDS))),
        ("11,model.layers.11.mlp.up_proj", named(*((11, kind) for kind in KINDS))),
    ],
)
def test_what_is_chosen_by_hand(choice: str, expected: list[str]):
    assert choose_weights(BLOCKS, parse_layers(choice)) == expected
    left = choose_weights(BLOCKS, None, choice)
    assert sorted([*left, *expected]) == sorted(BLOCKS) and left == [name for name in BLOCKS if name in left]


def test_what_is_skipped_is_taken_out_of_what_is_chosen():
    both = choose_weights(BLOCKS, "0-3,mlp", "2-11,up_proj")
    assert both == [name for name, block in BLOCKS.items() if block < 2 and "up_proj" not in name]
    assert choose_weights(BLOCKS) == list(BLOCKS)


@pytest.mark.parametrize(
    ("only", "skip", "message"),
    [
        ("12", None, "--only_layers 12: '12' names no weight; there are blocks 0 to 11 and in them self_attn.q_proj"),
        ("1,9-12", None, "--only_layers 1,9-12: '9-12' names no weight; there are blocks 0 to 11"),
        ("proj", None, "'proj' names no weight"),  # a part of a word is no name
        ("mlp.up", None, "'mlp.up' names no weight"),
        (None, "*.gate", "--skip_layers *.gate: '*.gate' names no weight"),
        (None, "0-11", "--skip_layers 0-11 leaves no weight to compress"),
        ("mlp", "up_proj,down_proj", "--only_layers mlp --skip_layers up_proj,down_proj leaves no weight"),
    ],
)
def test_a_choice_of_nothing_is_refused_in_one_line(only: str | None, skip: str | None, message: str):
    with pytest.raises(ValueError) as error:
        choose_weights(BLOCKS, only, skip)
    assert message in str(error.value) and "mlp.down_proj" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "1,", ",1", " , "])
def test_an_empty_part_is_refused(text: str):
    with pytest.raises(ValueError, match="has an empty part"):
        parse_layers(text)


def test_a_range_goes_up():
    assert parse_layers(" 3-5, mlp ,3-3") == "3-5,mlp,3-3"
    with pytest.raises(ValueError, match="write 3-5"):
        parse_layers("5-3")


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neox", "bloom"])
def test_every_weight_of_an_architecture_is_in_one_block_and_chosen_by_its_own_name(name: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(decoder_configs()[name])
    blocks = block_indices(model)
    for weight, block in blocks.items():
        assert matching(weight, blocks) == [weight] and weight in matching(str(block), blocks)
    together = [weight for block in sorted(set(blocks.values())) for weight in matching(str(block), blocks)]
    assert together == list(blocks)


def test_labels():
    assert layers_label(None, None) is None
    assert [layers_label("0-3,7", None), layers_label(None, "0"), layers_label("*.q_proj", "1")] == [
        "0-3,7", "without_0", "q_proj_without_1",
    ]  # fmt: skip
