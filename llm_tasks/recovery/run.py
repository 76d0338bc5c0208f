"""From a command line to recovered models: prune, train on in a transfer, measure perplexity on the way, save.

    argv -> options.parse -> plan_job -> prepare -> of every cell: prune, train, measure, save, write

The dense model is trained beside the pruned ones, on the same windows in the same order for as many steps: what it
gains is training, and what a pruned model gains beyond that is recovery.
"""

import copy
import functools
import gc
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness import records, run_folder, training
from harness.cells import Cell, check_listed, output_folders, run_cells, start_logging
from harness.checkpoints import Checkpoints, origin
from harness.commands import print_commands
from harness.device import device_name, keep_freed_memory, peak_memory, reset_peak_memory
from harness.models import load_tokenizer, quiet_libraries, refuse_unknown_ids, save_model
from llm_tasks import plan
from llm_tasks.compressed_model import CompressibleModel, Compression, load_model
from llm_tasks.compressions import compressed_by
from llm_tasks.engine import window_losses
from llm_tasks.methods import DENSE, STRENGTHS
from llm_tasks.recovery import options
from llm_tasks.recovery.plan import RecoveryPlan, eval_steps, options_of, plan_job, print_plan
from llm_tasks.recovery.training_text import SHARED_TOKENS, TrainingText, training_windows
from llm_tasks.settings import perplexity
from pruning import calibration
from pruning.layers import decoder_weights
from pruning.masks import zero_fraction
from pruning.transfers import start_transfer
from pruning.validation import check_removed

logger = logging.getLogger(__name__)


class Texts(NamedTuple):
    """What is read before a model loads.

    Fields:
        tokenizer: of the model.
        windows: that perplexity is measured on, (number, tokens).
        calibration: of a seed, (number, tokens).
        training: of a seed.
    """

    tokenizer: PreTrainedTokenizerBase
    windows: Tensor
    calibration: Callable[[int], Tensor]
    training: Callable[[int], TrainingText]


class Pruned(NamedTuple):
    """What a compression made of the decoder's weights.

    Fields:
        keep_masks: by name of the weight, True where it is not zero; in host memory, empty for the dense model.
        weights: by name, in the dense model's dtype; in host memory, empty for the dense model.
        seconds: that the compression took.
    """

    keep_masks: dict[str, Tensor]
    weights: dict[str, Tensor]
    seconds: float


def run(argv: Sequence[str] | None, description: str) -> int:
    """Compute every run of a command line that is not complete yet; returns the exit code.

    Args:
        description: the script's docstring.
    """
    start_logging()
    quiet_libraries()
    keep_freed_memory()
    parser = options.make_parser(description)
    try:
        asked = options.parse(parser, argv)
        given = asked.given
        folders = output_folders(given["output_dir"], asked.cells)
        if given["list_cells"] or given["group_by"]:
            check_listed(folders, functools.partial(options_of, given), given["overwrite"])
            print_commands(
                given["list_cells"], folders, given["output_dir"],
                functools.partial(options.cell_options, asked), given["group_by"],
                functools.partial(options.computed_together, asked),
            )  # fmt: skip
            return 0
        training.check_environment()
        planned = plan_job(asked, folders)
        if given["dry_run"]:
            print_plan(planned)
            return 0
        texts = prepare(planned)
    except ValueError as error:
        parser.error(str(error))
    gc.freeze()  # what is imported stays: accelerate would look through it after every cell
    accelerator = training.start_accelerator(planned.how.precision)
    loaded = functools.cache(functools.partial(load_dense, planned, texts, accelerator.device))

    def compute(folder: Path) -> None:
        with training.signals_remembered(accelerator) as came:
            interrupted = functools.partial(training.came_to_any, accelerator, came)
            compute_run(planned, texts, accelerator, loaded(), folder, interrupted)
            if interrupted():
                raise SystemExit(training.EXIT_CODE)

    failed = run_cells(planned.identities, compute, given["overwrite"])
    print(f"{len(folders) - failed} of {len(folders)} runs are complete: {given['output_dir']}")
    return 1 if failed else 0


