"""The command line of the scripts without training: options, what is refused, the cells that several values make."""

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from analysis import results
from analysis.sweeps.cells import Cell
from analysis.sweeps.commands import group_names, values
from analysis.sweeps.options import checked, number, positive
from harness.device import best_precision
from harness.models import check_checkpoint_files, longest_input, meta_model
from llm_tasks.lanes import LANE_TOKENS
from llm_tasks.methods import METHODS, STRENGTHS, Options, Strength
from llm_tasks.processes import job_size
from pruning import calibration, magnitude
from pruning.layers import decoder_weights
from pruning.nm import parse_nm
from quantization.gptqmodel_export import check_exportable

DENSE = "dense"
TOKENS_PER_BATCH, TOKENS_PER_BATCH_CPU = 4096, 2048  # more are no faster on a processor, and take memory
MOST_LANES = 8  # by default: what many threads compute side by side would fill the memory
CALIBRATION_OPTIONS = (
    "calibration", "calibration_field", "calibration_windows", "calibration_length", "nsamples", "true_sequential",
)  # fmt: skip
TEXT_HASH = "calibration_sha256"  # of the calibration text, in a run's identity
METHOD_OPTIONS = tuple(Options.__dataclass_fields__)
# How a run is carried out, not what is computed: none of these tells two runs apart.
RUN_OPTIONS = (
    "output_dir", "overwrite", "list_cells", "group_by", "tokens_per_batch", "stream", "data_dir", "settings",
    "device_map",
)  # fmt: skip
# The coordinates of a cell and what matters to some compressions alone; runs that differ in these stand in one figure.
CELL_OPTIONS = (
    "compression",
    *STRENGTHS,
    "seed",
    "magnitude_scope",
    "save_model",
    "export",
    *CALIBRATION_OPTIONS,
    *METHOD_OPTIONS,
)


def nm_ratio(text: str) -> str:
    parse_nm(text)
    return text


def group_size(text: str) -> int:
    if text != "-1" and (not text.isdigit() or int(text) == 0):
        raise ValueError(f"{text!r} is neither a positive number of inputs nor -1 (a whole row)")
    return int(text)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that all scripts share, in groups; a script adds its own."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="hub id or folder of a decoder language model (safetensors)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights, computed with and saved; auto: the checkpoint's")  # fmt: skip
    add("--precision", choices=("auto", "no", "bf16"), default="auto",
        help="of a float32 model's matrix products; auto: bf16 where the processor or GPU computes in it")  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto: the first accelerator, else the processor")
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
    add("--calibration", default="c4",
        help="text: c4, wikitext2, or a .txt, .jsonl or .parquet file, also .gz (default c4)")  # fmt: skip
    add("--calibration_field", default="text", metavar="FIELD", help="column of the file that holds the text")
    add("--calibration_windows", choices=calibration.WINDOWS, default="auto",
        help="of single long documents, as published, or of documents joined; auto: as the text allows")  # fmt: skip
    add("--nsamples", type=positive, default=128, help="windows (default 128)")
    add("--calibration_length", type=positive, help="tokens per window (default: 2048 or what the model takes)")
    add("--true_sequential", action="store_true", help="new statistics after each group of layers inside a block")

    add = parser.add_argument_group("run").add_argument
    add("--data_dir", type=Path, help="read data sets from DIR/<dataset>/…; without it the hub")
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[0], metavar="SEED",
        help="calibration windows, and what else is drawn (default 0)")  # fmt: skip
    add("--output_dir", required=True,
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


def cell_options(args: argparse.Namespace, parser: argparse.ArgumentParser, chosen: list[Cell]) -> dict[str, Any]:
    """The options, where they are not the default, that run some cells by themselves."""
    options = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    for name in ("list_cells", "group_by"):
        options.pop(name, None)
    if not any(map(is_quantized, chosen)):
        options.pop("export", None)
    setting = {"settings": values(chosen, "setting")} if "settings" in vars(args) else {}
    return {**options, **varied(chosen), **setting}


def varied(chosen: list[Cell]) -> dict[str, list]:
    """The values of the options that tell some cells of a setting apart."""
    return {name: values(chosen, name) for name in ("compression", *STRENGTHS, "seed")}


def identity(
    args: argparse.Namespace, cell: Cell, data: dict[str, Any], ignored: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What tells a run from another: every option that changes what is computed here, with the cell's values.

    Args:
        data: what tells the data of the run's setting from other data.
        ignored: options that the setting does not obey.
    """
    unused = {*RUN_OPTIONS, *ignored}
    method = METHODS.get(cell["compression"])
    unused |= set(METHOD_OPTIONS) - set(method.options if method else ())
    if not is_calibrated(cell):
        unused |= {*CALIBRATION_OPTIONS, TEXT_HASH}
    if cell["compression"] != "magnitude" or cell["sparsity"] is None:
        unused.add("magnitude_scope")
    if not args.export or not is_quantized(cell):
        unused.add("export")
    # so that runs from before these were options stay complete
    unused |= {name for name in ("chat_template", "eval_split") if not getattr(args, name, None)}
    options = {**vars(args), **data}
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    values = {name: cell[name] for name in ("compression", *STRENGTHS, "seed")}
    return {**{name: value for name, value in options.items() if name not in unused}, **values}


def describe(cell: Cell, run_identity: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The run's coordinates as results and figures name them."""
    strength = strength_of(cell)
    in_layer = cell["compression"] == "magnitude" and cell["sparsity"] is not None
    calibrated = {name: run_identity[name] for name in (*CALIBRATION_OPTIONS, TEXT_HASH) if name in run_identity}
    told = {name: run_identity[name] for name in METHOD_OPTIONS if name in run_identity}
    return {
        "setting": cell["setting"],
        "model": args.model_name_or_path,
        "compression": cell["compression"],
        "strength_kind": {"nm_ratio": "nm"}.get(strength.kind, strength.kind) if strength else None,
        "strength": strength.value if strength else None,
        "requested_sparsity": strength.requested_sparsity if strength else 0.0,
        "magnitude_scope": args.magnitude_scope if in_layer else None,
        "seed": cell["seed"],
        "recipe": results.recipe(run_identity, (*CELL_OPTIONS, TEXT_HASH)),
        "compression_recipe": results.recipe(calibrated, ()) if calibrated else None,
        "method_recipe": results.recipe(told, ()) if told else None,
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
    check_checkpoint_files(name)
    model = meta_model(name, AutoModelForCausalLM, args.trust_remote_code, refuse_encoders)
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


def refuse_encoders(config: PretrainedConfig) -> None:
    """Raises ValueError where a config is not that of a decoder-only language model."""
    kind = type(config)
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if masked or config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
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


@functools.cache
def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def device_of(args: argparse.Namespace) -> torch.device:
    """Raises ValueError where the machine has no such device."""
    return _device("cpu" if args.stream and args.device == "auto" else args.device)


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
