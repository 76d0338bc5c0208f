"""GPTQ's and AWQ's packed layers: read as the dense weights that their integers stand for, and counted in bytes."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from harness.loading_report import check_loading
from llm_tasks import run as llm_run
from llm_tasks.checkpoints import checkpoint_models
from llm_tasks.checkpoints.checkpoint_files import Checkpoint, stored_bytes
from llm_tasks.checkpoints.dequantized import dequantize, with_plain_kernel
from pruning.layers import decoder_weights
from quantization.gptq import gptq_grid
from quantization.gptqmodel_export import save_packed

PARENT = Path(__file__).parents[1] / "golden" / "checkpoints" / "parent"
GROUP = 32
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word of AWQ's has the integers of eight outputs in a row


class Packed(nn.Module):
    """Integers, zero points and scales as gptqmodel's layers hold them, here not packed."""

    def __init__(self, codes: Tensor, zeros: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.qweight, self.qzeros, self.scales, self.bias = codes, zeros, scales, bias
        self.dequantize_weight = lambda: pytest.fail("the module's own function is the compiled one")

    def dequantize_weight(self) -> Tensor:
        return self.scales * (self.qweight - self.qzeros)


def test_a_packed_layer_becomes_the_dense_one_that_it_stands_for() -> None:
    codes, zeros, bias = torch.tensor([[15, 3], [7, 0]]), torch.tensor([8, 3]), torch.tensor([0.5, -1.0]).half()
    scales = torch.tensor([0.1, 0.3]).half()
    model = nn.Sequential(Packed(codes, zeros, scales, bias), nn.Sequential(Packed(codes, zeros, scales, None)))
    dequantize(model, torch.float32)
    exact = torch.tensor([[7 * float(scales[0]), -float(scales[0])], [0.0, -3 * float(scales[1])]])
    for layer in (model[0], model[1][0]):
        assert type(layer) is nn.Linear and layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, exact)  # float16 has no 7 * scale: the product is not rounded to it
    assert torch.equal(model[0].bias, bias.float()) and model[1][0].bias is None


def test_the_kernel_that_keeps_the_integers_is_asked_for() -> None:
    stored = {"quant_method": "awq", "bits": 4}
    config = with_plain_kernel(LlamaConfig(quantization_config=stored), "awq")
    assert config.quantization_config == {**stored, "backend": "torch_awq"} and "backend" not in stored


