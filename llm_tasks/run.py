"""From a command line to written runs, in stages: what is asked for, what it needs, then every cell.

    argv -> options.parse -> plan.all_cells -> prepare -> of every cell: compress, measure on all levels, write

A compressed model is measured in all settings before the next is made.
"""

import functools
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness import run_folder
from harness.cells import Cell, check_folders, check_listed, output_folders, pending_runs, run_cells, start_logging
from harness.commands import print_commands
from harness.device import device_name, keep_freed_memory, peak_memory, reset_peak_memory, use_device
from harness.models import load_tokenizer, quiet_libraries, refuse_unknown_ids
from llm_tasks import option_values, options, plan
from llm_tasks.checkpoints import checkpoint_models
from llm_tasks.checkpoints.checkpoint_models import Opened
from llm_tasks.checkpoints.origin import once_quantized
from llm_tasks.compressed_model import (
    Calibration,
    CompressibleModel,
    Compression,
    ModelSource,
    check_shapes,
    compression_facts,
    export,
    load_model,
    max_length,
    open_streamed,
    save_compressed,
    skeleton,
    stream,
    warn_of_unwritten,
)
from llm_tasks.compressions import compressed_by, is_calibrated
from llm_tasks.engine import window_losses
from llm_tasks.engine.encoding import EncodedLevel
from llm_tasks.engine.processes import Processes, join, processes_here
from llm_tasks.engine.ways import Ways
from llm_tasks.evaluation import Evaluation, Reading, encode, engine_ways, measure, report_levels, warn_of_chance
from llm_tasks.levels import Setting
from llm_tasks.methods import CHECKPOINT, DENSE
from llm_tasks.options import Asked
from llm_tasks.resources import LAYOUTS, Memory, choose_layout, memory_needed, report_plan, walk_costs
from llm_tasks.shares import check_choices, is_owl
from pruning.blocks import BlockStorage, StreamedBlocks
from pruning.walk import WalkCost

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """All that is known before data and a model are loaded.

    Attributes:
        folders: the cell of every run's folder.
        identities: by folder, what tells its run from others.
        values: of every setting, the options that its functions read.
        model: without weights.
        costs: of the walks, by statistic.
        memory: what the job needs, and where.
        several: whether several compressed models are made.
        dtype: of the weights.
        max_length: tokens that the model takes at once.
        checkpoints: models that were compressed elsewhere, by name.
    """

    asked: Asked
    source: ModelSource
    how: Compression
    folders: dict[Path, Cell]
    identities: dict[Path, dict[str, Any]]
    values: dict[int | str, Any]
    calibrated: Calibration
    model: PreTrainedModel
    costs: dict[str | None, WalkCost]
    memory: Memory
    several: bool
    dtype: torch.dtype
    max_length: int
    checkpoints: dict[str, Opened]

    def pending(self) -> dict[Path, Cell]:
        """The runs that are to be computed."""
        return pending_runs(self.folders, self.asked.given["overwrite"])


class Compressed(NamedTuple):
    """A compressed model as it is measured.

    Fields:
        storage: brings its blocks to the device; None where they are on it.
        facts: what was left of the weights.
    """

    model: PreTrainedModel
    storage: BlockStorage | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Job(Planned):
    """All that is known before a model is loaded.

    Attributes:
        measured: names of the settings of the runs that were not complete at the start.
        data: of a setting, its levels as tokens by seed; for perplexity the windows. Read when first asked for.
        calibration_tokens: of a seed, the windows that a run is calibrated on. Drawn when first asked for.
    """

    reading: Reading | None
    processes: Processes
    tokenizer: PreTrainedTokenizerBase
    measured: tuple[int | str, ...]
    data: Callable[[int | str], Any]
    calibration_tokens: Callable[[int], Tensor]

    @property
    def streams(self) -> bool:
        return self.asked.given["stream"]

    @functools.cached_property
    def streamed(self) -> "dict[tuple, Compressed]":
        """The model that was streamed last, by what tells it from others: other settings measure it too."""
        return {}

    @functools.cached_property
    def checkpoint(self) -> dict[str, tuple[PreTrainedModel, dict[str, Any]]]:
        """The checkpoint that was loaded last and its facts, by name: other settings measure it too."""
        return {}

    @functools.cached_property
    def proven(self) -> dict[tuple[int | str, int], tuple[Ways, Ways]]:
        """By setting and seed, the engine's fast paths as they are proven on a dense model that is in memory."""
        return {}

    @functools.cached_property
    def dense(self) -> PreTrainedModel:
        """The dense model, to compute beside the compressed one."""
        return load_model(self.source)

    @functools.cached_property
    def streamed_dense(self) -> StreamedBlocks:
        """The dense model, read from its files."""
        return open_streamed(self.source)

    @functools.cached_property
    def streamed_ways(self) -> dict[tuple[int | str, int], tuple[Ways, Ways]]:
        """By setting and seed, the engine's fast paths as they are proven on the dense model, filled as needed."""
        return {}


