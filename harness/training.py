"""The one training loop, for any model and loss; a training that was killed and resumed ends with the same bits.

The loop knows neither tasks nor pruning. What must hold after every optimizer step, the last one too, is a hook of the
optimizer (torch.optim.Optimizer.register_step_post_hook); pruning.masks.hold_masks registers one.

On SIGUSR1 or SIGTERM a running training saves a checkpoint and ends the process; the same command then resumes from it.
Slurm sends such a signal before a time limit or a preemption (scripts/slurm_array.sh passes it on), and a user may, by
kill -USR1. Between trainings these signals end the process as usual.
"""

import contextlib
import itertools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, TorchDynamoPlugin, parse_flag_from_env
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_scheduler

from harness.checkpoints import Checkpoints
from harness.device import WITH_STREAMS, best_precision
from harness.progress import Progress

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]

# transformers' learning rate schedules that need nothing but the number of steps.
SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
)  # fmt: skip
WARMUP_FRACTION = 0.06  # of all steps, unless --num_warmup_steps is given; the original always uses it
BATCHES_PER_GROUP = 50  # batches are cut from this many batches' worth of rows sorted by length
FINITE_CHECK_STEPS = 50
EXIT_CODE = os.EX_TEMPFAIL  # 75: interrupted; the same command resumes
STEPS_BETWEEN_AGREEMENTS = 10  # several processes tell each other of signals this seldom: it makes them wait
# Prefixes of environment variables that change what accelerate and torch compute; names that start other trainings.
NUMBER_VARIABLES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "TORCH_ALLOW_TF32", "NVIDIA_TF32", "XLA_USE_BF16",
                    "XLA_DOWNCAST_BF16")  # fmt: skip
