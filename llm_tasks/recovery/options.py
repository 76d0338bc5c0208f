"""The command line of recover.py, and its values; see options for the other scripts of this folder."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import records, training
from harness.cells import Cell
from harness.commands import values
from harness.options import add_cell_options, checked, filled, filled_path, number, positive, typed
from llm_tasks import options
from llm_tasks.compressions import check_compression, is_calibrated, strength_values, strengths
from llm_tasks.engine.processes import job_size
from llm_tasks.methods import DENSE, METHODS, SPARSITIES, STRENGTHS, Strength
from llm_tasks.option_values import Given
from llm_tasks.recovery.recovered import RECOVERY
from llm_tasks.settings import perplexity
from pruning.transfers import TRANSFERS

CONTROL = TRANSFERS[0]  # dense_transfer: the dense model, trained on the same data for the same steps
PRUNING = [name for name, method in METHODS.items() if set(method.strengths) & set(SPARSITIES)]
# Options of what only quantizes, factorizes or reads checkpoints, which nobody gives here.
QUANTIZING: Given = {"bits": [], "rank": [], "checkpoint": [], "group_size": 128, "symmetric": False,
                     "act_order": False, "static_groups": False}  # fmt: skip
MEASUREMENTS = 5  # by default, how often perplexity is measured during training


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        given: every option by its name.
        defaults: of the options, by name.
        cells: of the command.
    """

    given: dict[str, Any]
    defaults: Given
    cells: list[Cell]


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options of recover.py, in groups."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_model(parser)
    _add_compression(parser)
    options.add_calibration(parser, "that of --train_text")
    parser.set_defaults(calibration=None, calibration_field=None)
    _add_training(parser)
    add = parser.add_argument_group("evaluation").add_argument
    for name, declaration in perplexity.SETTING.options.items():
        if name != "kl":
            add(f"--{name}", **declaration)
    add("--eval_steps", type=positive, metavar="STEPS",
        help=f"measure perplexity this often while training (default: {MEASUREMENTS} times)")  # fmt: skip
    _add_run(parser)
    return parser


def _add_compression(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("compression").add_argument
    add("--compression", nargs="+", type=checked(check_compression), default=[DENSE], metavar="NAME",
        help=f"what removes weights: {', '.join(PRUNING)}; {DENSE}: the control alone (default)")  # fmt: skip
    options.add_pruning(add, PRUNING)
    parser.set_defaults(**QUANTIZING)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--transfer", nargs="+", choices=TRANSFERS, default=list(TRANSFERS), metavar="TRANSFER",
        help=f"which weights train: {', '.join(TRANSFERS)} (default all). {CONTROL} trains the dense model on the same "
        "windows for as many steps: the control that all others are to be compared with")  # fmt: skip
    add("--train_text", type=filled, default="c4",
        help="text to train on: c4, wikitext2 (their training splits), or a .txt, .jsonl or .parquet file, also .gz "
        "(default c4). Windows that calibration or evaluation reads are left out")  # fmt: skip
    add("--train_field", type=filled, default="text", metavar="FIELD", help="column of the file that holds the text")
    add("--train_length", type=number(int, 2, 10**9), default=512, help="tokens per window (default %(default)s)")
    add("--max_train_steps", type=positive, default=300,
        help="optimizer steps, of float32 weights (default %(default)s)")  # fmt: skip
    add("--per_device_train_batch_size", type=positive, default=8, help="windows per batch (default %(default)s)")
    add("--gradient_accumulation_steps", type=positive, default=1, help="batches per optimizer step (default 1)")
    add("--learning_rate", type=number(float, 0, 10), default=2e-5,
        help="peak learning rate of AdamW (default %(default)s)")  # fmt: skip
    add("--weight_decay", type=number(float, 0, 10), default=0.0,
        help="weight decay of AdamW, not on biases and norms (default %(default)s)")  # fmt: skip
    add("--lr_scheduler_type", choices=training.SCHEDULERS, default="linear",
        help="learning rate schedule (default linear)")  # fmt: skip
    add("--num_warmup_steps", type=number(int, 0, 10**9), help="warm-up steps, fewer than all (default 6 %% of all)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--data_dir", type=filled_path, help="read c4 and wikitext2 from DIR/<dataset>/…; without it the hub")
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[0], metavar="SEED",
        help="calibration windows, training windows and their order (default 0)")  # fmt: skip
    add_cell_options(
        group, ("compression", "strength", "transfer", "seed"),
        groups=("model", "compression", "strength", "transfer", "seed"),
        dry_run="print the runs that are missing and what they need of memory and disk; load nothing",
    )  # fmt: skip
    add("--checkpointing_steps", type=positive, metavar="STEPS",
        help="save a checkpoint this often; after a kill the same command resumes from it to the same bits. On SIGTERM "
        "and SIGUSR1 one is saved in any case")  # fmt: skip
    add("--tokens_per_batch", type=positive, help="tokens computed at once for calibration and perplexity")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Asked:
    """What the command line asks for.

    Raises:
        ValueError: options that do not go together, or a compression that cannot be trained.
    """
    given, names = vars(parser.parse_args(argv)), typed(parser, argv)
    if given["calibration"] is None:
        if given["calibration_field"] is not None:
            raise ValueError("--calibration_field goes with --calibration; the column of --train_text is --train_field")
        given |= {"calibration": given["train_text"], "calibration_field": given["train_field"]}
    given["calibration_field"] = given["calibration_field"] or "text"
    check(given, names)
    return Asked(given, {name: parser.get_default(name) for name in given}, all_cells(given))


