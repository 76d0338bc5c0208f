"""Compress a model that is larger than memory: blocks come from safetensors shards one by one and go to new ones.

At any moment memory holds one block; what lies outside the blocks is mapped from the files, and so are the calibration
activations. A killed job goes on at the block it had reached:

    <out>/.stream/progress.json                next block to compress, and what job this is
    <out>/.stream/activations-{0,1}            hidden states entering the next block; the other is being filled
    <out>/model-00001-of-000NN.safetensors …   one shard per finished block, then one of the rest
    <out>/model.safetensors.index.json         last: its presence means that the model is complete
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.models import INDEX_FILE, Checkpoint
from pruning.layers import block_weights, decoder_blocks


class StreamedBlocks:
    """Blocks of a checkpoint: read when held, written to the output folder and dropped when compressed.

    Args:
        source: folder of the model, safetensors.
        out: folder of the compressed model; None only reads (to evaluate a model larger than memory).
        dtype: of the weights; None = the checkpoint's.
        job: what makes the output what it is; an unfinished job that differs is started anew.
    Raises:
        ValueError: the checkpoint's names are not the model's, or the model has no decoder blocks.
    """

    def __init__(
        self,
        source: Path,
        out: Path | None = None,
        dtype: torch.dtype | None = None,
        job: str = "",
        trust_remote_code: bool = False,
    ) -> None:
        self._checkpoint = Checkpoint(source)
        self._out = out
        self._work = None if out is None else out / ".stream"
        self._job = job
        self.model = _skeleton(source, dtype, trust_remote_code)
        self._name, self.blocks = decoder_blocks(self.model)
        self._keys = _checkpoint_keys(self.model, self._checkpoint)
        self._outside = [name for name in self._keys if not name.startswith(f"{self._name}.")]
        stored = self._checkpoint.read([self._keys[name] for name in self._outside], "mmap")
        outside = {name: stored[self._keys[name]].to(self.model.dtype) for name in self._outside}
        self.model.load_state_dict(outside, strict=False, assign=True)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        self._in_memory: Tensor | None = None
        self.progress = self._read_progress()

    def _read_progress(self) -> dict[str, Any]:
        fresh = {"job": self._job, "next": 0, "shape": None, "dtype": None}
        if self._work is None:
            return fresh
        path = self._work / "progress.json"
        found = json.loads(path.read_text()) if path.is_file() else fresh
        if found["job"] != self._job:
            shutil.rmtree(self._work)
            found = fresh
        if found["next"] == 0:
            (self._out / INDEX_FILE).unlink(missing_ok=True)  # of a model whose shards are about to be replaced
        self._work.mkdir(parents=True, exist_ok=True)
        return found

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights read from the checkpoint; they are dropped afterwards."""
        block = self.blocks[index]
        prefix = f"{self._name}.{index}."
        names = [name for name in self._keys if name.startswith(prefix)]
        stored = self._checkpoint.read([self._keys[name] for name in names])
        state = {name.removeprefix(prefix): stored.pop(self._keys[name]).to(self.model.dtype) for name in names}
        block.load_state_dict(state, strict=False, assign=True)
        block.requires_grad_(False)
        del state
        try:
            yield block
        finally:
            _to_meta(block)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and matrix of every compressible weight, one block in memory at a time."""
        for index in range(len(self.blocks)):
            with self.hold(index) as block:
                yield from ((weight.name, weight.matrix) for weight in block_weights(block, f"{self._name}.{index}"))

    @staticmethod
    def is_complete(out: Path, job: str) -> bool:
        """Whether `out` holds the complete model that this job makes."""
        index = out / INDEX_FILE
        return index.is_file() and json.loads(index.read_text()).get("metadata", {}).get("job") == job

    def _shard(self, index: int) -> Path:
        return self._out / f"model-{index + 1:05}-of-{len(self.blocks) + 1:05}.safetensors"

    def _write_shard(self, index: int, tensors: dict[str, Tensor]) -> None:
        partial = self._work / "shard"
        save_file(tensors, partial, metadata={"format": "pt"})
        _sync(partial)
        partial.rename(self._shard(index))

    def resume(self) -> tuple[int, Tensor | None]:
        """First block that is not finished, and the hidden states that enter it."""
        start, shape = self.progress["next"], self.progress["shape"]
        if not start or shape is None:
            return start, None
        return start, self.activations(torch.Size(shape), getattr(torch, self.progress["dtype"]), start)

    def activations(self, shape: torch.Size, dtype: torch.dtype, turn: int) -> Tensor:
        """Hidden states that enter block `turn`: a file mapped into memory, or memory when nothing is written."""
        if self._work is None:
            if self._in_memory is None:
                self._in_memory = torch.empty(shape, dtype=dtype)
            return self._in_memory
        self.progress |= {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        path = self._work / f"activations-{turn % 2}"
        return torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype).view(shape)

    def finished(self, index: int, block: nn.Module) -> None:
        """Write block `index` to its shard, then record that; its outputs are in the activations of turn index + 1."""
        if self._work is None:
            return
        prefix = f"{self._name}.{index}."
        self._write_shard(index, {self._keys[prefix + name]: value.data for name, value in block.named_parameters()})
        if (outputs := self._work / f"activations-{(index + 1) % 2}").is_file():
            _sync(outputs)
        self.progress["next"] = index + 1
        partial = self._work / "progress.partial"
        partial.write_text(json.dumps(self.progress))
        _sync(partial)
        partial.rename(self._work / "progress.json")

    def complete(self) -> None:
        """Write what lies outside the blocks, the config and the index, and remove the traces of the job."""
        last = len(self.blocks)
        parameters = dict(self.model.named_parameters())
        self._write_shard(last, {self._keys[name]: parameters[name].data for name in self._outside})
        weight_map, total = {}, 0
        for index in range(last + 1):
            shard = self._shard(index)
            with safe_open(shard, "pt") as stored:
                weight_map |= dict.fromkeys(stored.keys(), shard.name)
            total += shard.stat().st_size
        self.model.config.save_pretrained(self._out)
        if self.model.generation_config is not None:
            self.model.generation_config.save_pretrained(self._out)
        partial = self._work / "index"
        partial.write_text(
            json.dumps({"metadata": {"total_size": total, "job": self._job}, "weight_map": weight_map}, indent=2)
        )
        _sync(partial)
        partial.rename(self._out / INDEX_FILE)
        shutil.rmtree(self._work)


def _skeleton(source: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    """The model with the buffers that no checkpoint holds, but with parameters that take no memory."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype or config.dtype or torch.float32, trust_remote_code=trust_remote_code
        )
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # transformers draws no values for these
    for name, buffer in list(model.named_non_persistent_buffers()):
        path, _, key = name.rpartition(".")
        owner = model.get_submodule(path)
        owner.register_buffer(key, torch.empty_like(buffer, device="cpu"), persistent=False)
    model.initialize_weights()
    return model.eval()


def _checkpoint_keys(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """The name in the checkpoint of every parameter; of tied ones, only of the first that the checkpoint holds."""
    prefix = f"{model.base_model_prefix}."
    keys, missing = {}, []
    for name, _ in model.named_parameters():
        found = next((key for key in (name, name.removeprefix(prefix)) if key in checkpoint), None)
        if found is None:
            missing.append(name)
        else:
            keys[name] = found
    if missing:
        raise ValueError(
            f"{type(model).__name__} cannot be streamed: the checkpoint does not hold {missing[0]} under this name "
            f"({len(missing)} such weights; transformers converts them while loading). Load it whole, without --stream"
        )
    return keys


def _to_meta(block: nn.Module) -> None:
    """Free the parameters of `block`; its buffers stay."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _sync(path: Path) -> None:
    """Everything written to `path` reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