def words(codes: np.ndarray, places: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight integers of 4 bits of a row in an int32, the k-th at bit 4 * places[k]."""
    rows = codes.astype(np.uint32).reshape(len(codes), -1, 8)
    packed = np.zeros(rows.shape[:2], np.uint32)
    for index, place in enumerate(places):
        packed |= rows[:, :, index] << np.uint32(4 * place)
    return torch.from_numpy(packed.view(np.int32).copy())


def packed_layer(kind: str, outputs: int, inputs: int, draw: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """A layer's tensors as the format has them, and the weight (outputs, inputs) that they stand for."""
    groups = np.arange(inputs) // GROUP
    codes = draw.integers(0, 16, (inputs, outputs))
    zeros = (
        np.full((inputs // GROUP, outputs), 8) if kind == "gptq" else draw.integers(0, 16, (inputs // GROUP, outputs))
    )
    scales = torch.from_numpy(draw.uniform(0.005, 0.02, zeros.shape)).half()
    if kind == "awq":
        tensors = {"qweight": words(codes, AWQ_PLACES), "qzeros": words(zeros, AWQ_PLACES)}
    else:  # its first format stores each zero point less 1
        tensors = {"qweight": words(codes.T).T.contiguous(), "qzeros": words(zeros - (kind == "gptq")),
                   "g_idx": torch.from_numpy(groups).int()}  # fmt: skip
    weight = scales.float()[groups] * torch.from_numpy(codes - zeros[groups])
    return {**tensors, "scales": scales}, weight.T.contiguous()


def packed_folder(kind: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The golden parent with random packed layers: its folder, and the dense weights by the names of their modules."""
    shutil.copytree(PARENT, folder)
    tensors, dense, draw = {}, {}, np.random.default_rng(0)
    for key, tensor in load_file(PARENT / "model.safetensors").items():
        if "_proj" in key:
            layer, dense[key] = packed_layer(kind, *tensor.shape, draw)
            tensors |= {key.replace("weight", name): part for name, part in layer.items()}
        else:
            tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    entries = {"bits": 4, "group_size": GROUP, "desc_act": False}
    if kind == "awq":
        entries |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
    else:
        entries |= {"quant_method": "gptq", "checkpoint_format": kind, "sym": kind == "gptq"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": entries}))
    return folder, dense


@pytest.mark.parametrize(("name", "is_weight"), [("qweight", True), ("qzeros", True), ("g_idx", True), ("ids", False)])
def test_packed_integers_that_the_file_lacks_are_missing_weights(name: str, is_weight: bool) -> None:
    """They are buffers of integers, as are tables that transformers computes from the config."""
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(PARENT))
    model.model.layers[0].mlp.up_proj.register_buffer(name, torch.zeros(2, dtype=torch.int32))
    key = f"model.layers.0.mlp.up_proj.{name}"
    loading = {"missing_keys": {key}, "unexpected_keys": set(), "mismatched_keys": set()}
    with pytest.raises(ValueError, match=f"are missing in the checkpoint: {key}") if is_weight else nullcontext():
        check_loading(model, loading, new_head=False, ignore_mismatched_sizes=False)


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "awq"])
def test_bytes_of_packed_layers_by_hand(kind: str, tmp_path: Path) -> None:
    folder, dense = packed_folder(kind, tmp_path / kind)
    checkpoint = Checkpoint(kind, folder, kind, (folder / "model.safetensors",))
    # 4 bits a weight; of each 32 a float16 scale and 4 bits of zero point; of GPTQ the group of each input, an int32.
    bytes_of = [w.numel() // 2 + w.numel() // GROUP * 5 // 2 + (kind != "awq") * 4 * w.shape[1] for w in dense.values()]
    assert stored_bytes(checkpoint, {key.removesuffix(".weight"): 0 for key in dense}) == sum(bytes_of)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "awq"])
def test_a_packed_checkpoint_computes_with_what_its_integers_stand_for(kind: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("gptqmodel")
    folder, dense = packed_folder(kind, tmp_path / kind)
    source = llm_run.ModelSource(str(PARENT), torch.device("cpu"), dtype=dtype)
    skeleton = llm_run.skeleton(source)
    opened = checkpoint_models.open_one(str(folder), skeleton, source)
    model, twin = checkpoint_models.load(opened, source, skeleton.config), llm_run.load_model(source)
    loaded = decoder_weights(model)
    for name, weight in decoder_weights(twin).items():
        weight.matrix.copy_(dense[name])
        assert torch.equal(loaded[name].matrix, weight.matrix)
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model(ids).logits, twin(ids).logits)
    zeros = sum(int((weight == 0).sum()) for weight in dense.values())
    facts = checkpoint_models.facts_of(opened, model, decoder_weights(skeleton))
    assert facts["measured_sparsity"] == pytest.approx(zeros / sum(weight.numel() for weight in dense.values()))
    assert facts["strength"] < 1 and zeros


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, False), (8, True)])
def test_what_we_export_is_read_as_it_was_packed(bits: int, symmetric: bool, tmp_path: Path) -> None:
    """Inputs are in the order of their activations, so that groups are not neighbours; scales are float16."""
    pytest.importorskip("gptqmodel")
    source = llm_run.ModelSource(str(PARENT), torch.device("cpu"), dtype="float32")
    model, skeleton, grids = llm_run.load_model(source), llm_run.skeleton(source), {}
    torch.manual_seed(0)
    for name, weight in decoder_weights(model).items():
        inputs = torch.randn(200, weight.matrix.shape[1]) * torch.rand(weight.matrix.shape[1])
        grids[name] = gptq_grid(weight.matrix, inputs.T @ inputs, bits, GROUP, symmetric, act_order=True)
    save_packed(tmp_path / "made", model, grids, bits, GROUP, symmetric, AutoTokenizer.from_pretrained(PARENT))
    opened = checkpoint_models.open_one(str(tmp_path / "made"), skeleton, source)
    loaded = decoder_weights(checkpoint_models.load(opened, source, skeleton.config))
    for name, grid in grids.items():
        scales, zeros = grid.scales.half().float()[:, grid.group_index], grid.zeros[:, grid.group_index]
        assert torch.equal(loaded[name].matrix, scales * (grid.codes - zeros))