def prepare(planned: RecoveryPlan) -> Texts:
    """Read the texts that pending runs need.

    Raises:
        ValueError: says what cannot be read, or that too little text is left to train on.
    """
    given, source = planned.asked.given, planned.source
    tokenizer = load_tokenizer(source.name, source.trust_remote_code, source.revision)
    documents = functools.cache(functools.partial(
        calibration.read_texts, given["train_text"], text_field=given["train_field"], data_dir=given["data_dir"]
    ))  # fmt: skip
    windows = perplexity.SETTING.build(perplexity.SETTING.load(planned.held_out), planned.held_out, 0, tokenizer)

    calibrated = functools.cache(functools.partial(planned.calibrated.tokens, tokenizer))

    @functools.cache
    def trained(seed: int) -> TrainingText:
        made = planned.recipe
        count = made.max_steps * made.batch_size * made.accumulation_steps
        try:
            text = training_windows(
                tokenizer, documents(), count, given["train_length"], seed, [calibrated(seed), windows]
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"--train_text {given['train_text']}: {error}") from error
        logger.info(
            "training: %d windows of %d tokens, seed %d; %d left out, which share %d tokens in a row with calibration "
            "or evaluation", *text.tokens.shape, seed, text.left_out, SHARED_TOKENS,
        )  # fmt: skip
        if len(text.tokens) < count:
            logger.warning(
                "--train_text %s holds %d of the %d windows that --max_train_steps takes: they are read %.1f times",
                given["train_text"], len(text.tokens), count, count / len(text.tokens),
            )  # fmt: skip
        return text

    for seed in {cell["seed"] for cell in planned.pending().values()}:
        trained(seed)
    return Texts(tokenizer, windows, calibrated, trained)


class Starts:
    """What trainings start from: the dense model, and what the last compression made of it.

    Args:
        model: dense, on its device.
        how: how compressions are carried out.
    Attributes:
        model: stays dense.
        losses: on held-out windows, of the models that trainings started from.
    """

    def __init__(self, model: PreTrainedModel, how: Compression) -> None:
        self.model = model
        self.losses: dict[tuple | None, list[float]] = {}
        self._compressible = CompressibleModel(model, how, keep_dense=True)
        self._pruned: dict[tuple, Pruned] = {}

    def pruned(self, cell: Cell, tokens: Tensor | None) -> Pruned:
        """What the cell's compression makes of the dense model; kept until another is asked for.

        Args:
            tokens: calibration windows, where the compression reads them.
        """
        if cell["compression"] == DENSE:
            return Pruned({}, {}, 0.0)
        if compressed_by(cell) not in self._pruned:
            self._pruned.clear()
            self._pruned[compressed_by(cell)] = prune(self._compressible, cell, tokens)
        return self._pruned[compressed_by(cell)]


def load_dense(planned: RecoveryPlan, texts: Texts, device: torch.device) -> Starts:
    """The dense model on its device."""
    model = load_model(replace(planned.source, device=device)).to(device)
    refuse_unknown_ids(model, texts.tokenizer)
    return Starts(model, planned.how)


def prune(dense: CompressibleModel, cell: Cell, tokens: Tensor | None) -> Pruned:
    """What the cell's compression makes of the dense model, which is left dense.

    Args:
        tokens: calibration windows, where the compression reads them.
    """
    dense.compress(cell, tokens)
    weights = {name: matrix.to("cpu", copy=True) for name, matrix in dense.matrices().items()}
    seconds = dense.seconds
    dense.compress({**cell, "compression": DENSE, **dict.fromkeys(STRENGTHS)}, None)
    check_removed(cell["sparsity"], zero_fraction(weights.values()))
    return Pruned({name: matrix != 0 for name, matrix in weights.items()}, weights, seconds)