OTHER_TRAININGS = tuple(
    f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: all but the data, the initial weights and the masks."""

    learning_rate: float
    batch_size: int  # rows per process and micro-batch
    num_epochs: float  # passes over the training rows; need not be whole
    seed: int
    max_steps: int | None = None  # optimizer steps; None = num_epochs decides
    weight_decay: float = 0.0
    accumulation_steps: int = 1  # micro-batches per optimizer step
    scheduler: str = "linear"
    warmup_steps: int | None = None  # None = WARMUP_FRACTION of all steps
    checkpointing_steps: int | str | None = None  # optimizer steps between checkpoints, or "epoch"

    def warmup_of(self, num_steps: int) -> int:
        """Warm-up steps of a training of `num_steps` optimizer steps.

        Raises:
            ValueError: see check_warmup.
        """
        check_warmup(self.warmup_steps, self.scheduler, num_steps)
        return self.warmup_steps if self.warmup_steps is not None else int(WARMUP_FRACTION * num_steps)

    def saves_after(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a checkpoint is due after this optimizer step, counted from 1."""
        every = steps_per_epoch if self.checkpointing_steps == "epoch" else self.checkpointing_steps
        return every is not None and step % every == 0


def check_warmup(warmup_steps: int | None, scheduler: str, num_steps: int | None) -> None:
    """Refuse a warm-up that the schedule does not have, or in which the training ends below its learning rate.

    Args:
        warmup_steps: None = WARMUP_FRACTION of all steps.
        num_steps: optimizer steps of the training; None where they are not known yet.
    Raises:
        ValueError: names the options.
    """
    if warmup_steps is not None and scheduler == "constant":
        raise ValueError("--num_warmup_steps: --lr_scheduler_type constant has none; constant_with_warmup has")
    if warmup_steps and num_steps is not None and warmup_steps >= num_steps:
        raise ValueError(
            f"--num_warmup_steps {warmup_steps}: the training has {num_steps} steps (--max_train_steps, or what "
            "--num_train_epochs gives) and would never reach --learning_rate; allowed are fewer than it has"
        )


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Fused AdamW without weight decay on biases and norms (as HF's run_glue)."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (others if parameter.ndim < 2 or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


class LengthGroupedBatches:
    """Batches of rows of similar length in random order, the same for the same seed and epoch.

    Rows are shuffled, cut into groups of BATCHES_PER_GROUP batches, sorted by length within a group and cut into
    batches, which are shuffled again; transformers' LengthGroupedSampler keeps each group sorted. An incomplete batch
    comes last, where accelerate expects it.

    Args:
        lengths: tokens of each row.
        batch_size: rows per batch.
    """

    drop_last = False

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0  # no set_epoch: accelerate calls it with a count that starts again with the process

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


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that the model computes from a batch with labels."""
    return model(**batch).loss


def model_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits for a batch."""
    return model(**batch).logits


class _TrainingState:
    """How far a training is: the number of optimizer steps done, and the sum of their losses."""

    def __init__(self, num_steps: int, step: int = 0, loss_sum: float = 0.0) -> None:
        self.num_steps, self.step = num_steps, step
        self.loss_sum: Tensor | float = loss_sum
        self._logged = step, loss_sum

    def add(self, loss: Tensor) -> None:
        """Count one step. The sum of losses is read from the device and checked every FINITE_CHECK_STEPS steps."""
        self.loss_sum += loss
        self.step += 1
        if self.step % FINITE_CHECK_STEPS == 0 or self.step == self.num_steps:
            self.loss_sum = float(self.loss_sum)
            if not math.isfinite(self.loss_sum):
                raise FloatingPointError(
                    f"the training loss is NaN or infinite by step {self.step}; try a lower --learning_rate"
                )

    def recent_loss(self) -> str:
        """The mean loss of the steps since the last call, as a text."""
        (step, loss_sum), self._logged = self._logged, (self.step, float(self.loss_sum))
        return f"loss {(self._logged[1] - loss_sum) / max(1, self.step - step):.4f}"


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Dataset,
    collate: Collate,
    recipe: Recipe,
    checkpoints: Checkpoints | None = None,
    loss: Callable[[nn.Module, Batch], Tensor] = model_loss,
    after_epoch: Callable[[int], object] | None = None,
    interrupted: Callable[[int], bool] = lambda step: False,
    after_step: Callable[[int, Tensor], object] | None = None,
) -> dict[str, float | None]:
    """Train `model` in place; a training that was killed and resumed ends with the same bits as one that was not.

    Args:
        model, optimizer: as accelerator.prepare returned them; the optimizer's step hooks run after every step.
        rows: tokenized training rows with `labels` and `length` (tokens).
        collate: makes a padded batch of rows.
        checkpoints: where to save checkpoints, and which to resume from; None saves none and ignores `interrupted`.
        loss: mean loss over the rows of a batch.
        after_epoch: called with the number of epochs done.
        interrupted: takes the steps done; whether to save a checkpoint and end. Must be the same in all processes.
        after_step: called with the steps done and the loss of the last, before a checkpoint of that step is saved.
    Returns:
        train_loss (mean per optimizer step, None without a step), num_steps, num_epochs.
    Raises:
        FloatingPointError: the loss became NaN or infinite.
        SystemExit: interrupted, with EXIT_CODE.
    """
    batches = LengthGroupedBatches(rows["length"][:], recipe.batch_size, recipe.seed)
    loader = _data_loader(accelerator, rows, collate, batch_sampler=batches)
    steps_per_epoch = math.ceil(len(loader) / recipe.accumulation_steps)
    num_steps = recipe.max_steps or math.ceil(recipe.num_epochs * steps_per_epoch)
    if num_steps == 0:
        return {"train_loss": None, "num_steps": 0, "num_epochs": 0.0}
    scheduler = get_scheduler(recipe.scheduler, optimizer, recipe.warmup_of(num_steps), num_steps)
    torch.manual_seed(recipe.seed + accelerator.process_index)
    done = _TrainingState(num_steps, *(checkpoints.resume(accelerator, scheduler, num_steps) if checkpoints else ()))
    model.train()
    with Progress(total=num_steps, initial=done.step, name="train", detail=done.recent_loss) as progress:
        for epoch in range(done.step // steps_per_epoch, math.ceil(num_steps / steps_per_epoch)):
            batches.epoch = epoch
            skipped = (done.step - epoch * steps_per_epoch) * recipe.accumulation_steps
            remaining = accelerator.skip_first_batches(loader, skipped) if skipped else loader
            for group in _groups(remaining, recipe.accumulation_steps):
                step_loss = train_step(accelerator, model, group, loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                done.add(step_loss)
                if after_step:
                    after_step(done.step, step_loss)
                progress.update()
                if done.step == num_steps:
                    break
                ends = checkpoints is not None and interrupted(done.step)
                if checkpoints and (ends or recipe.saves_after(done.step, steps_per_epoch)):
                    checkpoints.save(accelerator, scheduler, done.step, done.loss_sum)
                if ends:
                    _end(checkpoints.folder, done.step, num_steps)
            if after_epoch:
                after_epoch(epoch + 1)
                model.train()
    return {"train_loss": done.loss_sum / num_steps, "num_steps": num_steps, "num_epochs": num_steps / steps_per_epoch}


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Consecutive batches, `size` at a time; the last group of an epoch may hold fewer."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _end(folder: Path, step: int, num_steps: int) -> NoReturn:
    logger.warning(
        "%s: interrupted at step %d of %d, checkpoint saved; the same command resumes", folder, step, num_steps
    )
    raise SystemExit(EXIT_CODE)


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    group: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor] = model_loss,
) -> Tensor:
    """Backward pass of the mean loss over all rows of a group of micro-batches; returns that loss."""
    num_rows = sum(len(batch["labels"]) for batch in group)
    total = torch.zeros((), device=accelerator.device)
    for position, batch in enumerate(group, start=1):
        last = position == len(group)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            share = loss(model, batch) * (len(batch["labels"]) / num_rows)
            accelerator.backward(share)
        total += share.detach()
    return total


def _data_loader(accelerator: Accelerator, rows: Dataset, collate: Collate, **order: Any) -> DataLoader:
    # without this generator every pass over the data would draw from the global one, which dropout uses: evaluating
    # between epochs would change the training
    # from pinned memory batches are copied without a wait for the device (start_accelerator)
    pinned = accelerator.device.type in WITH_STREAMS
    loader = DataLoader(
        rows.remove_columns("length"), collate_fn=collate, generator=torch.Generator(), pin_memory=pinned, **order
    )
    return accelerator.prepare_data_loader(loader)


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model: nn.Module,
    rows: Dataset,
    collate: Collate,
    batch_size: int,
    outputs: Callable[[nn.Module, Batch], Tensor] = model_logits,
) -> np.ndarray:
    """The model's outputs for every row, float32 (rows, columns), in the order of `rows`.

    Args:
        batch_size: rows per batch and process; batches hold rows of similar length.
        outputs: returns the outputs for a batch without labels, (rows, columns), with the same columns in each batch.
    """
    order = np.argsort(rows["length"][:], kind="stable")[::-1]
    loader = _data_loader(accelerator, rows.select(order), collate, batch_size=batch_size)
    model.eval()
    gathered = []
    for batch in Progress(loader, name="evaluate"):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        gathered.append(accelerator.gather_for_metrics(outputs(model, inputs).float()))
    in_order = np.empty((len(rows), gathered[0].shape[1]), dtype=np.float32)
    in_order[order] = torch.cat(gathered).cpu().numpy()  # one wait for the device
    return in_order


