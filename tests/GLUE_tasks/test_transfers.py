"""What the four transfers prune, hold and freeze; the script's end-to-end tests are in test_glue_prune_oneshot.py."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PretrainedConfig, XLNetConfig
from transformers.pytorch_utils import Conv1D

from GLUE_tasks.pretrained import load_pretrained
from GLUE_tasks.transfers import Pruning, Strength, nm_arithmetic, select_masks
from harness import training
from pruning.layers import prunable_weights
from pruning.magnitude import magnitude_masks
from pruning.transfers import TRANSFERS, start_transfer

PRECISIONS = ("no", "bf16", "fp16")


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_small_weights_are_before_and_after_a_step(transfer: str):
    """The smaller two of four weights; every step would add 1."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    keep = {} if transfer == "dense_transfer" else {"weight": torch.tensor([[False, False, True, True]])}
    start_transfer(transfer, optimizer, dict(model.named_parameters()), keep)
    pruned = transfer in ("sparse_transfer", "sparse_to_dense")
    before = [0.0, 0.0, 3.0, -4.0] if pruned else [1.0, -2.0, 3.0, -4.0]
    assert model.weight.tolist() == [before]
    model.weight.grad = torch.full((1, 4), -1.0)
    optimizer.step()
    held = transfer in ("sparse_transfer", "dense_transfer_freezing")
    assert model.weight.tolist() == [[*before[:2], 4.0, -3.0] if held else [value + 1 for value in before]]


def test_strengths_by_name_and_as_results_say_them():
    assert [Strength(0.5).name, Strength(nm_ratio="6:8").name, Strength().name] == ["0.5", "6of8", "dense"]
    assert Strength(0.5).facts("layer") == {
        "magnitude_scope": "layer", "strength_kind": "sparsity", "strength": 0.5, "requested_sparsity": 0.5,
    }  # fmt: skip
    assert Strength(nm_ratio="6:8").facts("layer") == {
        "magnitude_scope": None, "strength_kind": "nm", "strength": "6:8", "requested_sparsity": 0.25,
    }  # fmt: skip
    assert Strength().facts("global")["requested_sparsity"] == 0


def test_masks_of_every_strength_come_from_the_smallest_weights():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    strengths = (Strength(0.25), Strength(0.75), Strength(nm_ratio="1:2"))
    masks = select_masks(model, (), Pruning(strengths))
    assert [masks[strength]["0.weight"].tolist() for strength in strengths] == [
        [[False, True, True, True]], [[False, False, False, True]], [[False, True, False, True]],
    ]  # fmt: skip


@pytest.mark.parametrize(("scope", "kept"), [("global", [[0, 0], [1, 1]]), ("layer", [[0, 1], [0, 1]])])
def test_the_scope_says_which_weights_are_ranked_together(scope: str, kept: list[list[int]]):
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    model[0].weight.data, model[1].weight.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0], [20.0]])
    masks = select_masks(model, (), Pruning((Strength(0.5),), scope))[Strength(0.5)]
    assert [masks[f"{layer}.weight"].flatten().int().tolist() for layer in (0, 1)] == kept


def test_the_sparsity_of_n_of_m_is_exact():
    """One of eight dropped; 1 - 2/3."""
    requested = [Strength(nm_ratio=ratio).facts("global")["requested_sparsity"] for ratio in ("7:8", "2:3")]
    assert requested == [0.125, 1 - 2 / 3]


@pytest.mark.parametrize("layer", [nn.Linear(4, 1), Conv1D(1, 4)])
def test_groups_that_do_not_divide_a_layer_are_refused(layer: nn.Module):
    with pytest.raises(ValueError, match=r"--nm_ratio 3:5: 0\.weight has 4 inputs, no multiple of 5"):
        Pruning((Strength(nm_ratio="3:5"),)).check_groups(nn.Sequential(layer))
    Pruning((Strength(nm_ratio="2:4"),)).check_groups(nn.Sequential(layer))


def test_nm_groups_inputs_where_a_weight_is_stored_transposed():
    """Conv1D stores (in, out): of the inputs (1, -2) and (3, -4) of the first output the larger are kept."""
    model = nn.Sequential(Conv1D(2, 4))
    model[0].weight.data = torch.tensor([[1.0, 8.0], [-2.0, -7.0], [3.0, 6.0], [-4.0, -5.0]])
    strength = Strength(nm_ratio="1:2")
    keep = select_masks(model, (), Pruning((strength,)))[strength]["0.weight"]
    assert keep.tolist() == [[False, True], [True, False], [False, True], [True, False]]
    assert nm_arithmetic(model) == 2 and nm_arithmetic(nn.Sequential(nn.Linear(4, 1))) == 1


@pytest.mark.parametrize("include_embeddings", [True, False])
@pytest.mark.parametrize(
    ("config", "warning"),
    [(XLNetConfig(vocab_size=20, d_model=16, n_layer=2, n_head=2, d_inner=24), "64 % of the pretrained matrices"),
     (BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24), "")],
    ids=["xlnet", "bert"],
)  # fmt: skip
def test_an_encoder_that_cannot_be_pruned_to_a_large_part_is_told(
    config: PretrainedConfig, warning: str, include_embeddings: bool, caplog: pytest.LogCaptureFixture
):
    """Of a block of XLNet 5 x 16 x 16 and 80 in its attention, beside 2 x 16 x 24 in linear layers; heads are new."""
    model = AutoModelForSequenceClassification.from_config(config)
    new = [name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]
    select_masks(model, new, Pruning((Strength(0.5),), include_embeddings=include_embeddings))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(" outside")[0] for text in warned] == ([warning] if warning else [])
    assert not warning or warned[0].endswith("never pruned, such as transformer.layer.0.rel_attn.q")


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    "precision", [pytest.param("no", id="here"), *(pytest.param(name, marks=pytest.mark.gpu) for name in PRECISIONS)]
)
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_is_held_is_held_to_the_last_step(transfer: str, precision: str, tiny_encoder: Path):
    """Two steps of the training loop, on the GPU where there is one."""
    pretrained = load_pretrained(str(tiny_encoder), num_labels=2)
    weights = prunable_weights(pretrained.model, pretrained.new_parameters, include_embeddings=False)
    (keep_masks,) = magnitude_masks(weights, [0.5])
    accelerator = training.start_accelerator(precision)
    model = pretrained.copy(0).to(accelerator.device)
    optimizer = training.make_optimizer(model, 1e-2, 0.0)
    parameters = dict(model.named_parameters())
    start_transfer(transfer, optimizer, parameters, {} if transfer == "dense_transfer" else keep_masks)
    trained, optimizer = accelerator.prepare(model, optimizer)
    ids = [[2, *(4 + (row + column) % 14 for column in range(5)), 3] for row in range(8)]
    columns = {"input_ids": ids, "attention_mask": [[1] * 7] * 8, "labels": [0, 1] * 4, "length": [7] * 8}

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    recipe = training.Recipe(learning_rate=1e-2, batch_size=4, num_epochs=1, seed=0, warmup_steps=0)
    done = training.train(accelerator, trained, optimizer, Dataset.from_dict(columns), collate, recipe)
    assert done["num_steps"] == 2
    for name, keep in keep_masks.items():
        dropped, before = parameters[name].detach().cpu()[~keep], weights[name].detach()[~keep]
        if transfer == "sparse_transfer":
            assert not dropped.any()
        elif transfer == "dense_transfer_freezing":
            assert torch.equal(dropped, before)
        else:
            assert (dropped != (0 if transfer == "sparse_to_dense" else before)).any()
        assert (parameters[name].detach().cpu()[keep] != weights[name].detach()[keep]).any()