def run(argv: Sequence[str] | None, description: str, settings: Mapping[int | str, Setting], own: int | str) -> int:
    """Compute every run of a command line that is not complete yet; returns the exit code.

    Args:
        description: the script's docstring.
        settings: all that the script can measure in, by name.
        own: the one that it measures in by itself.
    """
    start_logging()
    quiet_libraries()
    keep_freed_memory()
    gc.freeze()  # what is imported stays: looking through it again takes longer than all garbage is worth
    parser = options.make_parser(description, settings, own)
    try:
        asked = options.parse(parser, argv, settings, own)
        folders = output_folders(asked.given["output_dir"], plan.all_cells(asked.given, asked.settings.values()))
        if asked.given["list_cells"] or asked.given["group_by"]:
            list_cells(asked, folders)
            return 0
        planned = plan_job(asked, folders)
        if asked.given["dry_run"]:
            print_plan(planned)
            return 0
        job = prepare(planned)
    except ValueError as error:
        parser.error(str(error))
    except TemplateError as error:  # jinja2's, of the tokenizer's own file
        name = asked.given["model_name_or_path"]
        parser.error(f"--chat_template: the template of {name} is damaged: {error}")
    loaded = functools.cache(functools.partial(load_dense, job))
    processes, overwrite = job.processes, asked.given["overwrite"]
    share = processes.share if processes.count > 1 else None
    compute = functools.partial(compute_run, job, loaded)
    failed = run_cells(job.identities, compute, overwrite, share, processes.is_main, fails_together=True)
    if processes.is_main:
        print(f"{len(folders) - failed} of {len(folders)} runs are complete: {asked.given['output_dir']}")
    processes.leave()
    return 1 if failed else 0


def list_cells(asked: Asked, folders: Mapping[Path, Cell]) -> None:
    """Print one command per cell, or with --group_by per group of cells.

    Raises:
        ValueError: --group_by cannot be used, or a complete run was made with other options.
    """
    given = asked.given
    check_listed(folders, functools.partial(plan.options_of, asked), given["overwrite"])
    print_commands(
        given["list_cells"], folders, given["output_dir"], functools.partial(plan.cell_options, asked),
        given["group_by"], functools.partial(plan.computed_together, asked),
    )  # fmt: skip


def plan_job(asked: Asked, folders: dict[Path, Cell]) -> Planned:
    """Check all that can be checked before a model or data are loaded.

    Raises:
        ValueError: says what cannot be done.
    """
    given = asked.given
    options.check_together(given)
    source, how = option_values.model_source(given), option_values.compression(given)
    use_device(source.device)
    model = skeleton(source)
    exported = given["bits"] if given["export"] else ()
    check_choices(model, folders.values(), how.allocation_files)
    check_shapes(model, folders.values(), exported, given["group_size"])
    length = max_length(model)
    calibrated = option_values.calibration_of(given, length)
    values = {
        name: option_values.values_of(setting, given, typed=asked.typed, max_length=length)
        for name, setting in asked.settings.items()
    }
    opened = checkpoint_models.open_all(given["checkpoint"], model, source) if given["checkpoint"] else {}
    files = {name: checkpoint.files for name, checkpoint in opened.items()}
    identities = plan.identify(asked, folders, values, model, source, how, files)
    check_folders(identities, given["overwrite"])
    pending = pending_runs(folders, given["overwrite"]).values()
    several = len({compressed_by(cell) for cell in pending if cell["compression"] != CHECKPOINT}) > 1
    shape, dtype = (calibrated.num_samples, calibrated.seq_len), source.dtype_of(model.config)
    statistics = ["sq_norms"] if any(map(is_owl, folders.values())) else []
    costs = walk_costs(model, given["compression"], shape, dtype, how.tokens_per_batch, statistics)
    memory = plan_memory(asked, values, source, how, model, costs.values(), several, bool(pending))
    source = source.laid_out(memory.layout)
    return Planned(
        asked, source, how, folders, identities, values, calibrated, model, costs, memory, several, dtype, length,
        opened,
    )  # fmt: skip


