"""A language model, compressed as a cell says: in memory or block by block from its files, and written to a folder.

Before it is loaded, its structure without weights says what its shapes forbid, what a compression costs and whether it
fits into memory.
"""

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness import records, run_folder
from harness.cells import Cell
from harness.device import all_accelerators, clock
from harness.model_files import check_checkpoint_files
from harness.models import load_pretrained, longest_input, meta_model, save_model, stored_dtype
from llm_tasks.compressing import (
    Compression,
    DenseNorms,
    checked,
    compress_weights,
    dense_norms,
    outlier_ratios,
    reads_dense_norms,
)
from llm_tasks.compressions import compressed_by, strength_of
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.layer_options import ALL
from llm_tasks.methods import DENSE, METHODS, Strength
from llm_tasks.shares import chosen_of, is_owl, share_facts
from pruning import calibration
from pruning.blocks import HostBlocks, StreamedBlocks, move_outside, remove_converted
from pruning.layer_choice import block_indices
from pruning.layers import decoder_blocks, decoder_weights
from pruning.low_rank import parameter_ratio
from pruning.magnitude import magnitude_masks
from pruning.masks import apply_masks, zero_fraction
from pruning.nm import parse_nm
from pruning.replay import check_replayed
from pruning.validation import check_removed
from pruning.walk import compress_blocks
from quantization.gptq import Quantized
from quantization.gptqmodel_export import check_exportable, save_packed

logger = logging.getLogger(__name__)

LENGTH_OF_UNLIMITED = 2048  # tokens
STORED_DENSE = "They are stored dense: files are no smaller, inference no faster."
SECONDS_FILE = ".compress_seconds"  # in a streamed model's folder, as JSON
PACKED = "They are stored as packed integers (GPTQ format): GPTQModel.load(folder) of gptqmodel serves them."


@dataclass(frozen=True)
class ModelSource:
    """A model and how it is loaded.

    Attributes:
        name: hub id or folder.
        device: where it is computed, and where its weights go unless device_map or blocks says otherwise.
        weights: "safetensors" or "bin".
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run code that the model's repository brings.
        dtype: of the weights: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device_map: "auto" spreads a model that is on the device over all GPUs.
        blocks: where the decoder blocks are, one of resources.LAYOUTS.
    """

    name: str
    device: torch.device
    weights: str = "safetensors"
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    device_map: str | None = None
    blocks: str = "device"

    def laid_out(self, layout: str) -> "ModelSource":
        """The same with its blocks elsewhere; only what is on the device is spread over several."""
        return replace(self, blocks=layout, device_map=self.device_map if layout == "device" else None)

    @property
    def on_accelerator(self) -> bool:
        return self.device.type != "cpu"

    @property
    def devices(self) -> list[torch.device]:
        """The devices that hold it or compute it."""
        return all_accelerators() if self.device_map and self.on_accelerator else [self.device]

    def dtype_of(self, config: PretrainedConfig) -> torch.dtype:
        """What the weights of a model of this config are loaded in."""
        return getattr(torch, self.dtype) if self.dtype != "auto" else config.dtype or torch.float32


@dataclass(frozen=True)
class Calibration:
    """The text that compressions are calibrated on; see pruning.calibration.calibration_tokens."""

    source: str
    text_field: str
    windows: str
    num_samples: int
    seq_len: int
    data_dir: Path | None

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tensor:
        """The windows that a seed draws, (num_samples, seq_len)."""
        return calibration.calibration_tokens(
            tokenizer, self.source, self.num_samples, self.seq_len, seed, windows=self.windows,
            text_field=self.text_field, data_dir=self.data_dir,
        )  # fmt: skip


