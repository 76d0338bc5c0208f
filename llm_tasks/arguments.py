"""The command line of the scripts without training: options, what is refused, the cells that several values make."""

import argparse
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from harness import records
from harness.cells import Cell
from harness.commands import group_names, values
from harness.device import best_precision, device_named
from harness.model_files import check_checkpoint_files
from harness.models import add_model_options, longest_input, meta_model, stored_dtype
from harness.options import checked, filled, filled_path, folder_template, number, positive
from llm_tasks.engine import ways as engine
from llm_tasks.engine.cpu import LANE_TOKENS
from llm_tasks.engine.processes import job_size
from llm_tasks.methods import METHODS, STRENGTHS, Options, Strength, check_methods
from pruning import calibration, magnitude, walk
from pruning.layers import decoder_weights
from pruning.nm import parse_nm
from quantization.gptqmodel_export import check_exportable

logger = logging.getLogger(__name__)

DENSE = "dense"
TOKENS_PER_BATCH, TOKENS_PER_BATCH_CPU = 4096, 2048  # more are no faster on a processor, and take memory
MOST_LANES = 8  # by default: what many threads compute side by side would fill the memory
METHOD_OPTIONS = tuple(Options.__dataclass_fields__)


def nm_ratio(text: str) -> str:
    parse_nm(text)
    return text


def group_size(text: str) -> int:
    if text != "-1" and (not (text.isascii() and text.isdigit()) or int(text) == 0):
        raise ValueError(f"{text!r} is neither a positive number of inputs nor -1 (a whole row)")
    return int(text)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that all scripts share, in groups; a script adds its own."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        check_methods(METHODS)
    except ValueError as error:
        parser.error(str(error))
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", type=filled, required=True,
        help="hub id or folder of a decoder language model (safetensors)")  # fmt: skip
    add_model_options(add)
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights, computed with and saved; auto: the checkpoint's")  # fmt: skip
    add("--precision", choices=("auto", "no", "bf16"), default="auto",
        help="of a float32 model's matrix products; auto: bf16 where the processor or GPU computes in it")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto: the accelerator that is there, else the CPU")
    add("--device_map", choices=("auto",),
        help="auto: spread a model that one GPU does not hold over all GPUs of the machine")  # fmt: skip

    add = parser.add_argument_group("compression").add_argument
    add("--compression", nargs="+", choices=(DENSE, *METHODS), default=[DENSE], metavar="NAME",
        help=f"{DENSE}, {', '.join(METHODS)}")  # fmt: skip
    add("--sparsity", nargs="+", type=number(float, 0, 1, open_high=True), default=[], metavar="S",
        help="fraction(s) of the weights of the decoder blocks to prune, [0, 1)")  # fmt: skip
    add("--nm_ratio", nargs="+", type=checked(nm_ratio), default=[], metavar="N:M",
        help="N weights are KEPT in every M consecutive inputs, 1 <= N < M")  # fmt: skip
    add("--bits", nargs="+", type=number(int, 2, 16), default=[], metavar="B", help="bits per weight, 2 to 16")
    add("--rank", nargs="+", type=positive, default=[], metavar="R",
        help="rank of every weight; smaller matrices stay as they are")  # fmt: skip
    add("--magnitude_scope", choices=magnitude.SCOPES, default="layer",
        help="magnitude: rank all weights together, or in each layer, as the paper's code (default layer)")  # fmt: skip
    add(
        "--block_size", type=positive, default=128, help="sparsegpt, gptq: columns per update of the rest (default 128)"
    )
    add("--damping", type=number(float, 0, 1), default=0.01,
        help="sparsegpt, gptq: added to the Hessian's diagonal, as a fraction of its mean (default 0.01)")  # fmt: skip
    add("--group_size", type=checked(group_size), default=128,
        help="rtn, gptq: inputs that share a scale, the last group may be short; -1: a row (default 128)")  # fmt: skip
    add("--symmetric", action="store_true", help="rtn, gptq: a grid around zero")
    add("--act_order", action="store_true", help="gptq: quantize the inputs of largest activation first")
    add("--static_groups", action="store_true", help="gptq: scales of all groups from the dense weight")

    add = parser.add_argument_group("calibration").add_argument
    add("--calibration", type=filled, default="c4",
        help="text: c4, wikitext2, or a .txt, .jsonl or .parquet file, also .gz (default c4)")  # fmt: skip
    add("--calibration_field", type=filled, default="text", metavar="FIELD",
        help="column of the file that holds the text")  # fmt: skip
    add("--calibration_windows", choices=calibration.WINDOWS, default="auto",
        help="of single long documents, as published, or of documents joined; auto: as the text allows")  # fmt: skip
    add("--nsamples", type=positive, default=128, help="windows (default 128)")
    add("--calibration_length", type=positive, help="tokens per window (default: 2048 or what the model takes)")
    add("--true_sequential", action="store_true", help="new statistics after each group of layers inside a block")

    add = parser.add_argument_group("run").add_argument
    add("--data_dir", type=filled_path, help="read data sets from DIR/<dataset>/…; without it the hub")
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[0], metavar="SEED",
        help="calibration windows, and what else is drawn (default 0)")  # fmt: skip
    add("--output_dir", type=folder_template, required=True,
        help="the run's folder; for several cells a template with {compression} {strength} {seed}")  # fmt: skip
    add("--overwrite", action="store_true", help="replace complete runs")
    add("--list_cells", action="store_true", help="print one single-cell command per line and stop")
    add("--group_by", type=checked(group_names), metavar="NAMES",
        help="with --list_cells: one command for all cells that share these, of model, setting, compression, strength, "
        "seed; for example model,compression")  # fmt: skip
    add("--save_model", action="store_true", help="write the compressed model to <output_dir>/model")
    add("--export", choices=("gptqmodel",),
        help="rtn, gptq: write a packed checkpoint that serves to <output_dir>/gptqmodel")  # fmt: skip
    add("--tokens_per_batch", type=positive,
        help=f"tokens computed at once (default {TOKENS_PER_BATCH}; on a processor {TOKENS_PER_BATCH_CPU}, and for "
        f"scores and answers {LANE_TOKENS} for each of up to {MOST_LANES} threads if that is more)")  # fmt: skip
    add("--plain", action="store_true",
        help="score and answer one sequence at a time, as transformers does: no sharing, packing, compiled layers or "
        "batches side by side. Results are the same to rounding; this is how to check them")  # fmt: skip
    add("--stream", action="store_true",
        help="for a model larger than memory: block by block from its files to <output_dir>/model")  # fmt: skip
    return parser


