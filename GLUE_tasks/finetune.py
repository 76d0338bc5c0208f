"""What the fine-tuning scripts share: pretrained model, the four transfers, training with checkpoints, prediction."""

import contextlib
import copy
import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    get_scheduler,
)

from GLUE_tasks import interruption
from harness import leases, models
from harness.progress import Progress
from pruning.masks import apply_masks, hold_masks

logger = logging.getLogger(__name__)

# Courses of the learning rate that need nothing but the number of steps (transformers' names).
SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip
# Paper, section 5, under the names of its figure 8.
TRANSFERS = ("dense_transfer", "dense_transfer_freezing", "sparse_transfer", "sparse_to_dense")
WARMUP_FRACTION = 0.06  # of all steps, unless --num_warmup_steps is given; the original always takes it
# Heads that fine-tuning may begin without; one that generates text is the language model's own.
NEW_HEADS = (AutoModelForSequenceClassification, AutoModelForMultipleChoice)
BATCHES_PER_GROUP = 50  # batches are cut from this many batches' worth of rows sorted by length
FINITE_CHECK_STEPS = 50
PROGRESS_FILE = "progress.json"  # of a checkpoint: written last


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: everything but the data, the weights it starts from and what is held."""

    learning_rate: float
    batch_size: int  # rows per process and micro-batch
    num_epochs: float  # passes over the training rows; the last need not be whole
    seed: int
    max_steps: int | None = None  # optimizer steps; None = num_epochs decides
    weight_decay: float = 0.0
    accumulation_steps: int = 1  # micro-batches per optimizer step
    scheduler: str = "linear"
    warmup_steps: int | None = None  # None = WARMUP_FRACTION of all steps
    checkpointing_steps: int | str | None = None  # optimizer steps between checkpoints, or "epoch"


@dataclass(frozen=True)
class Pretrained:
    """A model as its checkpoint has it, kept untouched, and the names of the parameters no checkpoint held."""

    model: PreTrainedModel
    new_parameters: frozenset[str]

    def copy(self, seed: int) -> PreTrainedModel:
        """A model to train: pretrained weights bit-equal, new parameters (the head) drawn from `seed` alone."""
        model = copy.deepcopy(self.model)
        draw_new_parameters(model, self.new_parameters, seed)
        return model


def load_pretrained(
    name: str,
    num_labels: int | None,
    trust_remote_code: bool = False,
    ignore_mismatched_sizes: bool = False,
    auto_class: type = AutoModelForSequenceClassification,
    weights: str = "safetensors",
    revision: str | None = None,
) -> Pretrained:
    """A pretrained model in float32, with a head for classification unless `auto_class` is another kind of model.

    Args:
        num_labels: size of the head, 1 makes it a regression; None leaves it to the checkpoint's config.
        weights, revision: see harness.models.load_pretrained.
    Raises:
        ValueError: the checkpoint lacks more than a head for a task, which is new here.
    """
    sizes = {} if num_labels is None else {"problem_type": None, "num_labels": num_labels}
    config = models.load_config(name, trust_remote_code, revision, **sizes)
    model, new = models.load_pretrained(
        name, auto_class, torch.float32, config, weights, revision, trust_remote_code, new_head=auto_class in NEW_HEADS,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )  # fmt: skip
    logger.info("%s: %d weights; new: %s", name, model.num_parameters(), ", ".join(sorted(new)) or "none")
    return Pretrained(model, new)


def draw_new_parameters(model: PreTrainedModel, names: Collection[str], seed: int) -> None:
    """Initialise the named parameters as the model's own code does, from `seed`; all others stay as they are."""
    torch.manual_seed(seed)
    owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters() if name in names)
    for owner in owners:
        module = model.get_submodule(owner)
        for name, parameter in module.named_parameters(recurse=False):
            # transformers leaves parameters with this flag alone when it initialises a module
            parameter._is_hf_initialized = f"{owner}.{name}" not in names
        model._init_weights(module)