def skeleton(source: ModelSource) -> PreTrainedModel:
    """The model without weights.

    Raises:
        ValueError: its files or its config are not those of a decoder-only language model that can be loaded.
    """
    check_checkpoint_files(source.name, source.weights, source.trust_remote_code, source.revision)
    check = functools.partial(refuse_encoders, trust_remote_code=source.trust_remote_code)
    model = meta_model(source.name, AutoModelForCausalLM, source.trust_remote_code, check, source.revision)
    if model.config.dtype is None:
        model.config.dtype = stored_dtype(source.name, source.weights)
    model.generation_config = generation_config(source, model.config)
    return model


def generation_config(source: ModelSource, config: PretrainedConfig) -> GenerationConfig:
    """How a model chooses the tokens of its answers and where they end: of its own file, else of its config."""
    try:
        return GenerationConfig.from_pretrained(source.name, revision=source.revision or "main")
    except OSError:  # it has no such file
        return GenerationConfig.from_model_config(config)


def refuse_encoders(config: PretrainedConfig, trust_remote_code: bool = False) -> None:
    """Raises ValueError where a config is not that of a decoder-only language model.

    Args:
        trust_remote_code: a causal language model that the model's own code defines is one.
    """
    kind = type(config)
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    brought = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if masked or config.is_encoder_decoder or not (brought or kind in MODEL_FOR_CAUSAL_LM_MAPPING):
        raise ValueError(
            f"a {config.model_type} is no decoder-only language model, which this script needs "
            "(encoders: GLUE_tasks/Glue_prune_oneshot.py)"
        )


def max_length(model: PreTrainedModel) -> int:
    """Tokens that the model can take at once: what it says, or LENGTH_OF_UNLIMITED where nothing in it limits them."""
    if longest := longest_input(model):
        return longest
    logger.info("the model names no longest input: texts are cut as if it took %d tokens", LENGTH_OF_UNLIMITED)
    return LENGTH_OF_UNLIMITED


def check_shapes(
    model: PreTrainedModel, cells: Iterable[Cell], exported_bits: Sequence[int] = (), group_size: int = -1
) -> None:
    """Refuse strengths that the shapes of the weights that cells compress forbid.

    Args:
        model: may be without weights.
        exported_bits: bits of the weights that are to be packed for export; none where nothing is exported.
        group_size: of these.
    Raises:
        ValueError: names the option and what is allowed; or the model has no blocks that can be walked.
    """
    shapes = {name: tuple(weight.matrix.shape) for name, weight in decoder_weights(model).items()}
    blocks = block_indices(model)
    for cell in cells:
        check_strength(cell, {name: shapes[name] for name in chosen_of(cell, blocks)})
    if exported_bits:
        check_exportable(model, exported_bits, group_size)


