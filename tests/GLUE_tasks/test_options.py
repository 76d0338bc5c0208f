"""The command line's meaning: the original's spellings, the transfers they name, the cells they make."""

import shlex

import pytest

from GLUE_tasks import options
from GLUE_tasks.Glue_prune_oneshot import make_parser
from GLUE_tasks.transfers import Pruning, Strength
from harness import records
from harness.training import Recipe

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


@pytest.mark.parametrize(
    "words",
    ["--subset prefix", "--max_train_samples 9", "--max_eval_samples 9", "--max_length 64", "--weight_decay 0.1",
     "--lr_scheduler_type cosine", "--num_warmup_steps 3", "--gradient_accumulation_steps 2", "--num_train_epochs 2",
     "--max_train_steps 5", "--per_device_train_batch_size 4", "--per_device_eval_batch_size 4", "--noembed",
     "--prune_new_head", "--magnitude_scope layer", "--validation_split_percentage 50", "--learning_rate 1e-5"],
)  # fmt: skip
def test_an_option_that_changes_a_number_tells_runs_apart(words: str):
    here, there = (identity(f"--sparsity 0.5 {more}") for more in ("", words))
    assert [text.partition(":")[0] for text in records.differences(here, there)] == [words.split()[0][2:]]


def test_options_reach_what_they_name():
    args = parsed(
        "--sparsity 0.5 --nm_ratio 2:4 --magnitude_scope layer --noembed --prune_new_head --learning_rate 1e-5 "
        "--per_device_train_batch_size 4 --num_train_epochs 2 --seed 7 8 --max_train_steps 9 --weight_decay 0.1 "
        "--gradient_accumulation_steps 3 --lr_scheduler_type cosine --num_warmup_steps 6 --checkpointing_steps epoch "
        "--output_dir o/{strength}/{seed}"
    )
    made = options.sweep(args, make_parser(), 1, options.named_tasks(args))
    assert made.pruning == Pruning((Strength(0.5), Strength(nm_ratio="2:4")), "layer", False, True)
    assert made.recipe == Recipe(
        learning_rate=1e-5, batch_size=4, num_epochs=2, seed=7, max_steps=9, weight_decay=0.1, accumulation_steps=3,
        scheduler="cosine", warmup_steps=6, checkpointing_steps="epoch",
    )  # fmt: skip
    assert options.sweep(parsed(""), make_parser(), 1, [{"task_name": "qnli"}]).pruning == Pruning(
        (), "global", True, False
    )


def test_help_explains_every_option():
    help_text = make_parser().format_help()
    for action in make_parser()._actions:
        assert action.help, action.dest
    assert "KEPT in every M" in help_text and "[0, 1)" in help_text