def strength_of(cell: Cell) -> Strength | None:
    """The cell's strength; None for the dense model."""
    return next((Strength(kind, cell[kind]) for kind in STRENGTHS if cell[kind] is not None), None)


def is_calibrated(cell: Cell) -> bool:
    return cell["compression"] != DENSE and METHODS[cell["compression"]].statistic is not None


def is_quantized(cell: Cell) -> bool:
    return cell["compression"] != DENSE and METHODS[cell["compression"]].quantize is not None


def cells(args: argparse.Namespace, setting: str | int, seeded: bool) -> list[Cell]:
    """Every compression at every strength it takes, for every seed that makes a difference.

    Args:
        setting: name of the script's setting.
        seeded: whether the seed changes more than the calibration text.
    """
    found = []
    for compression in dict.fromkeys(args.compression):
        kinds = () if compression == DENSE else METHODS[compression].strengths
        strengths = [Strength(kind, value) for kind in kinds for value in dict.fromkeys(getattr(args, kind))]
        for strength in strengths or [None]:
            values = dict.fromkeys(STRENGTHS) | ({strength.kind: strength.value} if strength else {})
            label = strength.label if strength else DENSE
            cell = {"setting": setting, "compression": compression, "strength": label, **values}
            seeds = args.seed if seeded or is_calibrated(cell) else args.seed[:1]
            found += [{**cell, "seed": seed} for seed in dict.fromkeys(seeds)]
    return found


def compression_of(cell: Cell) -> tuple:
    """What tells the cell's model from those of other cells; the seed only where it draws the calibration text."""
    seed = cell["seed"] if is_calibrated(cell) else None
    return (*(cell[name] for name in ("compression", *STRENGTHS)), seed)


def shared_strengths(args: argparse.Namespace, compression: str) -> list[Strength]:
    """The strengths for which the compression prepares each weight once; none where there are not several."""
    method = METHODS.get(compression)
    if method is None or method.shared is None:
        return []
    strengths = [Strength(kind, value) for kind in method.strengths for value in dict.fromkeys(getattr(args, kind))]
    return strengths if len(strengths) > 1 else []


def obeying(option: str) -> list[str]:
    """Names of the compressions that obey an option that not all obey; empty for any other option."""
    if option == "magnitude_scope":
        return ["magnitude"]
    if option in records.CALIBRATION_OPTIONS:
        return [name for name, method in METHODS.items() if method.statistic is not None]
    if option in METHOD_OPTIONS:
        return [name for name, method in METHODS.items() if option in method.options]
    return []


