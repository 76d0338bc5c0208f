"""The command line's meaning: the original's spellings, the transfers they name, the cells they make."""

import shlex

import pytest

from GLUE_tasks import options
from GLUE_tasks.Glue_prune_oneshot import make_parser

BASE = "--model_name_or_path m --task_name qnli --output_dir o"


def parsed(words: str):
    return options.parse(make_parser(), shlex.split(f"{BASE} {words}"))


def cells_of(words: str) -> list[dict]:
    args = parsed(words)
    return options.cells(args, 1, options.named_tasks(args))


def identity(words: str, precision: str = "no") -> dict:
    args = parsed(words)
    content = {"data_sha256": "x"}
    return options.identity(options.recorded(args, make_parser()), cells_of(words)[0], content, precision)


@pytest.mark.parametrize(
    ("words", "transfers"),
    [
        ("", ["dense_transfer"]),
        ("--sparse_init dense", ["dense_transfer"]),
        ("--sparsity 0.5", ["sparse_to_dense"]),  # the original without a freeze option
        ("--sparsity 0.5 --sparse_method", ["sparse_to_dense"]),
        ("--sparsity 0.5 --sparse_method --freeze_weights", ["sparse_transfer"]),
        ("--sparsity 0.5 --freeze_weights", ["sparse_transfer"]),
        ("--sparsity 0.5 --freeze_weights_frompretrain", ["dense_transfer_freezing"]),
        ("--sparsity 0.5 --sparse_init sparse_unstuctured --freeze_weights", ["sparse_transfer"]),
        ("--sparsity 0.5 --sparse_init sparse_unstructured --freeze_weights", ["sparse_transfer"]),
        ("--nm_ratio 6:8 --sparse_init sparse_nm --freeze_weights", ["sparse_transfer"]),
        ("--sparsity 0.5 --sparse_method sparse_transfer dense_transfer", ["sparse_transfer", "dense_transfer"]),
    ],
)
def test_every_way_to_name_a_transfer(words: str, transfers: list[str]):
    assert options.transfers(parsed(words)) == transfers


def test_the_first_readmes_loose_dashes_are_read_as_the_option_they_precede():
    """`-- freeze_weights` in the true-gem loop of the original's first README."""
    args = parsed("--sparsity 0.5 -- freeze_weights        --noembed --seed 41")
    assert args.freeze_weights and args.noembed and args.seed == [41]


def test_cells_are_every_combination_and_dense_has_no_strength():
    cells = cells_of("--sparse_method dense_transfer sparse_transfer --sparsity 0.1 0.9 --nm_ratio 2:8 --seed 1 2 "
                     "--validation_split_percentage 10 100")  # fmt: skip
    assert len(cells) == 2 * 2 * (1 + 3)
    dense = [cell for cell in cells if cell["transfer"] == "dense_transfer"]
    assert len(dense) == 4 and all(cell["strength"] == "dense" and cell["sparsity"] is None for cell in dense)
    assert {cell["strength"] for cell in cells} == {"dense", "0.1", "0.9", "2of8"}
    assert {cell["fraction"] for cell in cells} == {"10", "100"}


def test_what_is_given_twice_counts_once():
    assert len(cells_of("--seed 1 1")) == 1
    assert len(cells_of("--freeze_weights --sparsity 0.5 0.50")) == 1


def test_identity_holds_what_changes_numbers_and_nothing_else():
    here = identity("--seed 7")
    assert here["seed"] == 7 and here["data_sha256"] == "x" and here["learning_rate"] == 2e-5
    assert here == identity("--seed 7 8 --overwrite --checkpointing_steps 5")
    assert here != identity("--seed 7 --learning_rate 1e-5")
    assert here != identity("--seed 7", "bf16")


def test_help_explains_every_option():
    help_text = make_parser().format_help()
    for action in make_parser()._actions:
        assert action.help, action.dest
    assert "KEPT in every M" in help_text and "[0, 1)" in help_text
