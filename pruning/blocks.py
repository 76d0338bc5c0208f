"""Storage of a model's decoder blocks while they are compressed: on the device, in host memory, or in files.

Of blocks in host memory or in files, one is on the device while it is computed, and the next is being copied there.

StreamedBlocks is for models larger than memory. transformers opens the model and leaves the blocks on disk
(`device_map`), so that names, conversions, dtypes, ties and buffers are the library's. One block at a time is in
memory. Tensors outside the blocks are memory-mapped where the files have the model's dtype. The hidden states that
enter the next block are in a memory-mapped file. Weights that transformers converts while loading (experts) are
written once, converted, to a scratch folder. A killed job resumes at the first block that is not compressed:

    <out>/.stream/progress.json                next block to compress, name of the job, sha256 of every tensor written
    <out>/.stream/activations-{0,1}            hidden states that enter the next block, and those that leave it
    <out>/.stream/converted-…                  weights that transformers converts while loading
    <out>/model-00001-of-000NN.safetensors …   one shard per compressed block, then one of what is outside the blocks
    <out>/model.safetensors.index.json         written last; the model is complete once it holds the name of the job
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors import safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

from harness.errors import first_line
from harness.model_files import INDEX_FILE, refusal
from harness.models import load_pretrained, meta_model
from pruning.layers import block_weights, decoder_blocks
from pruning.prefetch import Prefetcher

GENERATION_FILE = "generation_config.json"
CONVERTED = "converted-"
ONE_FILE = 10**18  # bytes per shard: save_pretrained writes a single file
CPU = torch.device("cpu")


class BlockStorage(Protocol):
    """Where the walk (compress_blocks) reads blocks from, and where it writes the compressed ones.

    Attributes:
        all_held: whether every block has its weights on its device all the time, so that the model runs as a whole.
    """

    all_held: bool

    def hold(self, index: int) -> AbstractContextManager[nn.Module]:
        """Inside, block `index` has its weights on the device; afterwards they may be freed there."""

    def resume(self) -> tuple[int, Tensor | None]:
        """Index of the first block that is not compressed, and the hidden states that enter it, None if not stored."""

    def activations(self, shape: torch.Size, dtype: torch.dtype, index: int) -> Tensor | None:
        """A tensor to store the hidden states that enter block `index` in; None if the walk is to allocate it."""

    def finished(self, index: int, block: nn.Module) -> None:
        """Called inside hold, when block `index` is compressed and its outputs are in the activations of index + 1."""


class LoadedBlocks:
    """Blocks of a model that is on its device as a whole."""

    all_held = True

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

    Make one for every walk: the blocks that it has read ahead do not follow what is written to them afterwards.

    Args:
        blocks: all their tensors are in host memory; what lies outside of them is on the device (see move_outside).
        device: where blocks are computed.
        ahead: see Prefetcher.
    """

    all_held = False

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
        model: the model; the weights of its blocks are on the meta device outside hold.
        name: name of the list of blocks within the model, such as "model.layers".
        blocks: that list.

    Args:
        source: folder of the model, safetensors.
        out: folder of the compressed model; None only reads (to evaluate a model larger than memory).
        dtype: dtype of the weights; None takes the checkpoint's.
        job: name of this compression; unfinished output of a job of another name in `out` is deleted.
        trust_remote_code: run the Python code that comes with the model.
        scratch: folder for converted weights if `out` is None; the system's temporary folder when None.
        device: where blocks are computed; what lies outside of them is moved there.
        ahead: see Prefetcher.
    Raises:
        ValueError: the model is quantized or has no decoder blocks, or the files do not match the model's weights
            (the message names one that is missing, unexpected or of another shape).
    """

    all_held = False

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
        self._converted = tempfile.TemporaryDirectory(prefix=CONVERTED, dir=scratch)  # deleted with this object
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
        readers = [_readers(some, self._stored) for some in self._slots]
        # Not a method: it would keep this object, and with it the scratch folder, until garbage is collected.
        self._prefetcher = Prefetcher(
            lambda index: [read() for read in readers[index]], len(self.blocks), device, ahead
        )

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
        """Inside, block `index` has its weights, read from the checkpoint; afterwards they are freed."""
        with _filled(self._slots[index], self._prefetcher.take(index)):
            yield self.blocks[index]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and matrix of every compressible weight, one block in memory at a time."""
        for index in range(len(self.blocks)):
            with self.hold(index) as block:
                yield from ((weight.name, weight.matrix) for weight in block_weights(block, f"{self.name}.{index}"))

    @staticmethod
    def is_complete(out: Path, job: str) -> bool:
        """Whether `out` holds the complete compressed model of this job."""
        index = out / INDEX_FILE
        return index.is_file() and json.loads(index.read_text()).get("metadata", {}).get("job") == job

    def _shard(self, index: int) -> Path:
        return self._out / f"model-{index + 1:05}-of-{len(self.blocks) + 1:05}.safetensors"

    def _write_shard(self, index: int, tensors: dict[str, Tensor]) -> Path:
        """Write tensors, named as in the model, with save_pretrained; returns the folder that holds the config."""
        folder = self._work / "shard"
        shutil.rmtree(folder, ignore_errors=True)
        self.progress["written"] |= {name: _digest(tensor) for name, tensor in tensors.items()}
        self.model.save_pretrained(folder, state_dict=tensors, max_shard_size=ONE_FILE)
        (written,) = folder.glob("*.safetensors")
        _sync(written)
        written.rename(self._shard(index))
        return folder

    def resume(self) -> tuple[int, Tensor | None]:
        """See BlockStorage.resume; hidden states are stored when a job was interrupted."""
        start, shape = self.progress["next"], self.progress["shape"]
        if not start or shape is None:
            return start, None
        return start, self.activations(torch.Size(shape), getattr(torch, self.progress["dtype"]), start)

    def activations(self, shape: torch.Size, dtype: torch.dtype, index: int) -> Tensor | None:
        """The memory-mapped file of the hidden states that enter block `index`; None if `out` is None."""
        if self._work is None:
            return None
        self.progress |= {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        path = self._work / f"activations-{index % 2}"
        path.touch()
        with path.open("r+b") as file:  # on a full disk this raises OSError; writing to a mapping kills the process
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, shape.numel() * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype).view(shape)

    def finished(self, index: int, block: nn.Module) -> None:
        """Write block `index` to its shard, then record in progress.json that it is compressed."""
        if self._work is None:
            return
        prefix = f"{self.name}.{index}."
        self._write_shard(index, {prefix + name: value.cpu() for name, value in block.state_dict().items()})
        if (outputs := self._work / f"activations-{(index + 1) % 2}").is_file():
            _sync(outputs)
        self.progress["next"] = index + 1
        _write_json(self._work / "progress.json", self.progress)

    def complete(self) -> "StreamedBlocks":
        """Write the tensors outside the blocks, the config and the index; return the finished model, opened to read.

        transformers loads every tensor again, which is compared with the tensor that was written.

        Raises:
            ValueError: a tensor differs after loading (the message names it); the index is then deleted.
        """
        last = len(self.blocks)
        _correct_tied_config(self.model)
        folder = self._write_shard(last, dict(self._outside))
        for path in [folder / "config.json", *folder.glob("*.py")]:  # code that comes with the model
            shutil.move(path, self._out / path.name)
        if (settings := self._source / GENERATION_FILE).is_file():
            shutil.copy(settings, self._out / GENERATION_FILE)
        weight_map, total = {}, 0
        for index in range(last + 1):
            shard = self._shard(index)
            with safe_open(shard, "pt") as stored:
                weight_map |= dict.fromkeys(stored.keys(), shard.name)
            total += shard.stat().st_size
        _write_json(self._out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        try:
            again = StreamedBlocks(
                self._out, trust_remote_code=self._trust_remote_code, scratch=self._out, device=self._device
            )
            again.check(self.progress["written"])
        except ValueError:
            (self._out / INDEX_FILE).unlink()
            raise
        metadata = {"total_size": total, "job": self._job}
        _write_json(self._out / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
        shutil.rmtree(self._work)
        return again

    def check(self, written: Mapping[str, str]) -> None:
        """Compare every tensor of the loaded model with the tensor that was written.

        Args:
            written: by name, the sha256 (_digest) of every parameter and persistent buffer written.
        Raises:
            ValueError: one differs (the message names it).
        """
        loaded = {name: _digest(tensor) for name, tensor in self._outside.items()}
        for index in range(len(self.blocks)):
            with self.hold(index) as block:
                loaded |= {f"{self.name}.{index}.{key}": _digest(value) for key, value in block.state_dict().items()}
        differing = [name for name in written.keys() | loaded.keys() if written.get(name) != loaded.get(name)]
        if differing:
            raise ValueError(
                f"{self._source}: {min(differing)} differs after saving and loading ({len(differing)} such weights); "
                f"{type(self.model).__name__} cannot be compressed with --stream. Compress it without --stream"
            )


def _open(
    source: Path, dtype: torch.dtype | None, trust_remote_code: bool, scratch: Path
) -> tuple[PreTrainedModel, dict[str, tuple[Mapping[str, Tensor], str]]]:
    """Load the model with from_pretrained, its blocks on the meta device.

    Returns:
        The model; and by the name of each weight of a block, the mapping that reads it from disk and its key in there.
    """
    structure = meta_model(str(source), AutoModelForCausalLM, trust_remote_code)
    name, blocks = decoder_blocks(structure)
    # accelerate warns of weights on the meta device, which are intended here
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # transformers warns that weights in the map are no modules
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
            f"{first_line(error)}; a file larger than memory must be cut into smaller ones (save_pretrained "
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
    """The device_map for from_pretrained: blocks on disk, all else in memory.

    Parts of a block that stay float32 in a model of another dtype are in memory too: read from disk they would get the
    model's dtype.

    Raises:
        ValueError: a block shares a weight with another block or with a module outside the blocks.
    """
    seen: dict[int, str] = {}
    for key, parameter in structure.named_parameters(remove_duplicate=False):
        other = seen.setdefault(id(parameter), key)
        if other != key and f"{name}." in (key[: len(name) + 1], other[: len(name) + 1]):
            raise ValueError(f"{type(structure).__name__} cannot be streamed: {other} and {key} are one weight")
    kept = [*(structure._keep_in_fp32_modules or ()), *(structure._keep_in_fp32_modules_strict or ())]
    in_float32 = re.compile("|".join(pattern.replace("*", ".*") for pattern in kept) or "(?!)")
    device_map: dict[str, str] = {}

    def assign(path: str, module: nn.Module) -> None:
        if not any(in_float32.search(f"{path}.{key}") for key in module.state_dict()):
            device_map[path] = "disk"
            return
        children = dict(module.named_children())
        device_map.update(
            dict.fromkeys((f"{path}.{key}" for key in _direct_tensors(module)) if children else [path], "cpu")
        )
        for key, child in children.items():
            assign(f"{path}.{key}", child)

    for index, block in enumerate(blocks):
        assign(f"{name}.{index}", block)
    parts = name.split(".")
    for depth, part in enumerate(parts):
        parent = structure.get_submodule(".".join(parts[:depth]))
        prefix = "".join(f"{part}." for part in parts[:depth])
        children = [key for key, _ in parent.named_children() if key != part]
        device_map |= dict.fromkeys((f"{prefix}{key}" for key in (*_direct_tensors(parent), *children)), "cpu")
    return device_map


def _direct_tensors(module: nn.Module) -> list[str]:
    """Names of a module's parameters and buffers, without those of its submodules."""
    return [key for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def _check_loads_again(model: PreTrainedModel) -> None:
    """Raises ValueError for the text part of a multimodal model that could not be loaded once it is saved alone."""
    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not model.is_remote_code():
        raise ValueError(
            f"--stream cannot write {model.config.model_type}: AutoModelForCausalLM does not load it once it is saved "
            "without the multimodal model that contains it"
        )


def _correct_tied_config(model: PreTrainedModel) -> None:
    """Set tie_word_embeddings to False if the checkpoint held two different tensors and the model keeps both."""
    if model.get_expanded_tied_weights_keys(all_submodels=True) and not model.all_tied_weights_keys:
        model.config.tie_word_embeddings = False


class Slot(NamedTuple):
    """A tensor of a module: its name, and every module that holds it, with its key there."""

    name: str
    holders: list[tuple[nn.Module, str]]

    @property
    def tensor(self) -> Tensor:
        holder, key = self.holders[0]
        return getattr(holder, key)

    def fill(self, tensor: Tensor) -> None:
        value = nn.Parameter(tensor, requires_grad=False) if isinstance(self.tensor, nn.Parameter) else tensor
        for holder, key in self.holders:
            setattr(holder, key, value)


def _slots(module: nn.Module, prefix: str = "") -> list[Slot]:
    """The parameters and buffers of a module and of those within it; a tensor that several hold is one slot."""
    slots: dict[int, Slot] = {}
    for path, part in module.named_modules():
        for named in (part.named_parameters, part.named_buffers):
            for key, tensor in named(recurse=False, remove_duplicate=False):
                name = f"{prefix}{path}.{key}" if path else f"{prefix}{key}"
                slots.setdefault(id(tensor), Slot(name, [])).holders.append((part, key))
    return list(slots.values())


def _readers(slots: list[Slot], stored: Mapping[str, tuple[Mapping[str, Tensor], str]]) -> list[Callable[[], Tensor]]:
    """By slot, a function that returns its tensor in host memory, read from the files if it is not there."""
    readers = []
    for slot in slots:
        mapping, key = stored.get(slot.name, ({}, ""))
        readers.append(functools.partial(mapping.__getitem__, key) if slot.tensor.is_meta else lambda t=slot.tensor: t)
    return readers


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
                setattr(holder, key, tensor)


def move_outside(model: PreTrainedModel, device: torch.device) -> None:
    """Move to the device what a model holds outside its decoder blocks: embeddings, last norm, output layer."""
    inside = {id(slot.tensor) for slot in _slots(decoder_blocks(model)[1])}
    for slot in _slots(model):
        if id(slot.tensor) not in inside and slot.tensor.device != device:
            slot.fill(slot.tensor.to(device))


def _digest(tensor: Tensor) -> str:
    """sha256 of a tensor's dtype, shape and bytes."""
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    digest = hashlib.sha256(head)
    digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_converted(folder: Path) -> None:
    """Remove the converted weights that a killed process left in `folder`."""
    for left in folder.glob(f"{CONVERTED}*"):
        shutil.rmtree(left)


def _sync(path: Path) -> None:
    """Wait until everything written to `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2))
    _sync(partial)
    partial.rename(path)