def check_obeyed(
    args: argparse.Namespace, typed: Iterable[str], chosen: Iterable[str | int] = (),
    settings: Mapping[str | int, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Every option that the command line holds is obeyed by a chosen compression or setting, where it is theirs.

    Of a calibration text that no chosen compression reads a line is logged: loops over compressions name one for all.

    Args:
        typed: names of the options that the command line holds.
        chosen: names of the settings asked for.
        settings: of every setting, the options that it does not obey.
    Raises:
        ValueError: names the option, what obeys it, and what is asked for.
    """
    for option in (name for name in vars(args) if name in set(typed)):
        takers = obeying(option)
        if takers and not set(takers) & set(args.compression):
            if option in records.CALIBRATION_OPTIONS and option != "true_sequential":
                logger.warning("--%s: none of --compression %s is calibrated", option, " ".join(args.compression))
                continue
            raise ValueError(
                f"--{option} is obeyed by --compression {', '.join(takers)}; asked for is {' '.join(args.compression)}"
            )
        if option == "calibration_field":
            check_field(option, "calibration", args)
        if option == "magnitude_scope" and not args.sparsity:
            raise ValueError("--magnitude_scope ranks weights by --sparsity; --nm_ratio has groups of its own")
        if settings and all(option in settings[name] for name in chosen):
            takers = [str(name) for name, unobeyed in settings.items() if option not in unobeyed]
            means = "--answer_mode cloze" if option == "length_normalized" else f"setting {', '.join(takers)}"
            asked = ", ".join(map(str, chosen))
            raise ValueError(f"--{option} is obeyed by {means}; asked for is setting {asked}")


def check_field(option: str, source_option: str, args: argparse.Namespace) -> None:
    """Refuse the name of a column, which the command line holds, where the text is in no file that has columns.

    Args:
        option, source_option: the options that name the column, and the text.
    Raises:
        ValueError: names both.
    """
    source = getattr(args, source_option)
    if source.removesuffix(".gz").endswith(".txt") or (source in calibration.HUB_CONFIGS and not args.data_dir):
        raise ValueError(f"--{option} names a column of a jsonl or parquet file; --{source_option} {source} has none")


def cell_options(
    args: argparse.Namespace, parser: argparse.ArgumentParser, unobeyed: Mapping[str | int, Sequence[str]],
    chosen: list[Cell],
) -> dict[str, Any]:  # fmt: skip
    """The options, where they are not the default, that run some cells by themselves; none that these do not obey.

    Args:
        unobeyed: of every setting, the options that it does not obey.
    """
    options = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    compressions, settings = values(chosen, "compression"), values(chosen, "setting")
    for name in list(options):
        takers = obeying(name)
        others = bool(takers) and not set(takers) & set(compressions)
        if others or all(name in unobeyed[setting] for setting in settings):
            del options[name]
    if not values(chosen, "sparsity"):
        options.pop("magnitude_scope", None)
    for name in ("list_cells", "group_by"):
        options.pop(name, None)
    if not any(map(is_quantized, chosen)):
        options.pop("export", None)
    setting = {"settings": values(chosen, "setting")} if "settings" in vars(args) else {}
    return {**options, **varied(chosen), **setting}


def varied(chosen: list[Cell]) -> dict[str, list]:
    """The values of the options that tell some cells of a setting apart."""
    return {name: values(chosen, name) for name in ("compression", *STRENGTHS, "seed")}


class Computation(NamedTuple):
    """What a run really computes in: its identity has this besides the options.

    Fields:
        dtype: of the weights.
        precision: of a float32 model's matmuls, "no" or "bf16".
        engine_arithmetic: raised when the engine gives other numbers.
        walk_arithmetic: raised when calibration gives other statistics.
    """

    dtype: str
    precision: str
    engine_arithmetic: int
    walk_arithmetic: int = 1


def computation(args: argparse.Namespace, model: PreTrainedModel, readers: Sequence[str]) -> Computation:
    """What the options come to here; `model` may be without weights.

    Args:
        readers: how the run reads its answers off the model.
    """
    dtype = dtype_of(args, model)
    precision = precision_of(args) if dtype == torch.float32 else "no"
    engine_number = engine.arithmetic(model.config, dtype, precision, readers)
    return Computation(str(dtype), precision, engine_number, walk.arithmetic(model.config))


def method_arithmetic(args: argparse.Namespace, cell: Cell, computed: Computation) -> int:
    """Number of the arithmetic of the cell's compression, and of the statistics that it is calibrated on."""
    if cell["compression"] == DENSE:
        return 1
    method = METHODS[cell["compression"]]
    number = method.arithmetic(Options(**{name: getattr(args, name) for name in METHOD_OPTIONS}))
    return max(number, computed.walk_arithmetic) if is_calibrated(cell) else number


def identity(
    args: argparse.Namespace, cell: Cell, content: dict[str, str], computed: Computation,
    ignored: tuple[str, ...] = (), defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """What tells a run from another: every option that changes what is computed here, with the cell's values.

    Args:
        content: hashes and commits of the model and of all data.
        ignored: options that the setting does not obey.
        defaults: of the options; one that came later is left out where it has its default.
    """
    unused = {*records.RUN_OPTIONS, "data_dir", *ignored}
    method = METHODS.get(cell["compression"])
    unused |= set(METHOD_OPTIONS) - set(method.options if method else ())
    if not is_calibrated(cell):
        unused |= {*records.CALIBRATION_OPTIONS, *records.CALIBRATION_CONTENT}
    if cell["compression"] != "magnitude" or cell["sparsity"] is None:
        unused.add("magnitude_scope")
    if not args.export or not is_quantized(cell):
        unused.add("export")
    options = records.recorded_options(vars(args), defaults)
    values = {name: cell[name] for name in ("compression", *STRENGTHS, "seed")}
    numbers = {
        "dtype_used": computed.dtype, "precision_used": computed.precision,
        "engine_arithmetic": computed.engine_arithmetic, "method_arithmetic": method_arithmetic(args, cell, computed),
    }  # fmt: skip
    kept = {name: value for name, value in {**options, **content}.items() if name not in unused}
    return {**kept, **values, **numbers}


def describe(cell: Cell, run_identity: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The run's coordinates as results and figures name them."""
    strength = strength_of(cell)
    in_layer = cell["compression"] == "magnitude" and cell["sparsity"] is not None
    shared = records.part_of(run_identity, "compression_recipe") if is_calibrated(cell) else None
    told = records.normal(records.part_of(run_identity, "method_recipe"))
    return {
        "setting": cell["setting"],
        "model": args.model_name_or_path,
        "compression": cell["compression"],
        "strength_kind": {"nm_ratio": "nm"}.get(strength.kind, strength.kind) if strength else None,
        "strength": strength.value if strength else None,
        "requested_sparsity": strength.requested_sparsity if strength else 0.0,
        "magnitude_scope": args.magnitude_scope if in_layer else None,
        "seed": cell["seed"],
        "recipe": records.recipe(run_identity, records.COORDINATES["compressed"]),
        "compression_recipe": records.recipe(shared) if shared else None,
        "method_recipe": records.recipe(told) if told else None,
        "precision": run_identity["precision_used"],
        "dtype": run_identity["dtype_used"],
    }


def check_strengths(args: argparse.Namespace) -> None:
    """Every compression has a strength of a kind it takes, and every strength a compression that takes it.

    Raises:
        ValueError: names the option and what is allowed.
    """
    methods = {name: METHODS[name] for name in args.compression if name != DENSE}
    for name, method in methods.items():
        if not any(getattr(args, kind) for kind in method.strengths):
            raise ValueError(f"--compression {name} needs {' or '.join(f'--{kind}' for kind in method.strengths)}")
    for kind in STRENGTHS:
        if getattr(args, kind) and not any(kind in method.strengths for method in methods.values()):
            takers = ", ".join(name for name, method in METHODS.items() if kind in method.strengths)
            asked = " ".join(args.compression)
            raise ValueError(f"--{kind} is taken by --compression {takers}; asked for is {asked}")


def check_options(args: argparse.Namespace, streamable: bool) -> None:
    """Refuse options that do not go together.

    Args:
        streamable: whether the script can evaluate a model block by block.
    Raises:
        ValueError: names them.
    """
    for ratio in args.nm_ratio:
        m_group = parse_nm(ratio)[1]
        if "sparsegpt" in args.compression and args.block_size % m_group:
            raise ValueError(f"--block_size {args.block_size} is no multiple of the groups of --nm_ratio {ratio}")
    if args.stream and not streamable:
        raise ValueError("--stream: this script does not evaluate block by block; perplexity.py --stream does")
    if args.stream and args.device not in ("auto", "cpu"):
        raise ValueError(f"--stream computes on the processor: --device {args.device} must be cpu or auto")
    if args.stream and job_size() > 1:
        raise ValueError("--stream computes in one process: start it without accelerate launch or torchrun")
    if args.device_map and args.device != "auto":
        raise ValueError(f"--device_map spreads a model over all GPUs: --device {args.device} must be auto")
    if args.device_map and (args.stream or job_size() > 1):
        raise ValueError("--device_map takes all GPUs for one process: no --stream, accelerate launch or torchrun")
    if job_size() > 1 and ":" in args.device:
        raise ValueError(f"--device {args.device}: a job gives each process a GPU of its own; allowed: auto, cuda, cpu")
    if args.stream and args.weights != "safetensors":
        raise ValueError("--stream reads safetensors tensor by tensor; --weights bin is read whole")
    if args.stream and not Path(args.model_name_or_path).is_dir():
        raise ValueError(f"--stream reads the files of a folder; {args.model_name_or_path} is none")
    if args.stream and args.magnitude_scope == "global" and "magnitude" in args.compression and args.sparsity:
        raise ValueError("--magnitude_scope global ranks the whole model; with --stream one block is in memory")
    if args.export and not any(name != DENSE and METHODS[name].quantize for name in args.compression):
        takers = ", ".join(name for name, method in METHODS.items() if method.quantize)
        raise ValueError(f"--export packs what --compression {takers} make; asked for is {' '.join(args.compression)}")
    if args.export and args.stream:
        raise ValueError("--export packs a model that is in memory; with --stream one block is")
    device_of(args)


def check_model(args: argparse.Namespace) -> PreTrainedModel:
    """The model without weights; what its config and shapes forbid is refused.

    Raises:
        ValueError: no causal language model, blocks that cannot be walked, groups, ranks or lengths that do not fit.
    """
    name = args.model_name_or_path
    check_checkpoint_files(name, args.weights, args.trust_remote_code, args.revision)
    check = functools.partial(refuse_encoders, trust_remote_code=args.trust_remote_code)
    model = meta_model(name, AutoModelForCausalLM, args.trust_remote_code, check, args.revision)
    if model.config.dtype is None:
        model.config.dtype = stored_dtype(name, args.weights)
    shapes = {key: tuple(weight.matrix.shape) for key, weight in decoder_weights(model).items()}
    for ratio in args.nm_ratio:
        m_group = parse_nm(ratio)[1]
        for key, (_, inputs) in shapes.items():
            if inputs % m_group:
                raise ValueError(f"--nm_ratio {ratio}: {key} has {inputs} inputs, no multiple of {m_group}")
    full = max(map(min, shapes.values()))
    for rank in args.rank:
        if rank >= full:
            raise ValueError(
                f"--rank {rank}: the highest rank of a weight of {name} is {full}; allowed: 1 to {full - 1}"
            )
    if args.calibration_length and args.calibration_length > max_length(model):
        raise ValueError(f"--calibration_length {args.calibration_length}: {name} takes {max_length(model)} tokens")
    if args.export:
        check_exportable(model, args.bits, args.group_size)
    return model


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
    """Tokens that the model can take at once."""
    return longest_input(model) or 2048


def dtype_of(args: argparse.Namespace, model: PreTrainedModel) -> torch.dtype:
    if args.dtype != "auto":
        return getattr(torch, args.dtype)
    return model.config.dtype or torch.float32


def device_of(args: argparse.Namespace) -> torch.device:
    """Raises ValueError where the machine has no such device."""
    return device_named("cpu" if args.stream and args.device == "auto" else args.device)


def tokens_per_batch_of(args: argparse.Namespace) -> int:
    on_processor = device_of(args).type == "cpu"
    return args.tokens_per_batch or (TOKENS_PER_BATCH_CPU if on_processor else TOKENS_PER_BATCH)


def tokens_scored_at_once(args: argparse.Namespace) -> int:
    """tokens_per_batch_of, and by default, on a processor, as many as its threads compute side by side."""
    default = device_of(args).type == "cpu" and not args.tokens_per_batch
    return scored_on_processor() if default else tokens_per_batch_of(args)


def scored_on_processor() -> int:
    """Tokens whose batches fill the lanes of as many threads as there are."""
    return max(TOKENS_PER_BATCH_CPU, LANE_TOKENS * min(torch.get_num_threads(), MOST_LANES))


def precision_of(args: argparse.Namespace) -> str:
    return best_precision(device_of(args).type) if args.precision == "auto" else args.precision