def check(given: Given, names: set[str]) -> None:
    """Refuse what cannot be trained, and options that nothing obeys.

    Args:
        names: of the options that the command line holds.
    Raises:
        ValueError: names the option and what is allowed.
    """
    for name in given["compression"]:
        if name not in (DENSE, *PRUNING):
            raise ValueError(f"--compression {name}: what is trained is pruned by {', '.join(PRUNING)}, or {DENSE}")
    # Every run obeys these: it trains on other windows than calibration draws, be it calibrated or not.
    read = {*records.CALIBRATION_OPTIONS} - {"true_sequential"}
    held = {name: given[name] for name in names - read}
    options.check_obeyed(given, held, [RECOVERY], {RECOVERY: ()})
    options.check_strengths(given)
    for field, source in (("calibration_field", "calibration"), ("train_field", "train_text")):
        if field in names:
            options.check_field(field, source, given)
    if set(given["compression"]) == {DENSE} and "transfer" in names and given["transfer"] != [CONTROL]:
        raise ValueError(f"--compression {DENSE}: nothing is pruned, so that --transfer can be {CONTROL} alone")
    if set(given["transfer"]) == {CONTROL} and set(given["compression"]) != {DENSE}:
        raise ValueError(f"--transfer {CONTROL} prunes nothing: --compression can be {DENSE} alone")
    training.check_warmup(given["num_warmup_steps"], given["lr_scheduler_type"], given["max_train_steps"])
    if job_size() > 1:
        raise ValueError("recover.py trains in one process: start it without accelerate launch or torchrun, and one "
                         "command of --list_cells for each GPU")  # fmt: skip


def all_cells(given: Given) -> list[Cell]:
    """Every seed's control, then its compressions at all strengths in all transfers."""
    found = []
    for seed in dict.fromkeys(given["seed"]):
        if CONTROL in given["transfer"] or DENSE in given["compression"]:
            found.append(_cell(DENSE, None, CONTROL, seed))
        for compression in dict.fromkeys(given["compression"]):
            for strength in strengths(compression, given):
                for transfer in dict.fromkeys(given["transfer"]):
                    if transfer != CONTROL:
                        found.append(_cell(compression, strength, transfer, seed))
    return found


def _cell(compression: str, strength: Strength | None, transfer: str, seed: int) -> Cell:
    label = strength.label if strength else DENSE
    return {
        "setting": RECOVERY, "compression": compression, "strength": label, **strength_values(strength),
        "transfer": transfer, "seed": seed,
    }  # fmt: skip


def computed_together(asked: Asked, some: list[Cell]) -> list[Cell]:
    """All combinations of the compressions, strengths, transfers and seeds of some cells: what one command computes."""
    return all_cells({**asked.given, **varied(some)})


def cell_options(asked: Asked, some: list[Cell]) -> dict[str, Any]:
    """The options, where they are not the default, that run some cells by themselves; none that these do not obey."""
    found = {name: value for name, value in asked.given.items() if value != asked.defaults[name]}
    compressions = values(some, "compression")
    for name in list(found):
        takers = [] if name in records.CALIBRATION_OPTIONS else options.obeying(name)
        if takers and not set(takers) & set(compressions):
            del found[name]
    if not any(map(is_calibrated, some)):
        found.pop("true_sequential", None)
    if not values(some, "sparsity"):
        found.pop("magnitude_scope", None)
    if found["calibration_field"] == "text":  # the default, and none where the text has no columns
        del found["calibration_field"]
    for name in ("list_cells", "group_by", "dry_run"):
        found.pop(name, None)
    return {**found, **varied(some)}


def varied(some: list[Cell]) -> dict[str, list]:
    """The values of the options that tell some cells apart."""
    return {name: values(some, name) for name in ("compression", *STRENGTHS, "transfer", "seed")}
