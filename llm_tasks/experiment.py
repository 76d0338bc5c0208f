"""What the scripts without training share: one load, every compression, the measurement, the written run."""

import argparse
import functools
import gc
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness import run_folder
from harness.cells import Cell, check_folders, output_folders, run_cells, start_logging
from harness.commands import print_commands, values
from harness.content import model_content
from harness.device import (
    available_memory,
    device_name,
    keep_freed_memory,
    peak_memory,
    reset_peak_memory,
)
from harness.models import load_tokenizer, quiet_libraries, refuse_unknown_ids
from llm_tasks import arguments
from llm_tasks.arguments import DENSE, device_of, is_calibrated
from llm_tasks.compression import CompressibleModel, export, load_model, measure, save_compressed, stream
from llm_tasks.engine.processes import Processes, join, processes_here
from llm_tasks.methods import METHODS
from pruning import calibration
from pruning.layers import decoder_weights
from pruning.streaming import StreamedBlocks
from pruning.walk import WalkCost, walk_cost

logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """What a setting measured on one model: run_folder.LEVEL_KEYS per level, outcome per item, and anything else."""

    levels: list[dict[str, Any]]
    items: dict[str, np.ndarray]
    facts: dict[str, Any]


class Setting(NamedTuple):
    """One script's part of an experiment.

    Fields:
        name: as results and folders call it.
        identify: from the options, what tells its data from other data (hashes, commits).
        prepare: its data, from the options, the tokenizer and the tokens that the model takes; ValueError where they
            are not usable.
        evaluate: the measurement, from a model, its tokenizer, the data, the cell, the options, and the processes that
            share the work.
        readers: from the options, how it reads answers off the model (engine/ways.py, arithmetic).
        evaluate_streamed: the same for a model of which one block is in memory; None if there is no such way.
        prove: tries, on the dense model with the data, which of the engine's fast paths compute what the model does.
        seeded: whether the seed changes more than the calibration text.
        ignored: options that do not change what it computes.
        unobeyed: options that are other settings' alone.
    """

    name: str | int
    identify: Callable[[argparse.Namespace], dict[str, Any]]
    prepare: Callable[[argparse.Namespace, PreTrainedTokenizerBase, int], Any]
    evaluate: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Any, Cell, argparse.Namespace, Processes], Evaluation]
    readers: Callable[[argparse.Namespace], tuple[str, ...]]
    evaluate_streamed: Callable[[StreamedBlocks, Any, Cell, argparse.Namespace], Evaluation] | None = None
    prove: Callable[[PreTrainedModel, Any, argparse.Namespace], None] | None = None
    seeded: bool = False
    ignored: tuple[str, ...] = ()
    unobeyed: tuple[str, ...] = ()