def finite(outputs: np.ndarray) -> np.ndarray:
    """Return the outputs of a trained model unchanged.

    Raises:
        FloatingPointError: an output is NaN or infinite.
    """
    if not np.isfinite(outputs).all():
        raise FloatingPointError("the trained model's outputs are NaN or infinite; try a lower --learning_rate")
    return outputs


@contextmanager
def signals_remembered(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """Within, SIGUSR1 and SIGTERM do not end the process; yields a function that says whether one came.

    In a distributed job SIGTERM still ends it: launchers send that to processes that wait for one that failed.
    """
    came = threading.Event()
    numbers = (signal.SIGUSR1, signal.SIGTERM) if accelerator.num_processes == 1 else (signal.SIGUSR1,)
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        numbers = ()
    previous = {number: signal.signal(number, lambda *_: came.set()) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def loss_scale_restored(accelerator: Accelerator) -> Iterator[None]:
    """Within, training may change fp16's loss scale; afterwards it is as before, so that the next one starts alike."""
    before = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    try:
        yield
    finally:
        if before:
            accelerator.scaler.load_state_dict(before)


def came_to_any(accelerator: Accelerator, came: Callable[[], bool], step: int = 0) -> bool:
    """Whether the signal came to any process of the job; all processes must call this after the same step.

    Args:
        came: what signals_remembered yielded.
        step: the optimizer step just done; several processes ask each other every STEPS_BETWEEN_AGREEMENTS steps.
    """
    if accelerator.num_processes == 1:
        return came()
    if step % STEPS_BETWEEN_AGREEMENTS:
        return False
    flag = torch.tensor(float(came()), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum") > 0)


def check_environment() -> None:
    """Refuse environment variables that start another training than this loop's, such as FSDP or DeepSpeed.

    Raises:
        ValueError: names the variable and its value.
    """
    for name in OTHER_TRAININGS:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t"):
            raise ValueError(
                f"{name}={os.environ[name]} is set, as by accelerate launch or its config; unset it: each process "
                "trains the whole model on one device"
            )


def number_variables() -> dict[str, str]:
    """The environment variables that are set and change what accelerate and torch compute, for args.json."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(NUMBER_VARIABLES)}


def start_accelerator(mixed_precision: str, tracker: str | None = None) -> Accelerator:
    """Start accelerate for all trainings of this process; its environment variables for precision are ignored.

    Args:
        mixed_precision: "auto", "no", "bf16" or "fp16" (see precision_used).
        tracker: accelerate's name of an experiment tracker; None for none.
    """
    # accelerate joins the processes of a CPU job only when it is told that there is no accelerator
    state = PartialState(cpu=_computes_on_cpu())
    precision = precision_used(mixed_precision, state.device.type)
    used = {"MIXED_PRECISION": precision, "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "no"}
    for name, value in used.items():
        if (given := os.environ.get(f"ACCELERATE_{name}", value)).lower() != value:
            logger.warning("ACCELERATE_%s=%s is ignored: %s is used", name, given, value)
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # train counts micro-batches itself
        dynamo_plugin=TorchDynamoPlugin(backend="NO"),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        log_with=tracker,
    )


def precision_used(mixed_precision: str, device_type: str | None = None) -> str:
    """The precision that a value of --mixed_precision means on a device: "no" (float32), "bf16" or "fp16".

    Args:
        device_type: such as "cuda"; None is that of start_accelerator.
    """
    if mixed_precision != "auto":
        return mixed_precision
    if device_type is None:
        device_type = "cpu" if _computes_on_cpu() else torch.accelerator.current_accelerator().type
    return best_precision(device_type)


def _computes_on_cpu() -> bool:
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def share_from_main(accelerator: Accelerator) -> Callable[[Any], Any] | None:
    """A function that returns the main process's value in every process; None in a job of one process."""
    if accelerator.num_processes == 1:
        return None

    def share(value: Any) -> Any:
        holder = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    return share
