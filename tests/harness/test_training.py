"""The training loop on toys: it knows no task, and what holds after every step comes from outside."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from harness import training
from harness.checkpoints import Checkpoints, finished
from harness.models import meta_model
from harness.training import LengthGroupedBatches, Recipe
from pruning.masks import apply_masks, hold_masks

ROOT = Path(__file__).parents[2]


class NextToken(nn.Module):
    """A language model of one layer with dropout, whose loss is its caller's business."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(functional.dropout(self.embedding(tokens), 0.2, self.training))


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """As recovery of a language model has it."""
    return functional.cross_entropy(model(batch["labels"][:, :-1]).flatten(0, 1), batch["labels"][:, 1:].flatten())


def collate(rows: list[dict]) -> dict[str, Tensor]:
    return {"labels": torch.tensor([row["labels"] for row in rows])}


@pytest.fixture
def texts() -> Dataset:
    draw = np.random.default_rng(0)
    return Dataset.from_dict({"labels": draw.integers(7, size=(21, 5)).tolist(), "length": [5] * 21})


KEEP = {"out.weight": torch.arange(56).view(7, 8) % 3 > 0}


def trained(texts: Dataset, folder: Path | None = None, **options: object) -> tuple[NextToken, dict]:
    """A model trained for 12 steps, four to an epoch, with a third of its output layer held at zero."""
    model, accelerator = NextToken(), Accelerator(cpu=True)
    optimizer = training.make_optimizer(model, 1e-2, 0.1)
    parameters = dict(model.named_parameters())
    apply_masks(parameters, KEEP)
    hold_masks(optimizer, parameters, KEEP)
    model, optimizer = accelerator.prepare(model, optimizer)
    recipe = Recipe(1e-2, batch_size=3, num_epochs=3, seed=5, accumulation_steps=2, checkpointing_steps="epoch")
    checkpoints = folder and Checkpoints(folder, {})
    trace = training.train(
        accelerator, model, optimizer, texts, collate, recipe, checkpoints, next_token_loss, **options
    )  # fmt: skip
    accelerator.free_memory()
    return model, trace


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_language_model_trains_with_its_own_loss_and_masks_hold_after_the_last_step(texts: Dataset):
    epochs = []
    model, trace = trained(texts, after_epoch=epochs.append)
    assert (trace["num_steps"], trace["num_epochs"], epochs) == (12, 3, [1, 2, 3]) and 0 < trace["train_loss"] < 2.5
    assert torch.equal(model.out.weight != 0, KEEP["out.weight"])


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_training_loss_is_the_mean_over_the_steps(texts: Dataset):
    losses = []
    _, trace = trained(texts, after_step=lambda _, loss: losses.append(float(loss)))
    assert len(losses) == 12 and trace["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("stop", [4, 6])
def test_an_interrupted_training_saves_and_goes_on_to_the_same_bits(stop: int, texts: Dataset, tmp_path: Path):
    """At the end of an epoch and within one; dropout is on."""
    whole, trace = trained(texts)
    with pytest.raises(SystemExit) as ended:
        trained(texts, tmp_path, interrupted=lambda step: step == stop)
    assert ended.value.code == training.EXIT_CODE == 75
    assert [path.name for path in finished(tmp_path)] == [f"checkpoint-{stop}"]
    resumed, again = trained(texts, tmp_path)
    assert again == trace
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("every", "saved"), [(None, []), (3, [3, 6, 9, 12]), ("epoch", [4, 8, 12])]
)  # fmt: skip
def test_when_checkpoints_are_due(every: int | str | None, saved: list[int]):
    recipe = Recipe(1e-2, batch_size=3, num_epochs=3, seed=5, checkpointing_steps=every)
    assert [step for step in range(1, 13) if recipe.saves_after(step, steps_per_epoch=4)] == saved