def prepare(planned: Planned) -> Job:
    """Join the processes of the job, and read what the pending runs are to measure.

    Raises:
        ValueError: says what cannot be read.
    """
    asked, source = planned.asked, planned.source
    given, length = asked.given, planned.max_length
    reading = None if "perplexity" in asked.settings else option_values.reading(given)
    processes = join(source.device)
    tokenizer = load_tokenizer(source.name, source.trust_remote_code, source.revision)

    @functools.cache
    def data(name: int | str) -> Any:
        return prepare_data(asked.settings[name], planned.values[name], given["seed"], tokenizer, length, reading)

    tokens = functools.cache(functools.partial(planned.calibrated.tokens, tokenizer))
    # What pending runs need is read now, so that what cannot be read is refused before a model loads.
    pending = planned.pending()
    measured = tuple(dict.fromkeys(cell["setting"] for cell in pending.values()))
    texts = [data(name) for name in measured]
    if opened := [planned.checkpoints[cell[CHECKPOINT]] for cell in pending.values() if cell[CHECKPOINT]]:
        checkpoint_models.check_pending(opened, tokenizer, texts, source.trust_remote_code)
    for seed in {cell["seed"] for cell in pending.values() if is_calibrated(cell)}:
        tokens(seed)
    if processes.is_main:
        report_plan(planned.model, planned.costs, source.device)
        if given["stream"] and not given["overwrite"]:
            warn_of_unwritten(planned.folders)
        if planned.memory.layout == "host":
            logger.info("the decoder blocks stay in host memory; one at a time is brought to %s", source.device)
    return Job(
        **vars(planned), reading=reading, processes=processes, tokenizer=tokenizer, measured=measured, data=data,
        calibration_tokens=tokens,
    )  # fmt: skip


def print_plan(planned: Planned) -> None:
    """What --dry_run says: the runs, where the model will be, and what it takes of memory and disk."""
    source, pending = planned.source, planned.pending()
    weights = sum(weight.numel() for weight in planned.model.parameters())
    number = f"{weights / 1e9:.2f} billion" if weights >= 1e9 else f"{weights / 1e6:.1f} million"
    print(f"{source.name}: {number} weights in {str(planned.dtype).removeprefix('torch.')}")
    print(f"{len(planned.folders)} runs, of which {len(pending)} are missing: {planned.asked.given['output_dir']}")
    names = "; ".join(f"{device}, {device_name(device)}" for device in source.devices)
    where = LAYOUTS[planned.memory.layout] if source.on_accelerator or source.blocks == "files" else "in memory"
    print(f"device: {names}; decoder blocks: {where}")
    print("\n".join(planned.memory.described()))
    if planned.memory.layout != "device":
        state = planned.model.config.get_text_config().hidden_size * planned.dtype.itemsize
        print(f"  {state * 1000 / 1e6:8.2f} MB  more for every 1,000 tokens that are evaluated: their hidden states")
    compressed = {compressed_by(cell) for cell in pending.values() if cell["compression"] != DENSE}
    models = compressed if source.blocks == "files" else pending if planned.asked.given["save_model"] else ()
    if models:
        print(f"disk: {len(models)} models, {len(models) * weights * planned.dtype.itemsize / 1e9:.1f} GB")


