"""Where the decoder blocks of a model are while a walk goes over them: on the device, in host memory, or in files.

Of blocks in host memory or in files, one is on the device while it is worked on, and the next on its way there.

Streamed blocks are for a model larger than memory. transformers itself opens the model, with the blocks left on disk
(`device_map`): names, conversions, precisions, ties and buffers are the library's. Memory holds one block at a time.
What lies outside the blocks is mapped from the files where it has their precision, and so are the hidden states that
enter the next block. Weights that transformers converts while loading (experts) are written once in their new form, to
a scratch folder. A killed job goes on at its block:

    <out>/.stream/progress.json                next block to compress, what job this is, sha256 of what was written
    <out>/.stream/activations-{0,1}            hidden states entering the next block; the other is being filled
    <out>/.stream/converted-…                  weights in the form that transformers converts them to
    <out>/model-00001-of-000NN.safetensors …   one shard per finished block, then one of the rest
    <out>/model.safetensors.index.json         last: with the job's name in it, the model is complete
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from harness.model_files import INDEX_FILE, refusal
from harness.models import load_pretrained, meta_model
from pruning.layers import block_weights, decoder_blocks
from pruning.prefetch import Prefetcher

GENERATION_FILE = "generation_config.json"
CONVERTED = "converted-"
ONE_FILE = 10**18  # bytes: save_pretrained cuts nothing into several files
CPU = torch.device("cpu")


class BlockStorage(Protocol):
    """Where a walk takes blocks from, and where it leaves what it has finished."""

    def hold(self, index: int) -> AbstractContextManager[nn.Module]:
        """Block `index` with its weights in memory; afterwards they may be dropped."""

    def resume(self) -> tuple[int, Tensor | None]:
        """First block that is not finished, and the hidden states that enter it if an interrupted job stored them."""

    def activations(self, shape: torch.Size, dtype: torch.dtype, index: int) -> Tensor | None:
        """Where the hidden states that enter block `index` are stored; None where memory is enough."""

    def finished(self, index: int, block: nn.Module) -> None:
        """Block `index`, still held, is compressed; its outputs are in the activations of index + 1."""


class LoadedBlocks:
    """Blocks of a model that is on its device as a whole."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks = blocks

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        yield self._blocks[index]

    def resume(self) -> tuple[int, Tensor | None]:
        return 0, None

    def activations(self, shape: torch.Size, dtype: torch.dtype, index: int) -> Tensor | None:
        return None

    def finished(self, index: int, block: nn.Module) -> None:
        pass