def check_strength(cell: Cell, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a cell's strength where a weight has no whole groups of it, or no weight has a rank above it.

    Args:
        shapes: of the weights that the cell compresses, by name.
    Raises:
        ValueError: names the option and what is allowed.
    """
    ratio, rank = cell["nm_ratio"], cell["rank"]
    m_group = parse_nm(ratio)[1] if ratio is not None else 1
    for name, (_, inputs) in shapes.items():
        if inputs % m_group:
            way_out = "; --skip_layers leaves it dense" if "skip_layers" in cell else ""
            raise ValueError(f"--nm_ratio {ratio}: {name} has {inputs} inputs, no multiple of {m_group}{way_out}")
    full = max(map(min, shapes.values()))
    if rank is not None and rank >= full:
        where = "" if cell.get("layers", ALL) == ALL else f" of {cell['layers']}"
        raise ValueError(f"--rank {rank}: the highest rank of a weight{where} is {full}; allowed: 1 to {full - 1}")


def load_model(source: ModelSource) -> PreTrainedModel:
    """The model on its device, its blocks in host memory where they are to be, or with a device_map on several.

    Raises:
        ValueError: the checkpoint is not whole, or the device_map left weights for the CPU or the disk, from where they
            cannot be compressed.
    """
    dtype = "auto" if source.dtype == "auto" else getattr(torch, source.dtype)
    model, _ = load_pretrained(
        source.name, AutoModelForCausalLM, dtype, weights=source.weights, revision=source.revision,
        trust_remote_code=source.trust_remote_code, device_map=source.device_map or placement(source),
    )  # fmt: skip
    if not hasattr(model, "generation_config"):  # a model's own code that is no GenerationMixin
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"--device_map {source.device_map}: the GPUs together do not hold {source.name}; without it, --blocks host "
            "computes it on one GPU with its decoder blocks in host memory, --stream with its blocks in files"
        )
    if source.blocks == "host":
        move_outside(model, source.device)
    return model.eval().requires_grad_(False)


def placement(source: ModelSource) -> dict[str, torch.device] | None:
    """Where from_pretrained puts a model that is not spread over devices: straight to its device, or in host memory."""
    return {"": source.device} if source.on_accelerator and source.blocks == "device" else None


class CompressibleModel:
    """A model in memory whose dense weights come back, in place, before it is compressed again.

    Args:
        keep_dense: hold a copy of the compressible weights; without it the model can be compressed once.
        how: how compressions are carried out.
        computed_on: device to which blocks are brought that are in host memory; None: they are where they are computed.
    Attributes:
        seconds: what the compression that the model has now took when it was made: calibration and the method, with
            what its strengths share, which is prepared once; 0 for the dense model.
    """

    def __init__(
        self, model: PreTrainedModel, how: Compression, keep_dense: bool, computed_on: torch.device | None = None
    ) -> None:
        self.model, self._how, self._computed_on = model, how, computed_on
        self.seconds = 0.0
        self._prepared: dict[tuple[str, str], tuple[Any, float]] = {}  # by compression and weight; with its seconds
        self._norms: dict[int, tuple[DenseNorms, float]] = {}  # of the dense model, by seed; with their seconds
        self.weights, self._blocks = decoder_weights(model), block_indices(model)
        self._dense = {name: weight.matrix.cpu().clone() for name, weight in self.weights.items()} if keep_dense else {}
        self._changed: list[str] = []  # names of the weights that are not dense
        self._made: tuple[tuple, dict[str, Quantized]] | None = None

    def storage(self) -> HostBlocks | None:
        """Brings the blocks to the device for one walk or one evaluation; None where they are on it."""
        if self._computed_on is None:
            return None
        return HostBlocks(decoder_blocks(self.model)[1], self._computed_on)

    def matrices(self) -> dict[str, Tensor]:
        """The weights that are compressed, by name."""
        return {name: weight.matrix for name, weight in self.weights.items()}

    def compress(self, cell: Cell, tokens: Tensor | None, processes: Processes = ALONE) -> dict[str, Quantized]:
        """Compress the dense model as the cell says, unless it is so already; returns what compress_weights does.

        Of several processes the main one does it, needs the tokens and gets what is returned; the others get its
        weights.
        """
        wanted = compressed_by(cell)
        if self._made is None or self._made[0] != wanted:
            self._made = None  # a compression that fails leaves nothing that looks made
            with processes.together():
                grids = self.compress_again(cell, tokens) if processes.is_main else {}
            processes.copy_from_main(self.matrices().values())
            self._made = wanted, grids
        return self._made[1]

    def compress_again(self, cell: Cell, tokens: Tensor | None) -> dict[str, Quantized]:
        """Put the dense weights back and compress them; see compress_weights for what is returned."""
        if self._changed:
            if not self._dense:
                raise ValueError("the model is compressed already, and its dense weights were not kept")
            for name in self._changed:
                self.weights[name].matrix.copy_(self._dense[name])
        compression = cell["compression"]
        self._changed, self.seconds = [], 0.0
        if compression == DENSE:
            return {}
        self._changed = chosen_of(cell, self._blocks)
        started, before, grids = self._clock(), 0.0, {}
        if compression == "magnitude" and cell["sparsity"] is not None and self._how.magnitude_scope == "global":
            matrices = {name: self.weights[name].matrix for name in self._changed}
            apply_masks(matrices, magnitude_masks(matrices, [cell["sparsity"]], "global")[0])
        elif compression in self._how.shared:
            before = self._compress_shared(cell, self._how.shared[compression])
        else:
            norms, before = self._dense_norms(cell, tokens)

            def ratios(names: Sequence[str]) -> dict[int, float]:
                return outlier_ratios(self.model, tokens, self._how, names, self.storage(), norms)

            grids = compress_weights(self.model, cell, tokens, self._how, self.storage(), norms, ratios)
        self.seconds = before + self._clock() - started
        return grids

    def _dense_norms(self, cell: Cell, tokens: Tensor | None) -> tuple[DenseNorms, float]:
        """The dense model's input norms, where they serve the cell, and the seconds that an earlier cell took for them.

        OWL reads them. So may a method that compresses one block alone: its inputs are those of the dense model, and
        one walk serves every block. A model that is compressed once has nothing to share.
        """
        read = is_owl(cell) or reads_dense_norms(cell["compression"], self._how, self._changed, self._blocks)
        if not self._dense or not read:
            return {}, 0.0
        if cell["seed"] in self._norms:
            return self._norms[cell["seed"]]
        started = self._clock()
        norms = dense_norms(self.model, tokens, self._how, self.storage())
        self._norms[cell["seed"]] = norms, self._clock() - started
        return norms, 0.0

    def _clock(self) -> float:
        return clock({matrix.device for matrix in self.matrices().values()})

    def _compress_shared(self, cell: Cell, strengths: Sequence[Strength]) -> float:
        """Compress every weight by the method's `shared`, which prepares each once for all `strengths`.

        Returns the seconds that an earlier strength took to prepare what is used here.
        """
        compression, strength = cell["compression"], strength_of(cell)
        shared, before = METHODS[compression].shared, 0.0

        def compress_linear(W: Tensor, inputs: None, name: str) -> Tensor:
            nonlocal before
            key = compression, name
            if key in self._prepared:
                before += self._prepared[key][1]
            else:
                started = self._clock()
                prepared = shared.prepare(W, strengths)
                self._prepared[key] = prepared, self._clock() - started
            return checked(shared.compress(W, self._prepared[key][0], strength), W)

        compress_blocks(self.model, None, compress_linear, storage=self.storage(), chosen=self._changed)
        return before


def save_compressed(
    folder: Path,
    model: PreTrainedModel,
    cell: Cell,
    run_identity: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write <folder>/model: weights, tokenizer and a card that says what was done."""
    save_model(folder / "model", model, tokenizer, {"README.md": model_card(cell, run_identity)})


def export(
    folder: Path, model: PreTrainedModel, grids: dict[str, Quantized], cell: Cell, run_identity: dict[str, Any],
    how: Compression, tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """Write <folder>/gptqmodel: the compressed model, its integers packed."""
    card = {"README.md": model_card(cell, run_identity, PACKED)}
    options = how.options
    save_packed(folder / how.export, model, grids, cell["bits"], options.group_size, options.symmetric, tokenizer, card)


def open_streamed(source: ModelSource, scratch: Path | None = None) -> StreamedBlocks:
    """The dense model, its blocks read from its files."""
    dtype = None if source.dtype == "auto" else getattr(torch, source.dtype)
    trust = source.trust_remote_code
    return StreamedBlocks(
        Path(source.name), None, dtype, trust_remote_code=trust, scratch=scratch, device=source.device
    )


def stream(
    folder: Path, cell: Cell, source: ModelSource, how: Compression, run_identity: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase, tokens: Tensor | None,
) -> tuple[StreamedBlocks, float | None]:  # fmt: skip
    """Write <folder>/model block by block, going on where a killed job stopped.

    Returns:
        The model opened for reading, and the seconds that its compression took, shards written: 0 for the dense model,
        None where a killed job made some blocks, or left no record of its seconds.
    """
    files, out = Path(source.name), folder / "model"
    record = out / SECONDS_FILE
    dtype = None if source.dtype == "auto" else getattr(torch, source.dtype)
    trust = source.trust_remote_code
    remove_converted(folder)
    if cell["compression"] == DENSE:
        return open_streamed(source, folder), 0.0
    job = records.recipe(run_identity)
    if StreamedBlocks.is_complete(out, job):
        seconds = json.loads(record.read_text()) if record.is_file() else None
        return StreamedBlocks(out, trust_remote_code=trust, scratch=folder, device=source.device), seconds
    storage = StreamedBlocks(files, out, dtype, job, trust, device=source.device)
    resumed = storage.progress["next"] > 0
    if tokens is None:  # else the walk looks itself
        check_replayed(storage.model, storage, how.precision)
    started = clock([])

    def ratios(names: Sequence[str]) -> dict[int, float]:
        dense = open_streamed(source, folder)
        return outlier_ratios(dense.model, tokens, how, names, dense)

    compress_weights(storage.model, cell, tokens, how, storage, ratios=ratios)
    seconds = None if resumed else clock([]) - started
    record.write_text(json.dumps(seconds))
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(model_card(cell, run_identity))
    return storage.complete(), seconds


def warn_of_unwritten(folders: Mapping[Path, Cell]) -> None:
    """Log which complete runs have no model, where --stream, which skips them too, would have written one."""
    written = {
        compressed_by(cell)
        for folder, cell in folders.items()
        if not run_folder.is_complete(folder) or (folder / "model").is_dir()
    }
    lacking = [
        folder
        for folder, cell in folders.items()
        if cell["compression"] != DENSE and compressed_by(cell) not in written
    ]
    if lacking:
        logger.warning("--stream writes no model of complete runs; without one: %d, such as %s; --overwrite writes it",
                       len(lacking), lacking[0])  # fmt: skip


def compression_facts(
    cell: Cell, weights: Iterable[tuple[str, Tensor]], model: PreTrainedModel | None = None
) -> dict[str, Any]:  # fmt: skip
    """What a compression left of the weights: the fraction that is zero and, at a rank, of the parameters.

    Args:
        weights: all of the decoder blocks, by name.
        model: that they are of; needed where the cell compresses some of them, or not all alike (shares.share_facts).
    Raises:
        ValueError: the cell's sparsity removed nothing.
    """
    counts: dict[str, tuple[int, int]] = {}
    blocks = None if model is None else block_indices(model)
    chosen = None if blocks is None else set(chosen_of(cell, blocks))
    factors = 0
    for name, matrix in weights:
        counts[name] = round(zero_fraction([matrix]) * matrix.numel()), matrix.numel()
        if cell["rank"] is not None:
            is_factored = chosen is None or name in chosen
            ratio = min(1.0, parameter_ratio(tuple(matrix.shape), cell["rank"])) if is_factored else 1.0
            factors += ratio * matrix.numel()
    zeros, total = (sum(part) for part in zip(*counts.values(), strict=True))
    facts = {"measured_sparsity": zeros / total} | ({"parameter_ratio": factors / total} if factors else {})
    facts |= {} if blocks is None else share_facts(cell, blocks, counts)
    check_removed(cell["sparsity"], facts.get("chosen_sparsity", facts["measured_sparsity"]))
    return facts


def model_card(cell: Cell, run_identity: dict[str, Any], stored: str = STORED_DENSE) -> str:
    """README.md of a saved model: from what, by what, with which options."""
    strength = strength_of(cell)
    what = f"{cell['compression']}, {strength.kind} {strength.value}" if strength else "not compressed"
    note = "N weights are kept of every M inputs. " if cell["nm_ratio"] else ""
    options = "\n".join(f"| {name} | {value} |" for name, value in run_identity.items() if value is not None)
    return f"""# {run_identity["model_name_or_path"]}: {what}

Made from the model named above by the experiments of the Junk DNA Hypothesis (Yin et al., ICML 2024). Only the linear
weights inside the decoder blocks were changed. {note}{stored}

| option | value |
|---|---|
{options}
"""