def plan_memory(
    asked: Asked, values: Mapping[int | str, Any], source: ModelSource, how: Compression, model: PreTrainedModel,
    costs: Iterable[WalkCost], several: bool, is_pending: bool,
) -> Memory:  # fmt: skip
    """What the job needs, with its blocks in the first place that holds them.

    Args:
        values: of every setting.
        model: without weights.
        several: whether several compressed models are made.
        is_pending: whether anything is made at all; else nothing needs to be free.
    Raises:
        ValueError: none holds them.
    """
    given, costs = asked.given, list(costs)
    loaded_whole = given.get("kl") or given["checkpoint"]
    if given["stream"]:
        layouts = ["files"]
    elif loaded_whole or not source.on_accelerator or given["blocks"] == "device":
        layouts = ["device"]
    else:
        layouts = ["host"] if given["blocks"] == "host" else ["device", "host"]
    shared_rank = max(given["rank"], default=0) if how.shared else 0
    readers = {reader for name, setting in asked.settings.items() for reader in setting.readers(values[name])}
    tokens = option_values.tokens_scored_at_once(given["tokens_per_batch"], source.device)
    if readers == {"perplexity"}:
        tokens = how.tokens_per_batch

    def needed(layout: str) -> Memory:
        return memory_needed(
            model, source.dtype_of(model.config), layout, source.on_accelerator, costs, tokens,
            whole_logits=readers == {"perplexity"}, activations=given["activations"], several=several,
            shared_rank=shared_rank, exports=bool(how.export), processes=processes_here(),
            writes_answers="answer" in readers, beside_dense=given.get("kl", False),
        )  # fmt: skip

    return choose_layout(layouts, needed, source.devices, source.name) if is_pending else needed(layouts[0])


def prepare_data(
    setting: Setting, values: Any, seeds: Sequence[int], tokenizer: PreTrainedTokenizerBase, length: int,
    reading: Reading | None,
) -> Any:  # fmt: skip
    """What a setting measures on: the levels of every seed as tokens, or the windows of a text (reading is None).

    Args:
        seeds: of which only the first counts where the setting's levels do not depend on them.
        length: tokens that the model takes.
    """
    data = setting.load(values)
    if reading is None:
        return setting.build(data, values, seeds[0], tokenizer)
    built = {
        seed: setting.build(data, values, seed, tokenizer)
        for seed in dict.fromkeys(seeds if setting.seeded else seeds[:1])
    }
    found = encode(built, tokenizer, length, reading)
    report_levels(setting.name, found[seeds[0]])
    return found


def load_dense(job: Job) -> CompressibleModel:
    """The dense model; the engine's fast paths are proven on it, since a broken model may not tell positions apart."""
    job.checkpoint.clear()  # one of the two is in memory
    model = load_model(job.source)
    refuse_unknown_ids(model, job.tokenizer)
    computed_on = job.source.device if job.source.blocks == "host" else None
    keep_dense = job.several and job.processes.is_main
    dense = CompressibleModel(model, job.how, keep_dense=keep_dense, computed_on=computed_on)
    if job.reading is not None:
        for name in job.measured:
            for seed, levels in job.data(name).items():
                job.proven[name, seed] = engine_ways(model, levels, job.reading.plain, dense.storage())
    return dense


def compute_run(job: Job, loaded: Callable[[], CompressibleModel], folder: Path) -> None:
    """Compress, measure and write the run of one folder."""
    cell, processes, devices = job.folders[folder], job.processes, job.source.devices
    started = time.monotonic()
    reset_peak_memory(devices)
    with processes.together():
        if processes.is_main:
            run_folder.start_run(folder, job.identities[folder], environment(job))
        if cell[CHECKPOINT]:
            loaded.cache_clear()
            opened = job.checkpoints[cell[CHECKPOINT]]
            model, facts = checkpoint_models.in_memory(job.checkpoint, opened, job.source, job.model, job.tokenizer)
            made = Compressed(model, None, facts)
        dense = None if job.streams or cell[CHECKPOINT] else loaded()
    if not cell[CHECKPOINT]:
        made = compress_streamed(job, folder) if dense is None else compress_loaded(job, dense, folder)
    evaluated_from = time.monotonic()
    found = measure_model(job, made, cell)
    if not processes.is_main:
        return
    given = job.asked.given
    result = {
        **plan.describe(cell, job.identities[folder], given["model_name_or_path"], given["magnitude_scope"]),
        **made.facts,
        **found.facts,
        "parent_quantized": once_quantized(job.source.name, job.source.weights, job.source.revision),
        "evaluate_seconds": time.monotonic() - evaluated_from,
        "seconds": time.monotonic() - started,
        "peak_memory_bytes": peak_memory(devices),
        "levels": found.levels,
    }
    run_folder.write_run(folder, result, found.items)


