import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification

from GLUE_tasks import finetune
from GLUE_tasks.finetune import LengthGroupedBatches
from harness import leases
from harness.models import meta_model


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
    assert order(1, 0) != order(2, 0)


def test_batches_are_nearly_free_of_padding_and_not_sorted():
    sizes = np.array(lengths(4000))
    batches = list(LengthGroupedBatches(sizes.tolist(), 16, seed=0))
    padded = sum(len(batch) * sizes[batch].max() for batch in batches)
    assert padded < 1.05 * sizes.sum()
    longest = np.array([sizes[batch].max() for batch in batches])
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.2


def test_a_copy_is_bit_equal_but_for_the_head_which_comes_from_the_seed(tiny_encoder: Path):
    pretrained = finetune.load_pretrained(str(tiny_encoder), num_labels=3)
    assert pretrained.new_parameters == {"classifier.weight", "classifier.bias"}
    torch.manual_seed(123)  # the state of the generator does not matter
    one, same, other = pretrained.copy(1), pretrained.copy(1), pretrained.copy(2)
    for name, parameter in pretrained.model.named_parameters():
        copies = one.get_parameter(name), same.get_parameter(name), other.get_parameter(name)
        assert torch.equal(copies[0], copies[1])
        if name == "classifier.weight":
            assert not torch.equal(copies[0], copies[2])
            assert 0.5 < copies[0].std() / pretrained.model.config.initializer_range < 1.5
        elif name != "classifier.bias":
            assert all(torch.equal(parameter, copy) for copy in copies)
    assert (one.classifier.bias == 0).all()


def test_biases_and_norms_are_not_decayed(tiny_encoder: Path):
    model = meta_model(str(tiny_encoder), AutoModelForSequenceClassification, False, num_labels=2)
    decayed, others = finetune.make_optimizer(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_groups_of_batches():
    assert list(finetune._groups(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_only_whole_checkpoints_count_and_the_newest_is_last(tmp_path: Path):
    for name, whole in (("checkpoint-9", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "progress.json").write_text("{}")
    (tmp_path / "checkpoint.partial").mkdir()
    assert [path.name for path in finetune.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_no_checkpoint_is_written_into_a_run_that_another_process_took_over(tmp_path: Path):
    (tmp_path / leases.OWNER_FILE).write_text(
        f"filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={'0' * 32}\nduration={leases.LEASE_SECONDS}\n"
    )
    with pytest.raises(leases.LostRunError, match="taken over by process 1 of elsewhere"):
        finetune.save_checkpoint(Accelerator(cpu=True), tmp_path, None, 3, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [leases.OWNER_FILE]


def test_there_is_one_training_loop():
    """Whatever a fine-tuning script adds, gradients and optimizer steps are made in finetune.py alone."""
    sources = sorted(Path(finetune.__file__).parent.glob("*.py"))
    trains = [path.name for path in sources if re.search(r"backward\(|optimizer\.step\(", path.read_text())]
    assert trains == ["finetune.py"] and len(sources) > 8


@pytest.mark.gpu
def test_transfers_hold_on_a_gpu(tiny_encoder: Path):
    from pruning.layers import prunable_weights
    from pruning.magnitude import magnitude_masks

    pretrained = finetune.load_pretrained(str(tiny_encoder), num_labels=2)
    weights = prunable_weights(pretrained.model, pretrained.new_parameters, include_embeddings=False)
    (keep_masks,) = magnitude_masks(weights, [0.5])
    for transfer in ("sparse_transfer", "dense_transfer_freezing"):
        model = pretrained.copy(0).cuda()
        optimizer = finetune.make_optimizer(model, 1e-2, 0.0)
        parameters = dict(model.named_parameters())
        finetune.start_transfer(transfer, optimizer, parameters, keep_masks)
        for _ in range(3):
            ids = torch.randint(4, 18, (4, 8), device="cuda")
            model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1], device="cuda")).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, keep in keep_masks.items():
            held = parameters[name].detach().cpu()[~keep]
            frozen = transfer == "dense_transfer_freezing"
            expected = weights[name].detach()[~keep] if frozen else torch.zeros_like(held)
            assert torch.equal(held, expected)