class HostBlocks(LoadedBlocks):
    """Blocks in host memory. A block is copied to the device while it is held; a compressed one is copied back.

    Made anew for every walk, since blocks may have been read ahead.

    Args:
        blocks: all their tensors are in host memory; what lies outside of them is on the device (see move_outside).
        ahead: see Prefetcher.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device, ahead: bool | None = None) -> None:
        super().__init__(blocks)
        self._slots = [_slots(block) for block in blocks]
        self._host = [[slot.tensor for slot in slots] for slots in self._slots]
        self._prefetcher = Prefetcher(self._host.__getitem__, len(blocks), device, ahead)

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        with _filled(self._slots[index], self._prefetcher.take(index)):
            yield self._blocks[index]

    def finished(self, index: int, block: nn.Module) -> None:
        for slot, host in zip(self._slots[index], self._host[index], strict=True):
            host.copy_(slot.tensor)


class StreamedBlocks:
    """Blocks of a checkpoint: read when held, written to the output folder when compressed, then dropped.

    Attributes:
        model: the model; the weights of its blocks are on the meta device unless held.
        name: of the list of blocks within the model.
        blocks: that list.

    Args:
        source: folder of the model, safetensors.
        out: folder of the compressed model; None only reads (to evaluate a model larger than memory).
        dtype: of the weights; None takes the checkpoint's.
        job: identifies the output; an unfinished job of another name in `out` is deleted and started anew.
        scratch: folder for converted weights where there is no `out`; the system's temporary folder when None.
        device: where blocks are computed; what lies outside of them is moved there.
        ahead: see Prefetcher.
    Raises:
        ValueError: the model is quantized or has no decoder blocks, or the files do not match the model's weights
            (names one that is missing, unexpected or of another shape).
    """

    def __init__(
        self,
        source: Path,
        out: Path | None = None,
        dtype: torch.dtype | None = None,
        job: str = "",
        trust_remote_code: bool = False,
        scratch: Path | None = None,
        device: torch.device = CPU,
        ahead: bool | None = None,
    ) -> None:
        self._source, self._out, self._trust_remote_code = source, out, trust_remote_code
        self._device = device
        self._work = None if out is None else out / ".stream"
        self._job = job
        self.progress = self._read_progress()
        if self._work is not None:
            scratch = self._work
            remove_converted(scratch)
        self._converted = tempfile.TemporaryDirectory(prefix=CONVERTED, dir=scratch)  # goes with this object
        self.model, self._stored = _open(source, dtype, trust_remote_code, Path(self._converted.name))
        if out is not None:
            _check_loads_again(self.model)
        self.name, self.blocks = decoder_blocks(self.model)
        state = self.model.state_dict()
        self._outside = {name: tensor for name, tensor in state.items() if not name.startswith(f"{self.name}.")}
        move_outside(self.model, device)
        slots = [_slots(block, f"{self.name}.{index}.") for index, block in enumerate(self.blocks)]
        # On the CPU the few tensors of a block that are in memory are where they are needed.
        self._slots = [[slot for slot in some if slot.tensor.is_meta or device.type != "cpu"] for some in slots]
        self._before = [[slot.tensor for slot in some] for some in self._slots]
        self._prefetcher = Prefetcher(self._read_block, len(self.blocks), device, ahead)

    def _read_block(self, index: int) -> list[Tensor]:
        """The tensors of a block's slots, in host memory."""
        return [
            self._stored[slot.name][0][self._stored[slot.name][1]] if before.is_meta else before
            for slot, before in zip(self._slots[index], self._before[index], strict=True)
        ]

    def _read_progress(self) -> dict[str, Any]:
        fresh = {"job": self._job, "next": 0, "shape": None, "dtype": None, "written": {}}
        if self._work is None:
            return fresh
        path = self._work / "progress.json"
        progress = json.loads(path.read_text()) if path.is_file() else fresh
        if progress["job"] != self._job or progress.keys() != fresh.keys():
            shutil.rmtree(self._work)
            progress = fresh
        if progress["next"] == 0:
            (self._out / INDEX_FILE).unlink(missing_ok=True)  # of a model whose shards are about to be replaced
        self._work.mkdir(parents=True, exist_ok=True)
        return progress

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        """Block `index` with its weights read from the checkpoint; they are dropped afterwards."""
        with _filled(self._slots[index], self._prefetcher.take(index)):
            yield self.blocks[index]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and matrix of every compressible weight, one block in memory at a time."""
        for index in range(len(self.blocks)):
            with self.hold(index) as block:
                yield from ((weight.name, weight.matrix) for weight in block_weights(block, f"{self.name}.{index}"))

    @staticmethod
    def is_complete(out: Path, job: str) -> bool:
        """Whether `out` holds the complete model that this job makes."""
        index = out / INDEX_FILE
        return index.is_file() and json.loads(index.read_text()).get("metadata", {}).get("job") == job

    def _shard(self, index: int) -> Path:
        return self._out / f"model-{index + 1:05}-of-{len(self.blocks) + 1:05}.safetensors"

    def _write_shard(self, index: int, tensors: dict[str, Tensor]) -> Path:
        """Write tensors, by their names in the model, as save_pretrained does; returns the folder with the config."""
        folder = self._work / "shard"
        shutil.rmtree(folder, ignore_errors=True)
        self.progress["written"] |= {name: _digest(tensor) for name, tensor in tensors.items()}
        self.model.save_pretrained(folder, state_dict=tensors, max_shard_size=ONE_FILE)
        (written,) = folder.glob("*.safetensors")
        _sync(written)
        written.rename(self._shard(index))
        return folder

    def resume(self) -> tuple[int, Tensor | None]:
        """First block that is not finished, and the hidden states that enter it."""
        start, shape = self.progress["next"], self.progress["shape"]
        if not start or shape is None:
            return start, None
        return start, self.activations(torch.Size(shape), getattr(torch, self.progress["dtype"]), start)

    def activations(self, shape: torch.Size, dtype: torch.dtype, index: int) -> Tensor | None:
        """Hidden states that enter block `index`, in a file mapped into memory; None when nothing is written."""
        if self._work is None:
            return None
        self.progress |= {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        path = self._work / f"activations-{index % 2}"
        return torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype).view(shape)

    def finished(self, index: int, block: nn.Module) -> None:
        """Write block `index` to its shard, then record that; its outputs are in the activations of index + 1."""
        if self._work is None:
            return
        prefix = f"{self.name}.{index}."
        self._write_shard(index, {prefix + name: value.cpu() for name, value in block.state_dict().items()})
        if (outputs := self._work / f"activations-{(index + 1) % 2}").is_file():
            _sync(outputs)
        self.progress["next"] = index + 1
        partial = self._work / "progress.partial"
        partial.write_text(json.dumps(self.progress))
        _sync(partial)
        partial.rename(self._work / "progress.json")

    def complete(self) -> "StreamedBlocks":
        """Write what lies outside the blocks, the config and the index; return the folder opened for reading.

        Every tensor is then loaded again by transformers and compared with what should have been written.

        Raises:
            ValueError: the folder does not load to the same bits (names a weight); it has no index then.
        """
        last = len(self.blocks)
        _correct_tied_config(self.model)
        folder = self._write_shard(last, dict(self._outside))
        for path in [folder / "config.json", *folder.glob("*.py")]:  # the code of a model that brings its own
            shutil.move(path, self._out / path.name)
        if (settings := self._source / GENERATION_FILE).is_file():
            shutil.copy(settings, self._out / GENERATION_FILE)
        weight_map, total = {}, 0
        for index in range(last + 1):
            shard = self._shard(index)
            with safe_open(shard, "pt") as stored:
                weight_map |= dict.fromkeys(stored.keys(), shard.name)
            total += shard.stat().st_size
        _write_index(self._out / INDEX_FILE, {"total_size": total}, weight_map)
        try:
            again = StreamedBlocks(
                self._out, trust_remote_code=self._trust_remote_code, scratch=self._out, device=self._device
            )
            again.check(self.progress["written"])
        except ValueError:
            (self._out / INDEX_FILE).unlink()
            raise
        _write_index(self._out / INDEX_FILE, {"total_size": total, "job": self._job}, weight_map)
        shutil.rmtree(self._work)
        return again

    def check(self, written: Mapping[str, str]) -> None:
        """Compare the tensors of the model, as loaded, with what should have been written.

        Args:
            written: by name, the sha256 of every parameter and persistent buffer.
        Raises:
            ValueError: names one that differs.
        """
        loaded = {name: _digest(tensor) for name, tensor in self._outside.items()}
        for index in range(len(self.blocks)):
            with self.hold(index) as block:
                loaded |= {f"{self.name}.{index}.{key}": _digest(value) for key, value in block.state_dict().items()}
        differing = [name for name in written.keys() | loaded.keys() if written.get(name) != loaded.get(name)]
        if differing:
            raise ValueError(
                f"{self._source}: {min(differing)} is not read as it was written ({len(differing)} such weights); "
                f"{type(self.model).__name__} cannot be streamed to a folder. Compress it whole, without --stream"
            )


def _open(
    source: Path, dtype: torch.dtype | None, trust_remote_code: bool, scratch: Path
) -> tuple[PreTrainedModel, dict[str, tuple[Mapping[str, Tensor], str]]]:
    """The model as from_pretrained loads it, with its blocks on the meta device.

    Returns:
        The model; by name, the mapping that reads a block's weight, and the weight's key in it.
    """
    structure = meta_model(str(source), AutoModelForCausalLM, trust_remote_code)
    name, blocks = decoder_blocks(structure)
    # accelerate warns of weights on the meta device, which are wanted here
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # transformers warns that single weights in the map are no modules
            warnings.filterwarnings("ignore", "The following device_map keys")
            model, _ = load_pretrained(
                str(source), AutoModelForCausalLM, dtype or "auto", trust_remote_code=trust_remote_code,
                device_map=_device_map(structure, name, blocks), offload_folder=scratch,
            )  # fmt: skip
    except RuntimeError as error:
        if "unable to mmap" not in str(error):
            raise
        raise refusal(
            str(source),
            f"{str(error).splitlines()[0]}; a file larger than memory must be cut into smaller ones (save_pretrained "
            "with max_shard_size)",
        ) from error
    stored = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                stored[f"{path}.{key}"] = (module._hf_hook.weights_map, key)
    remove_hook_from_submodules(model)
    del model.hf_device_map  # with it, save_pretrained would look for the hooks
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # accelerate leaves a copy on the module itself
    return model.eval().requires_grad_(False), stored


def _device_map(structure: PreTrainedModel, name: str, blocks: nn.ModuleList) -> dict[str, str]:
    """Where from_pretrained leaves each part: blocks on disk, all else in memory.

    Parts of a block that are float32 whatever the model's precision stay in memory too: read from disk they would have
    the model's.

    Raises:
        ValueError: a weight of a block is also a weight of another block or of something outside the blocks.
    """
    seen: dict[int, str] = {}
    for key, parameter in structure.named_parameters(remove_duplicate=False):
        other = seen.setdefault(id(parameter), key)
        if other != key and f"{name}." in (key[: len(name) + 1], other[: len(name) + 1]):
            raise ValueError(f"{type(structure).__name__} cannot be streamed: {other} and {key} are one weight")
    kept = [*(structure._keep_in_fp32_modules or ()), *(structure._keep_in_fp32_modules_strict or ())]
    in_float32 = re.compile("|".join(pattern.replace("*", ".*") for pattern in kept) or "(?!)")
    device_map: dict[str, str] = {}

    def place(path: str, module: nn.Module) -> None:
        if not any(in_float32.search(f"{path}.{key}") for key in module.state_dict()):
            device_map[path] = "disk"
            return
        children = dict(module.named_children())
        device_map.update(
            dict.fromkeys((f"{path}.{key}" for key in _direct_tensors(module)) if children else [path], "cpu")
        )
        for key, child in children.items():
            place(f"{path}.{key}", child)

    for index, block in enumerate(blocks):
        place(f"{name}.{index}", block)
    parts = name.split(".")
    for depth, part in enumerate(parts):
        owner = structure.get_submodule(".".join(parts[:depth]))
        prefix = "".join(f"{part}." for part in parts[:depth])
        children = [key for key, _ in owner.named_children() if key != part]
        device_map |= dict.fromkeys((f"{prefix}{key}" for key in (*_direct_tensors(owner), *children)), "cpu")
    return device_map


def _direct_tensors(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that a module holds itself."""
    return [key for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def _check_loads_again(model: PreTrainedModel) -> None:
    """Raises ValueError for a model that AutoModelForCausalLM loads from a larger model's folder, but not by itself."""
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not model.is_remote_code():
        raise ValueError(
            f"a {model.config.model_type} saved by itself has no class that loads it as a causal language model, so "
            "that --stream cannot write it"
        )


def _correct_tied_config(model: PreTrainedModel) -> None:
    """Let the config say that weights are not tied where the files hold two different ones, which stay untied."""
    if model.get_expanded_tied_weights_keys(all_submodels=True) and not model.all_tied_weights_keys:
        model.config.tie_word_embeddings = False


class Slot(NamedTuple):
    """A tensor of a module: its name, and every dict of parameters or buffers that holds it, with its key there."""

    name: str
    holders: list[tuple[dict[str, Tensor | None], str]]

    @property
    def tensor(self) -> Tensor:
        holder, key = self.holders[0]
        return holder[key]

    def fill(self, tensor: Tensor) -> None:
        value = nn.Parameter(tensor, requires_grad=False) if isinstance(self.tensor, nn.Parameter) else tensor
        for holder, key in self.holders:
            holder[key] = value


def _slots(module: nn.Module, prefix: str = "") -> list[Slot]:
    """The parameters and buffers of a module and of those within it; a tensor that several hold is one slot."""
    slots: dict[int, Slot] = {}
    for path, part in module.named_modules():
        for holder in (part._parameters, part._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    name = f"{prefix}{path}.{key}" if path else f"{prefix}{key}"
                    slots.setdefault(id(tensor), Slot(name, [])).holders.append((holder, key))
    return list(slots.values())


@contextmanager
def _filled(slots: list[Slot], tensors: list[Tensor]) -> Iterator[None]:
    """Inside, the slots hold these tensors; afterwards what they held before."""
    before = [slot.tensor for slot in slots]
    try:
        for slot, tensor in zip(slots, tensors, strict=True):
            slot.fill(tensor)
        yield
    finally:
        for slot, tensor in zip(slots, before, strict=True):
            for holder, key in slot.holders:
                holder[key] = tensor


def move_outside(model: PreTrainedModel, device: torch.device) -> None:
    """Move to the device what a model holds outside its decoder blocks: embeddings, last norm, output layer."""
    inside = {id(slot.tensor) for slot in _slots(decoder_blocks(model)[1])}
    for slot in _slots(model):
        if id(slot.tensor) not in inside and slot.tensor.device != device:
            slot.fill(slot.tensor.to(device))


def _digest(tensor: Tensor) -> str:
    """sha256 of a tensor's precision, shape and bytes."""
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    digest = hashlib.sha256(head)
    digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_converted(folder: Path) -> None:
    """Remove the converted weights that a killed process left in `folder`."""
    for left in folder.glob(f"{CONVERTED}*"):
        shutil.rmtree(left)


def _sync(path: Path) -> None:
    """Everything written to `path` reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_index(path: Path, metadata: dict[str, Any], weight_map: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2))
    _sync(partial)
    partial.rename(path)