def start_transfer(
    transfer: str,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    keep_masks: Mapping[str, Tensor],
) -> None:
    """Prune (or freeze) as the transfer says, for the whole training that `optimizer` will do.

    dense_transfer leaves everything; dense_transfer_freezing keeps the small weights at their pretrained values;
    sparse_transfer keeps them at zero; sparse_to_dense sets them to zero once and lets them grow.

    Source: paper, sections 3.1.1 and 5.
    """
    if transfer == "dense_transfer_freezing":
        frozen = {name: parameters[name].detach().clone() for name in keep_masks}
        hold_masks(optimizer, parameters, keep_masks, frozen)
    elif transfer in ("sparse_transfer", "sparse_to_dense"):
        apply_masks(parameters, keep_masks)
        if transfer == "sparse_transfer":
            hold_masks(optimizer, parameters, keep_masks)


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW in one fused pass over memory; biases and norms are not decayed (as HF's run_glue)."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class LengthGroupedBatches:
    """Batches of rows of similar length in random order, the same for the same seed and epoch.

    Rows are shuffled, cut into groups of BATCHES_PER_GROUP batches, sorted by length inside a group and cut into
    batches, which are shuffled again (transformers' LengthGroupedSampler leaves each group running from long to short).
    An incomplete batch comes last, where accelerate expects it.
    """

    drop_last = False

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0  # no set_epoch: accelerate would call it with its own count, which restarts with the process

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        full = len(rows) // self.batch_size * self.batch_size
        rest, rows = rows[full:], rows[:full]
        size = BATCHES_PER_GROUP * self.batch_size
        groups = [rows[start : start + size] for start in range(0, full, size)]
        batches = [
            batch
            for group in groups
            for batch in group[np.argsort(self.lengths[group], kind="stable")].reshape(-1, self.batch_size)
        ]
        yield from (batches[i].tolist() for i in generator.permutation(len(batches)))
        if len(rest):
            yield rest.tolist()


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that the model itself computes of a batch with labels."""
    return model(**batch).loss


def own_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).logits


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Dataset,
    collate: Callable[[list[dict]], Mapping[str, Tensor]],
    recipe: Recipe,
    folder: Path,
    resume_from: Path | None = None,
    after_epoch: Callable[[int], None] | None = None,
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = own_loss,
    interrupted: Callable[[int], bool] = lambda step: False,
    origin: Mapping[str, Any] | None = None,
    keep: Path | None = None,
) -> dict[str, float | None]:
    """Train `model` in place; a training that was killed and resumed ends with the same bits as one that was not.

    Args:
        model, optimizer: as accelerator.prepare returned them; what the optimizer's hooks hold is held.
        rows: tokenised training rows with `labels` and `length`.
        folder: where checkpoints go.
        resume_from: a checkpoint of the same training.
        after_epoch: called with the number of epochs done.
        loss: of the model on a batch, a mean over its rows.
        interrupted: after which step a checkpoint is saved and the process ends; the same for all processes.
        origin: what checkpoints say of the run that they are of.
        keep: a checkpoint that newer ones do not replace.
    Returns:
        train_loss (mean per optimizer step, None without a step), num_steps, num_epochs.
    Raises:
        FloatingPointError: the loss became NaN or infinite.
        SystemExit: interrupted, with interruption.EXIT_CODE.
    """
    batches = LengthGroupedBatches(rows["length"][:], recipe.batch_size, recipe.seed)
    # a generator of its own, or every new pass over the data would draw from the one that dropout uses
    loader = DataLoader(
        rows.remove_columns("length"), batch_sampler=batches, collate_fn=collate, generator=torch.Generator()
    )
    loader = accelerator.prepare_data_loader(loader)
    steps_per_epoch = math.ceil(len(loader) / recipe.accumulation_steps)
    num_steps = recipe.max_steps or math.ceil(recipe.num_epochs * steps_per_epoch)
    if num_steps == 0:
        return {"train_loss": None, "num_steps": 0, "num_epochs": 0.0}
    warmup = recipe.warmup_steps if recipe.warmup_steps is not None else int(WARMUP_FRACTION * num_steps)
    scheduler = get_scheduler(recipe.scheduler, optimizer, warmup, num_steps)
    torch.manual_seed(recipe.seed + accelerator.process_index)
    step, loss_sum = 0, 0.0
    if resume_from is not None:
        step, loss_sum = load_checkpoint(accelerator, resume_from, scheduler)
        logger.info("resumed from %s at step %d of %d", resume_from, step, num_steps)
    model.train()
    told = [step, float(loss_sum)]

    def recent_loss() -> str:
        """The mean loss of the steps since it was told last."""
        before, told[:] = (*told,), (step, float(loss_sum))
        return f"loss {(told[1] - before[1]) / max(1, step - before[0]):.4f}"

    progress = Progress(total=num_steps, initial=step, name="train", detail=recent_loss)
    for epoch in range(step // steps_per_epoch, math.ceil(num_steps / steps_per_epoch)):
        batches.epoch = epoch
        skipped = (step - epoch * steps_per_epoch) * recipe.accumulation_steps
        remaining = accelerator.skip_first_batches(loader, skipped) if skipped else loader
        for group in _groups(remaining, recipe.accumulation_steps):
            loss_sum += train_step(accelerator, model, group, loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            progress.update()
            if step % FINITE_CHECK_STEPS == 0 or step == num_steps:
                loss_sum = _finite(loss_sum, step)
            if step == num_steps:
                break
            every, ends = recipe.checkpointing_steps, interrupted(step)
            if ends or (isinstance(every, int) and step % every == 0):
                save_checkpoint(accelerator, folder, scheduler, step, loss_sum, origin, keep)
            if ends:
                logger.warning("%s: stopped at step %d of %d, saved; the same command goes on", folder, step, num_steps)
                raise SystemExit(interruption.EXIT_CODE)
        if step < num_steps and recipe.checkpointing_steps == "epoch":
            save_checkpoint(accelerator, folder, scheduler, step, loss_sum, origin, keep)
        if after_epoch:
            after_epoch(epoch + 1)
            model.train()
    progress.close()
    return {"train_loss": loss_sum / num_steps, "num_steps": num_steps, "num_epochs": num_steps / steps_per_epoch}


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    group: list[Mapping[str, Tensor]],
    loss: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = own_loss,
) -> Tensor:
    """Gradient of the mean loss over all rows of a group of micro-batches; returns that loss (this process's)."""
    num_rows = sum(len(batch["labels"]) for batch in group)
    total = torch.zeros((), device=accelerator.device)
    for position, batch in enumerate(group, start=1):
        last = position == len(group)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            share = loss(model, batch) * (len(batch["labels"]) / num_rows)
            accelerator.backward(share)
        total += share.detach()
    return total


def _groups(batches: Iterable, size: int) -> Iterator[list]:
    """Consecutive batches, `size` at a time; the last group of an epoch may hold fewer."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _finite(loss_sum: Tensor | float, step: int) -> float:
    loss_sum = float(loss_sum)
    if not math.isfinite(loss_sum):
        raise FloatingPointError(f"the training loss is NaN or infinite by step {step}; try a lower --learning_rate")
    return loss_sum


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    scheduler: LRScheduler,
    step: int,
    loss_sum: Tensor | float,
    origin: Mapping[str, Any] | None = None,
    keep: Path | None = None,
) -> None:
    """Store model, optimizer and random states as `folder`/checkpoint-<step>; then older ones but `keep` go.

    Args:
        origin: what it says of the run that it is of.
    Raises:
        LostRunError: another process took the run over while this one was stopped, and now writes there.
    """
    partial, final = folder / "checkpoint.partial", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        leases.check(folder)
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    losses = accelerator.gather(torch.tensor([float(loss_sum)], device=accelerator.device))
    if accelerator.is_main_process:
        files = {path.name: path.stat().st_size for path in partial.iterdir()}
        progress = {"step": step, "loss_sums": losses.tolist(), "scheduler": scheduler.state_dict(), "files": files}
        (partial / PROGRESS_FILE).write_text(json.dumps({**progress, **(origin or {})}))
        if final.exists() and (keep is None or final.resolve() != keep.resolve()):
            shutil.rmtree(final)  # a damaged one, which the training passed over
        partial.rename(final)
        for old in checkpoints(folder):
            if old != final and (keep is None or old.resolve() != keep.resolve()):
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, scheduler: LRScheduler) -> tuple[int, float]:
    """Restore what save_checkpoint stored (tensors only, no pickled objects); returns step and summed loss."""
    accelerator.load_state(str(checkpoint))
    progress = json.loads((checkpoint / PROGRESS_FILE).read_text())
    scheduler.load_state_dict(progress["scheduler"])
    return progress["step"], progress["loss_sums"][accelerator.process_index]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to their end, oldest first; others called so are left alone."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isascii() and step.isdigit() and (path / PROGRESS_FILE).is_file():
            found[path] = int(step)
        else:
            logger.warning("%s is no checkpoint of ours and passed over", path)
    return sorted(found, key=found.__getitem__)


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    rows: Dataset,
    collate: Callable[[list[dict]], Mapping[str, Tensor]],
    batch_size: int,
    outputs: Callable[[nn.Module, Mapping[str, Tensor]], Tensor] = own_logits,
) -> np.ndarray:
    """The model's outputs for every row, float32 (rows, columns), in the order of `rows`.

    Rows are batched by length; over several processes, the rows that fill up the last batch are dropped again.

    Args:
        outputs: of the model on a batch without its labels, (rows, columns) with as many columns for every batch.
    """
    order = np.argsort(rows["length"][:], kind="stable")[::-1]
    ordered = rows.select(order).remove_columns("length")
    # a generator of its own, as in train: evaluating between epochs must not change the training
    loader = DataLoader(ordered, batch_size=batch_size, collate_fn=collate, generator=torch.Generator())
    loader = accelerator.prepare_data_loader(loader)
    model.eval()
    found = []
    for batch in Progress(loader, name="evaluate"):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        found.append(accelerator.gather_for_metrics(outputs(model, inputs).float()).cpu().numpy())
    in_order = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
    in_order[order] = np.concatenate(found)
    return in_order


def finite(outputs: np.ndarray) -> np.ndarray:
    """What was given.

    Raises:
        FloatingPointError: it holds NaN or infinities.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError("the trained model's outputs are NaN or infinite; try a lower --learning_rate")
    return outputs


def share_from_main(accelerator: Accelerator) -> Callable[[Any], Any] | None:
    """A function that gives every process the main one's value; None for a job of one process."""
    if accelerator.num_processes == 1:
        return None

    def share(value: Any) -> Any:
        holder = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    return share