def test_a_twentieth_of_the_steps_and_a_bit_more_warms_up():
    """6 % of the steps, cut: the original's."""
    recipe = Recipe(1e-2, batch_size=3, num_epochs=3, seed=5)
    assert [recipe.warmup_of(steps) for steps in (100, 33, 16)] == [6, 1, 0]
    assert [Recipe(1e-2, 3, 3, 5, warmup_steps=given).warmup_of(100) for given in (0, 9)] == [0, 9]


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [({"warmup_steps": 0}, [1, 3 / 4, 1 / 2, 1 / 4]), ({"warmup_steps": 2}, [0, 1 / 2, 1, 1 / 2]),
     ({"scheduler": "constant"}, [1] * 4)],
)  # fmt: skip
def test_the_learning_rate_follows_the_schedule_over_all_steps(schedule: dict, rates: list[float], texts: Dataset):
    """Two epochs of two steps: the rate with which each step is made."""
    model, accelerator, used = NextToken(), Accelerator(cpu=True), []
    optimizer = training.make_optimizer(model, 1e-2, 0.0)
    optimizer.register_step_post_hook(lambda own, *_: used.append(own.param_groups[0]["lr"]))
    model, optimizer = accelerator.prepare(model, optimizer)
    recipe = Recipe(1e-2, batch_size=11, num_epochs=2, seed=5, **schedule)
    training.train(accelerator, model, optimizer, texts, collate, recipe, None, next_token_loss)
    assert used == pytest.approx([1e-2 * rate for rate in rates])


@pytest.mark.usefixtures("fresh_accelerator")
def test_every_row_of_a_group_of_micro_batches_weighs_the_same():
    """Loss w x, rows (1, 2, 3) and (6): the mean over rows is 3 w, the mean of the batches' means would be 4 w."""
    model, accelerator = nn.Linear(1, 1, bias=False), Accelerator(cpu=True)
    model.weight.data.fill_(2.0)
    group = [{"labels": torch.tensor([[1.0], [2.0], [3.0]])}, {"labels": torch.tensor([[6.0]])}]
    loss = training.train_step(accelerator, model, group, lambda own, batch: own(batch["labels"]).mean())
    assert float(loss) == 6.0 and model.weight.grad.item() == 3.0


def lengths(count: int) -> list[int]:
    return np.random.default_rng(0).integers(1, 60, count).tolist()


def test_batches_hold_every_row_once_and_the_incomplete_one_is_last():
    batches = list(LengthGroupedBatches(lengths(103), 8, seed=1))
    assert sorted(row for batch in batches for row in batch) == list(range(103))
    assert [len(batch) for batch in batches] == [8] * 12 + [7]
    assert len(LengthGroupedBatches(lengths(103), 8, seed=1)) == 13


def test_batches_depend_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list:
        batches = LengthGroupedBatches(lengths(100), 8, seed)
        batches.epoch = epoch
        return list(batches)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0) != order(1, 1)  # no seed's second epoch is the first of the next


def test_batches_are_nearly_free_of_padding_and_not_sorted():
    sizes = np.array(lengths(4000))
    batches = list(LengthGroupedBatches(sizes.tolist(), 16, seed=0))
    padded = sum(len(batch) * sizes[batch].max() for batch in batches)
    assert padded < 1.05 * sizes.sum()
    longest = np.array([sizes[batch].max() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2


def test_biases_and_norms_are_not_decayed(tiny_encoder: Path):
    model = meta_model(str(tiny_encoder), AutoModelForSequenceClassification, False, num_labels=2)
    decayed, others = training.make_optimizer(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_are_remembered_during_a_run_and_do_what_they_did_before_between_runs(number: int):
    obeyed = []
    before = signal.signal(number, lambda *_: obeyed.append(number))
    try:
        with training.signals_remembered(SimpleNamespace(num_processes=1)) as came:
            assert not came()
            os.kill(os.getpid(), number)
            assert came() and not obeyed
        os.kill(os.getpid(), number)
        assert obeyed == [number]
    finally:
        signal.signal(number, before)


def test_a_distributed_job_asks_at_some_steps_and_leaves_sigterm_alone():
    """Every process has to ask at the same steps, since the question is a collective one."""
    asked = []

    def reduce(tensor, reduction):
        asked.append(float(tensor))
        return tensor + 1  # another process was told

    job = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)
    before = signal.getsignal(signal.SIGTERM)
    with training.signals_remembered(job) as came:
        assert signal.getsignal(signal.SIGTERM) is before
        assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
        answers = [training.came_to_any(job, came, step) for step in range(1, 21)]
    assert [step for step, answer in enumerate(answers, start=1) if answer] == [10, 20] and asked == [0, 0]


def test_there_is_one_training_loop():
    """Whatever a script adds, gradients and optimizer steps are made in harness/training.py alone."""
    sources = sorted(path for room in ("GLUE_tasks", "harness", "llm_tasks") for path in (ROOT / room).rglob("*.py"))
    trains = [path.name for path in sources if re.search(r"backward\(|optimizer\.step\(", path.read_text())]
    assert trains == ["training.py"] and len(sources) > 30