def trainable(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy of the model, all of whose weights are trained."""
    return copy.deepcopy(model).float().requires_grad_(True)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters, rounded to the target's dtype."""
    for one, other in zip(target.parameters(), source.parameters(), strict=True):
        one.copy_(other)


def next_token_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of all tokens but the first of each window, in float32."""
    logits = model(input_ids=batch["labels"], use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"][:, 1:].flatten())


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"labels": torch.tensor([row["labels"] for row in rows])}


class Training(NamedTuple):
    """One cell's models.

    Fields:
        model: float32, trained.
        matrices: the weights that are pruned, by name, as views of the trained model's.
        measured: in the dtype that is measured and saved; gets the trained weights.
    """

    model: PreTrainedModel
    matrices: dict[str, Tensor]
    measured: PreTrainedModel


def start_training(dense: PreTrainedModel, cell: Cell, pruned: Pruned) -> Training:
    """Copies of the dense model, with the pruned weights where the transfer starts from them."""
    model, measured = trainable(dense), copy.deepcopy(dense)
    matrices = matrices_of(model)
    if starts_pruned(cell):
        for name, weight in pruned.weights.items():
            matrices[name].copy_(weight)
    return Training(model, matrices, measured)


def starts_pruned(cell: Cell) -> bool:
    """Whether the transfer starts from pruned weights; the others start from the dense model."""
    return cell["transfer"] in ("sparse_transfer", "sparse_to_dense")


def matrices_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that are compressed, by name: views."""
    return {name: weight.matrix for name, weight in decoder_weights(model).items()}


def compute_run(
    planned: RecoveryPlan, texts: Texts, accelerator: Accelerator, starts: Starts, folder: Path,
    interrupted: Callable[[int], bool],
) -> None:  # fmt: skip
    """Prune, train, measure and save the model of one folder, and write its run.

    Args:
        interrupted: see training.train.
    """
    started, cell, run_identity = time.monotonic(), planned.folders[folder], planned.identities[folder]
    accelerator.free_memory()
    reset_peak_memory([accelerator.device])
    checkpoints = Checkpoints(folder, origin(run_identity, accelerator.mixed_precision))
    checkpoints.delete_others()
    run_folder.start_run(folder, run_identity, environment(planned, accelerator))
    pruned = starts.pruned(cell, texts.calibration(cell["seed"]))
    made = start_training(starts.model, cell, pruned)
    first = starts.losses.setdefault(compressed_by(cell) if starts_pruned(cell) else None, [])
    trace = train(planned, texts, accelerator, cell, made, pruned.keep_masks, first, checkpoints, interrupted)
    check_held(cell["transfer"], matrices_of(made.measured), matrices_of(starts.model), pruned.keep_masks)
    items, curve = curves(checkpoints.notes)
    text, model = planned.held_out.text, planned.asked.given["model_name_or_path"]
    vocabulary = made.model.config.get_text_config().vocab_size
    level = window_losses.describe_perplexity(text, {"window_loss": items["window_loss"]}, vocabulary)
    result = {
        **plan.describe(cell, run_identity, model, planned.how.magnitude_scope),
        "recipe": records.recipe(run_identity, records.COORDINATES["recovery"]),
        "task": text,
        "transfer": cell["transfer"],
        "measured_sparsity": zero_fraction(matrices_of(made.measured).values()),
        "masked_fraction": zero_fraction(pruned.keep_masks.values()) if pruned.keep_masks else 0.0,
        **training_facts(planned, texts.training(cell["seed"])),
        **trace,
        "train_losses": checkpoints.notes["train_losses"],
        "curve": curve,
        "compress_seconds": pruned.seconds,
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory([accelerator.device]),
        "levels": [level],
    }
    save_model(folder / "model", made.measured, texts.tokenizer, {"README.md": model_card(result, run_identity)})
    run_folder.write_run(folder, result, items)
    checkpoints.delete()


def environment(planned: RecoveryPlan, accelerator: Accelerator) -> dict[str, Any]:
    """What a run records of when, where and with what it is made."""
    device = accelerator.device
    return run_folder.describe_environment(
        str(device), device_name=device_name(device), dtype=str(planned.dtype), precision=planned.how.precision,
        threads=torch.get_num_threads(), variables=training.number_variables(),
    )  # fmt: skip


def train(
    planned: RecoveryPlan, texts: Texts, accelerator: Accelerator, cell: Cell, made: Training,
    keep_masks: Mapping[str, Tensor], first: list[float], checkpoints: Checkpoints, interrupted: Callable[[int], bool],
) -> dict[str, float | None]:  # fmt: skip
    """Train in the cell's transfer; the losses, of the steps and on held-out windows, are in the checkpoints' notes.

    Args:
        first: losses on held-out windows before training; filled in where they are not known yet.
    """
    recipe, notes = replace(planned.recipe, seed=cell["seed"]), checkpoints.notes
    every, tokens = eval_steps(planned.asked.given), planned.how.tokens_per_batch
    rows = dataset(texts.training(cell["seed"]).tokens)
    optimizer = training.make_optimizer(made.model, recipe.learning_rate, recipe.weight_decay)
    start_transfer(cell["transfer"], optimizer, made.matrices, keep_masks)
    model, optimizer = accelerator.prepare(made.model, optimizer)

    def measure(step: int) -> list[float]:
        copy_weights(made.model, made.measured)
        found = window_losses.measured_in_memory(made.measured, texts.windows, tokens, planned.how.precision)
        losses = found["window_loss"]
        logger.info("%s: step %d: perplexity %.3f", checkpoints.folder, step, window_losses.perplexity(losses))
        return losses.tolist()

    def after_step(step: int, loss: Tensor) -> None:
        notes["train_losses"].append(float(loss))
        if step % every == 0 or step == recipe.max_steps:
            notes["held_out"][str(step)] = measure(step)

    if not first:
        first += measure(0)
    notes.update(train_losses=[], held_out={"0": first})
    return training.train(
        accelerator, model, optimizer, rows, collate, recipe, checkpoints, next_token_loss, interrupted=interrupted,
        after_step=after_step,
    )  # fmt: skip


def dataset(tokens: Tensor) -> Dataset:
    """Windows as rows of the training loop."""
    return Dataset.from_dict({"labels": tokens.numpy(), "length": [tokens.shape[1]] * len(tokens)})


def check_held(
    transfer: str, found: Mapping[str, Tensor], dense: Mapping[str, Tensor], keep_masks: Mapping[str, Tensor]
) -> None:
    """Raises RuntimeError where a weight moved that the transfer holds at zero or at its dense value."""
    for name, keep in keep_masks.items():
        held = {"sparse_transfer": torch.zeros_like(dense[name]), "dense_transfer_freezing": dense[name]}.get(transfer)
        if held is not None and bool(((found[name] != held) & ~keep.to(held.device)).any()):
            raise RuntimeError(f"{transfer}: weights of {name} moved that are to be held")


def curves(notes: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[dict[str, float | None]]]:
    """Losses on held-out windows, for items.npz, and the perplexity at each step measured.

    Args:
        notes: held_out, by step the loss of every window.
    Returns:
        window_loss after the last step, (windows,), and curve_loss, (windows, measurements); and for each measurement
        step, perplexity and its standard error over windows.
    """
    steps = sorted(map(int, notes["held_out"]))
    losses = np.array([notes["held_out"][str(step)] for step in steps])
    if not np.isfinite(losses).all():
        raise FloatingPointError("the model's losses on held-out windows are NaN or infinite")
    told = []
    for step, own in zip(steps, losses, strict=True):
        score = window_losses.perplexity(own)
        error = score * own.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else None
        told.append({"step": step, "perplexity": score, "stderr": error})
    return {"window_loss": losses[-1], "curve_loss": losses.T}, told


def training_facts(planned: RecoveryPlan, text: TrainingText) -> dict[str, Any]:
    """What was trained on; the control of a run is that with the same hash."""
    recipe, windows = planned.recipe, len(text.tokens)
    at_once = recipe.batch_size * recipe.accumulation_steps
    epochs, steps = divmod(recipe.max_steps, math.ceil(windows / at_once))  # an epoch's last step may hold fewer
    return {
        "num_train_examples": windows,
        "num_train_tokens": (epochs * windows + steps * at_once) * text.tokens.shape[1],
        "train_windows_sha256": hashlib.sha256(text.tokens.numpy().tobytes()).hexdigest(),
        "train_windows_left_out": text.left_out,
    }


def model_card(result: Mapping[str, Any], run_identity: Mapping[str, Any]) -> str:
    """README.md of a saved model: from what, how it was pruned and trained, and what came of it."""
    strength = "" if result["strength"] is None else f", {result['strength_kind']} {result['strength']}"
    before, after = result["curve"][0], result["curve"][-1]
    options = "\n".join(f"| {name} | {value} |" for name, value in run_identity.items() if value is not None)
    return f"""# {result["model"]}: {result["compression"]}{strength}, {result["transfer"]}

Made from the model named above by the experiments of the Junk DNA Hypothesis (Yin et al., ICML 2024): pruned, then
trained for {after["step"]} steps on {result["num_train_tokens"]:,} tokens. Perplexity on {result["task"]}:
{before["perplexity"]:.3f} before, {after["perplexity"]:.3f} after. {result["measured_sparsity"]:.4%} of the linear
weights inside the decoder blocks are zero. All weights were trained but those that the transfer holds.

| option | value |
|---|---|
{options}
"""