def environment(job: Job) -> dict[str, Any]:
    """What a run records of when, where and with what it is made."""
    devices = job.source.devices
    return run_folder.describe_environment(
        ", ".join(map(str, devices)), device_name=", ".join(map(device_name, devices)), dtype=str(job.dtype),
        precision=job.how.precision, threads=torch.get_num_threads(), stream=job.streams,
    )  # fmt: skip


def compress_streamed(job: Job, folder: Path) -> Compressed:
    """The cell's model, written block by block."""
    cell = job.folders[folder]
    if compressed_by(cell) not in job.streamed:
        job.streamed.clear()
        tokens = job.calibration_tokens(cell["seed"]) if is_calibrated(cell) else None
        blocks, seconds = stream(folder, cell, job.source, job.how, job.identities[folder], job.tokenizer, tokens)
        refuse_unknown_ids(blocks.model, job.tokenizer)
        facts = {**compression_facts(cell, blocks.weights(), blocks.model), "compress_seconds": seconds}
        job.streamed[compressed_by(cell)] = Compressed(blocks.model, blocks, facts)
    return job.streamed[compressed_by(cell)]


def compress_loaded(job: Job, dense: CompressibleModel, folder: Path) -> Compressed:
    """The cell's model in memory, saved and exported where that is asked for."""
    cell, run_identity, processes = job.folders[folder], job.identities[folder], job.processes
    tokens = job.calibration_tokens(cell["seed"]) if is_calibrated(cell) and processes.is_main else None
    grids = dense.compress(cell, tokens, processes)
    facts = {**compression_facts(cell, dense.matrices().items(), dense.model), "compress_seconds": dense.seconds}
    with processes.together():
        if job.asked.given["save_model"] and processes.is_main:
            save_compressed(folder, dense.model, cell, run_identity, job.tokenizer)
        if grids:
            export(folder, dense.model, grids, cell, run_identity, job.how, job.tokenizer)
    return Compressed(dense.model, dense.storage(), facts)


def measure_model(job: Job, made: Compressed, cell: Cell) -> Evaluation:
    """The cell's model measured in its setting."""
    setting, data = job.asked.settings[cell["setting"]], job.data(cell["setting"])
    if job.reading is None:
        return measure_perplexity(job, made, cell, data)
    seed = cell["seed"] if setting.seeded else job.asked.given["seed"][0]
    levels: list[EncodedLevel] = data[seed]
    ways = streamed_ways(job, cell["setting"], seed) if job.streams else None
    if cell[CHECKPOINT]:
        ways = checkpoint_models.ways_of(made.model, levels, job.reading.plain, job.proven.get((cell["setting"], seed)))
    found = measure(made.model, job.tokenizer, levels, job.reading, job.processes, ways, made.storage)
    if cell["compression"] == DENSE and job.processes.is_main:
        warn_of_chance(setting.name, found.levels)
    # A user's task goes by its own name: that of its levels' data set.
    task = levels[0].level.dataset if setting.name == "own_task" else setting.task
    return found._replace(facts={"task": task, **found.facts})


def streamed_ways(job: Job, setting: int | str, seed: int) -> tuple[Ways, Ways]:
    """The engine's fast paths on a setting's levels, proven on the dense model: see load_dense."""
    if (setting, seed) not in job.streamed_ways:
        blocks = job.streamed_dense
        levels = job.data(setting)[seed]
        job.streamed_ways[setting, seed] = engine_ways(blocks.model, levels, job.reading.plain, blocks)
    return job.streamed_ways[setting, seed]


def measure_perplexity(job: Job, made: Compressed, cell: Cell, windows: Tensor) -> Evaluation:
    """The perplexity of a model on the windows of a text; with --kl also its distance from the dense model."""
    text, tokens, precision = job.asked.given["text"], job.how.tokens_per_batch, job.how.precision
    if made.storage is None:
        dense = job.dense if job.asked.given["kl"] and cell["compression"] != DENSE else None
        items = window_losses.measured_in_memory(made.model, windows, tokens, precision, job.processes, dense)
    else:
        items = {"window_loss": window_losses.losses_blockwise(made.model, made.storage, windows, tokens, precision)}
    level = window_losses.describe_perplexity(text, items, made.model.config.get_text_config().vocab_size)
    return Evaluation([level], items, {"task": text})