def run(parser: argparse.ArgumentParser, args: argparse.Namespace, settings: Sequence[Setting]) -> int:
    """Compute every cell of the settings that is not complete yet; returns the exit code.

    A compressed model is measured in all settings before the next is made.
    """
    start_logging()
    quiet_libraries()
    keep_freed_memory()
    gc.freeze()  # what is imported stays: looking through it again takes longer than all garbage is worth
    named = {setting.name: setting for setting in settings}
    try:
        arguments.check_strengths(args)
        cells = all_cells(args, settings)
        models: dict[tuple, int] = {}  # in the order in which they first appear
        for cell in cells:
            models.setdefault(arguments.compression_of(cell), len(models))
        cells.sort(key=lambda cell: models[arguments.compression_of(cell)])
        folders = output_folders(args.output_dir, cells)
        if args.list_cells or args.group_by:
            unobeyed = {setting.name: setting.unobeyed for setting in settings}
            options = functools.partial(arguments.cell_options, args, parser, unobeyed)
            print_commands(
                args.list_cells, folders, args.output_dir, options,
                args.group_by, functools.partial(combinations, args, settings),
            )  # fmt: skip
            return 0
        arguments.check_options(args, all(setting.evaluate_streamed for setting in settings))
        skeleton = arguments.check_model(args)
        hashes = input_hashes(args, folders.values())
        inputs = {setting.name: {**setting.identify(args), **hashes} for setting in settings}
        computed = {setting.name: arguments.computation(args, skeleton, setting.readers(args)) for setting in settings}
        defaults = {name: parser.get_default(name) for name in vars(args)}
        identities = {
            folder: arguments.identity(
                args, cell, inputs[cell["setting"]], computed[cell["setting"]], named[cell["setting"]].ignored, defaults
            )
            for folder, cell in folders.items()
        }
        check_folders(identities, args.overwrite)
        processes = join(device_of(args))
        tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code, args.revision)
        max_length = arguments.max_length(skeleton)
        pending = [cell for folder, cell in folders.items() if args.overwrite or not run_folder.is_complete(folder)]

        @functools.cache
        def data(setting: str | int) -> Any:
            return named[setting].prepare(args, tokenizer, max_length)

        for setting in dict.fromkeys(cell["setting"] for cell in pending):
            data(setting)
        windows = functools.cache(
            functools.partial(calibration_windows, args, tokenizer, calibration_shape(args, skeleton))
        )
        for seed in {cell["seed"] for cell in pending if is_calibrated(cell)}:
            windows(seed)
        if not args.stream:
            check_memory(args, skeleton, several=len(models) > 1)
    except ValueError as error:
        parser.error(str(error))
    except TemplateError as error:  # jinja2's, of the tokenizer's own file
        parser.error(f"--chat_template: the template of {args.model_name_or_path} is damaged: {error}")
    if processes.is_main:
        report_plan(args, skeleton)

    @functools.cache
    def loaded() -> CompressibleModel:
        model = load_model(args)
        refuse_unknown_ids(model, tokenizer)
        for name in dict.fromkeys(cell["setting"] for cell in pending):
            if named[name].prove:  # before anything is compressed: a broken model may not tell positions apart
                named[name].prove(model, data(name), args)
        return CompressibleModel(model, keep_dense=len(models) > 1 and processes.is_main)

    def compute(folder: Path) -> None:
        cell, run_identity, device = folders[folder], identities[folder], device_of(args)
        setting, started = named[cell["setting"]], time.monotonic()
        reset_peak_memory(device)
        with processes.together():
            if processes.is_main:
                run_folder.start_run(folder, run_identity, environment(args, skeleton))
            tokens = windows(cell["seed"]) if is_calibrated(cell) and processes.is_main else None
            if not args.stream:
                loaded()
        if args.stream:
            model = stream(folder, cell, args, run_identity, tokenizer, tokens)
            refuse_unknown_ids(model.model, tokenizer)
            facts = measure(cell, model.weights())
        else:
            model = loaded().model
            grids = loaded().compress(cell, tokens, args, processes)
            facts = measure(cell, ((name, weight.matrix) for name, weight in loaded().weights.items()))
            with processes.together():
                if args.save_model and processes.is_main:
                    save_compressed(folder, loaded(), cell, run_identity, tokenizer)
                if grids:
                    export(folder, model, grids, cell, run_identity, args, tokenizer)
        compressed = time.monotonic()
        if args.stream:
            found = setting.evaluate_streamed(model, data(setting.name), cell, args)
        else:
            found = setting.evaluate(model, tokenizer, data(setting.name), cell, args, processes)
        if not processes.is_main:
            return
        result = {
            **arguments.describe(cell, run_identity, args),
            **facts,
            **found.facts,
            "compress_seconds": compressed - started,
            "evaluate_seconds": time.monotonic() - compressed,
            "seconds": time.monotonic() - started,
            "peak_memory_bytes": peak_memory(device),
            "levels": found.levels,
        }
        run_folder.write_run(folder, result, found.items)

    share = processes.share if processes.count > 1 else None
    failed = run_cells(identities, compute, args.overwrite, share, processes.is_main, fails_together=True)
    if processes.is_main:
        print(f"{len(folders) - failed} of {len(folders)} runs are complete: {args.output_dir}")
    processes.leave()
    return 1 if failed else 0


def environment(args: argparse.Namespace, model: PreTrainedModel) -> dict[str, Any]:
    """What a run records of where it is made; `model` may be without weights."""
    device = device_of(args)
    return run_folder.describe_environment(
        str(device), device_name=device_name(device), dtype=str(arguments.dtype_of(args, model)),
        precision=arguments.precision_of(args), threads=torch.get_num_threads(),
    )  # fmt: skip


def all_cells(args: argparse.Namespace, settings: Iterable[Setting]) -> list[Cell]:
    return [cell for setting in settings for cell in arguments.cells(args, setting.name, setting.seeded)]


def combinations(args: argparse.Namespace, settings: Iterable[Setting], some: list[Cell]) -> list[Cell]:
    """All cells that one command computes which says the settings, compressions, strengths and seeds of some cells."""
    named = set(values(some, "setting"))
    options = argparse.Namespace(**{**vars(args), **arguments.varied(some)})
    return all_cells(options, [setting for setting in settings if setting.name in named])


def input_hashes(args: argparse.Namespace, cells: Iterable[Cell]) -> dict[str, str]:
    """What the model and the calibration text are by their content: hashes of files, commits of the hub."""
    revision, weights = args.revision, args.weights
    model = model_content(args.model_name_or_path, revision, weights, args.trust_remote_code)
    if not any(map(is_calibrated, cells)):
        return model
    return model | calibration.source_content("calibration", args.calibration, data_dir=args.data_dir)


def calibration_shape(args: argparse.Namespace, model: PreTrainedModel) -> tuple[int, int]:
    """Number of windows and tokens in each."""
    return args.nsamples, args.calibration_length or min(2048, arguments.max_length(model))


def costs(args: argparse.Namespace, model: PreTrainedModel) -> dict[str, WalkCost]:
    """What a walk takes, by what it reads of the inputs; `model` may be without weights."""
    statistics = {METHODS[name].statistic for name in args.compression if name != DENSE} - {None}
    shape, dtype = calibration_shape(args, model), arguments.dtype_of(args, model)
    tokens = arguments.tokens_per_batch_of(args)
    return {name: walk_cost(model, shape, name, dtype, tokens) for name in sorted(statistics)}


def check_memory(args: argparse.Namespace, model: PreTrainedModel, several: bool) -> None:
    """Refuse, before it is loaded, a model that does not fit into memory with all that is kept beside it.

    Raises:
        ValueError: says how much is needed and free, and the way out.
    """
    width = arguments.dtype_of(args, model).itemsize
    needed = sum(parameter.numel() for parameter in model.parameters()) * width
    needed += max((cost.bytes for cost in costs(args, model).values()), default=0)
    compressible = sum(weight.matrix.numel() for weight in decoder_weights(model).values())
    if args.rank and any(arguments.shared_strengths(args, name) for name in args.compression):
        # the factors of the largest rank are kept, in float32
        shapes = [weight.matrix.shape for weight in decoder_weights(model).values()]
        needed += sum(min(max(args.rank), *shape) * sum(shape) * 4 for shape in shapes)
    if several:  # the dense weights are kept
        needed += compressible * width
    if args.export:  # a byte each before they are packed, and up to one after
        needed += compressible * 2
    if device_of(args).type == "cpu":  # the processes of a job share it; each has a GPU of its own
        needed *= processes_here()
    free = available_memory(device_of(args), all_devices=bool(args.device_map))
    if needed > free:
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB "
            "are free; one run alone keeps no dense copy, and perplexity.py --stream compresses block by block"
        )


def report_plan(args: argparse.Namespace, model: PreTrainedModel) -> None:
    """Log which weights are compressed, and what one compression will cost."""
    weights = decoder_weights(model)
    counts: dict[str, int] = {}
    for weight in weights.values():
        kind = weight.name.partition("[")[0].removesuffix(".weight").rpartition(".")[2]
        counts[kind] = counts.get(kind, 0) + 1
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    total = sum(weight.matrix.numel() for weight in weights.values())
    logger.info("compressible: %d weights in %d matrices of the decoder blocks (%s)", total, len(weights), listed)
    for name, cost in costs(args, model).items():
        speed = cost.measured_flops_per_second(device_of(args))
        logger.info(
            "a compression that reads %s: %.1f TFLOP, about %.1f minutes at the %.0f GFLOP/s of a product here, "
            "%.2f GB beside the model", name, cost.flops / 1e12, cost.flops / speed / 60, speed / 1e9, cost.bytes / 1e9,
        )  # fmt: skip


def calibration_windows(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, shape: tuple[int, int], seed: int
) -> Tensor:
    return calibration.calibration_tokens(
        tokenizer, args.calibration, *shape, seed, windows=args.calibration_windows,
        text_field=args.calibration_field, data_dir=args.data_dir,
    )  # fmt: skip
