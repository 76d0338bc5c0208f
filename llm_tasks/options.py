"""The command line of the scripts in this folder: its options, and what is refused.

`parse` reads it; nothing after it sees an argparse namespace. What the library takes is made of the options by
option_values, once a command computes something and does not only list its cells.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import records
from harness.models import add_model_options
from harness.options import add_cell_options, check_data_dir, checked, filled, filled_path, number, positive, typed
from llm_tasks.checkpoints.checkpoint_files import check_labels
from llm_tasks.compressions import check_compression, method_of, missing_strength, parts
from llm_tasks.engine.chat import template_values
from llm_tasks.engine.cpu import WORKER_TOKENS
from llm_tasks.engine.encoding import OVERFLOWS
from llm_tasks.engine.processes import job_size
from llm_tasks.evaluation import ANSWER_METRICS
from llm_tasks.layer_options import LAYER_OPTIONS, allocating, allocation, check_layers
from llm_tasks.levels import Setting
from llm_tasks.methods import CHECKPOINT, DENSE, METHOD_OPTIONS, METHODS, STRENGTHS, check_methods
from llm_tasks.option_values import (
    MOST_WORKERS,
    SOURCE_OF_FIELD,
    TOKENS_PER_BATCH,
    TOKENS_PER_BATCH_CPU,
    Given,
    answer_mode,
    device_of,
)
from pruning import calibration, magnitude
from pruning.allocation import OWL, OWL_OUTLIERS, OWL_RANGE, UNIFORM
from pruning.layer_choice import parse_layers
from pruning.nm import parse_nm, valid_nm

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        given: every option by its name.
        defaults: of the options, by name.
        typed: by name, the options that the command line holds.
        settings: in which compressed models are measured, by name.
        others: of each setting that there is, the options that are other settings' alone.
        unobeyed: of each, all options that it does not obey as it reads its questions.
    """

    given: Given
    defaults: Given
    typed: Given
    settings: dict[int | str, Setting]
    others: dict[int | str, tuple[str, ...]]
    unobeyed: dict[int | str, tuple[str, ...]]


def group_size(text: str) -> int:
    if text != "-1" and (not (text.isascii() and text.isdigit()) or int(text) == 0):
        raise ValueError(f"{text!r} is neither a positive number of inputs nor -1 (a whole row)")
    return int(text)


def make_parser(description: str, settings: Mapping[int | str, Setting], own: int | str) -> argparse.ArgumentParser:
    """The options of a script, in groups.

    Args:
        description: the script's docstring.
        settings: all that the script can measure in; of several, --settings chooses.
        own: the one that it measures in without --settings.
    """
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        check_methods(METHODS)
    except ValueError as error:
        parser.error(str(error))
    add_model(parser)
    add_placement(parser)
    add_compression(parser)
    add_layers(parser)
    add_calibration(parser)
    add_run(parser)
    if own != "perplexity":
        add_evaluation(parser)
    if len(settings) > 1:
        parser.add_argument_group("settings").add_argument(
            "--settings", type=int, nargs="+", choices=settings, default=[own], metavar="N",
            help="measure every compressed model in these, 2 to 6; --output_dir then needs {setting} "
            f"(default {own})",
        )  # fmt: skip
    added = set()
    for setting in settings.values():
        group = parser.add_argument_group(setting.title)
        for name, declaration in setting.options.items():
            if name not in added:
                group.add_argument(f"--{name}", **declaration)
                added.add(name)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", type=filled, required=True,
        help="hub id or folder of a decoder language model (safetensors)")  # fmt: skip
    add_model_options(add)
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the weights, computed with and saved; auto: the checkpoint's")  # fmt: skip
    add("--precision", choices=("auto", "no", "bf16"), default="auto",
        help="of a float32 model's matmuls; auto: bf16 where the CPU or GPU computes in it")  # fmt: skip


def add_placement(parser: argparse.ArgumentParser) -> None:
    """On which device the model is computed, and where its parts are."""
    add = parser.add_argument_group("device").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1 …; auto: the accelerator that is there, else the CPU")
    add("--device_map", choices=("auto",),
        help="auto: spread a model that one GPU does not hold over all GPUs of the machine; one that they do not hold "
        "together stays in host memory, as with --blocks host")  # fmt: skip
    add("--blocks", choices=("auto", "device", "host"), default="auto",
        help="where the decoder blocks are: on the device, or in host memory, from where one at a time is brought to "
        "the device; auto: on the device if they fit")  # fmt: skip
    add("--activations", choices=("device", "host"), default="device",
        help="where the hidden states of all calibration windows are (default device)")  # fmt: skip


def add_compression(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("compression").add_argument
    add("--compression", nargs="+", type=checked(check_compression), default=[DENSE], metavar="NAME",
        help=f"{DENSE}, {', '.join(METHODS)}; or one that prunes and one that then quantizes what is left, as "
        "sparsegpt+gptq, at every combination of their strengths; "
        f"{CHECKPOINT}: a model that was compressed elsewhere")  # fmt: skip
    add_pruning(add)
    add("--bits", nargs="+", type=number(int, 2, 16), default=[], metavar="B", help="bits per weight, 2 to 16")
    add("--rank", nargs="+", type=positive, default=[], metavar="R",
        help="rank of every weight; smaller matrices stay as they are")  # fmt: skip
    add("--checkpoint", nargs="+", type=filled, default=[], metavar="NAME_OR_FOLDER",
        help="checkpoint: models that were compressed elsewhere from --model_name_or_path: folders, .gguf files or hub "
        "ids of pruned or quantized models or of PEFT adapters")  # fmt: skip
    add("--group_size", type=checked(group_size), default=128,
        help="rtn, gptq: inputs that share a scale, the last group may be short; -1: a row (default 128)")  # fmt: skip
    add("--symmetric", action="store_true", help="rtn, gptq: a grid around zero")
    add("--act_order", action="store_true", help="gptq: quantize the inputs of largest activation first")
    add("--static_groups", action="store_true", help="gptq: scales of all groups from the dense weight")


def add_pruning(add: Callable[..., Any], methods: Sequence[str] = tuple(METHODS)) -> None:
    """The options of methods that prune, to a group of options.

    Args:
        methods: those that the script takes; help texts name no other.
    """
    by_hessian = ", ".join(name for name in methods if "damping" in METHODS[name].options)
    add("--sparsity", nargs="+", type=number(float, 0, 1, open_high=True), default=[], metavar="S",
        help="fraction(s) of the weights of the decoder blocks to prune, [0, 1)")  # fmt: skip
    add("--nm_ratio", nargs="+", type=checked(valid_nm), default=[], metavar="N:M",
        help="N weights are KEPT in every M consecutive inputs, 1 <= N < M")  # fmt: skip
    add("--magnitude_scope", choices=magnitude.SCOPES, default="layer",
        help="magnitude: rank all weights together, or in each layer, as the paper's code (default layer)")  # fmt: skip
    add("--block_size", type=positive, default=128,
        help=f"{by_hessian}: columns per update of the rest (default 128)")  # fmt: skip
    add("--damping", type=number(float, 0, 1), default=0.01,
        help=f"{by_hessian}: added to the Hessian's diagonal, as a fraction of its mean (default 0.01)")  # fmt: skip


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Which layers are compressed, and how sparsity is spread over them."""
    add = parser.add_argument_group("layers").add_argument
    spec = {"nargs": "+", "type": checked(parse_layers), "default": [], "metavar": "LAYERS"}
    add("--only_layers", **spec,
        help="compress these weights of the decoder blocks alone; the others stay dense. Blocks, ranges and names, "
        "separated by commas: 7, 0-3,29, down_proj, mlp, 3.self_attn, '*.q_proj'. Several values are cells of their "
        "own; --output_dir then needs {layers} (default: all)")  # fmt: skip
    add("--skip_layers", **spec, help="leave these weights dense; written as for --only_layers")
    add("--allocation", nargs="+", type=checked(allocation), default=[UNIFORM], metavar="HOW",
        help="how --sparsity is spread over the weights: uniform; owl: less in blocks with many outliers (Yin et al. "
        "2024); or a JSON file of sparsities, [0, 1), by block or name, whose other weights share what is left; owl "
        "and a file with exactly that share of zeros in all. For methods that take --sparsity; several are cells of "
        "their own, with {allocation} (default uniform)")  # fmt: skip
    add("--owl_outliers", type=number(float, 1, 1e6), default=OWL_OUTLIERS, metavar="M",
        help="owl: an outlier's score is above M times its block's mean, M >= 1 "
        f"(default {OWL_OUTLIERS:g})")  # fmt: skip
    add("--owl_range", type=number(float, 0, 0.5), default=OWL_RANGE, metavar="LAMBDA",
        help="owl: the sparsity of a block is at most this far from --sparsity, 0 to 0.5 "
        f"(default {OWL_RANGE:g})")  # fmt: skip


def add_calibration(parser: argparse.ArgumentParser, default: str = "c4") -> None:
    """The options of calibration; `default` says what text it is without --calibration."""
    add = parser.add_argument_group("calibration").add_argument
    add("--calibration", type=filled, default="c4",
        help=f"text: c4, wikitext2, or a .txt, .jsonl or .parquet file, also .gz (default {default})")  # fmt: skip
    add("--calibration_field", type=filled, default="text", metavar="FIELD",
        help="column of the file that holds the text")  # fmt: skip
    add("--calibration_windows", choices=calibration.WINDOWS, default="auto",
        help="of single long documents, as published, or of documents joined; auto: as the text allows")  # fmt: skip
    add("--nsamples", type=positive, default=128, help="windows (default 128)")
    add("--calibration_length", type=positive, help="tokens per window (default: 2048 or what the model takes)")
    add("--true_sequential", action="store_true", help="new statistics after each group of layers inside a block")


def add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--data_dir", type=filled_path, help="read data sets from DIR/<dataset>/…; without it the hub")
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[0], metavar="SEED",
        help="calibration windows, and what else is drawn (default 0)")  # fmt: skip
    add_cell_options(
        group, ("compression", "strength", "seed"), groups=("model", "compression", "setting", "strength", "seed"),
        dry_run="print the runs that are missing, what they need of memory and disk, and where; load nothing",
    )  # fmt: skip
    add("--save_model", action="store_true", help="write the compressed model to <output_dir>/model")
    add("--export", choices=("gptqmodel",),
        help="rtn, gptq: write a packed checkpoint that serves to <output_dir>/gptqmodel")  # fmt: skip
    add("--tokens_per_batch", type=positive,
        help=f"tokens computed at once (default {TOKENS_PER_BATCH}; on a CPU {TOKENS_PER_BATCH_CPU}, and for "
        f"scores and answers {WORKER_TOKENS} for each of up to {MOST_WORKERS} threads if that is more)")  # fmt: skip
    add("--plain", action="store_true",
        help="score and answer one sequence at a time, as transformers does: no sharing, packing, compiled layers or "
        "batches side by side. Results are the same to rounding; this is how to check them")  # fmt: skip
    add("--stream", action="store_true",
        help="for a model larger than memory: block by block from its files to <output_dir>/model")  # fmt: skip


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """How settings 2 to 6 and a user's own task ask their questions."""
    add = parser.add_argument_group("evaluation").add_argument
    add("--answer_mode", choices=("letter", "generate", "cloze"),
        help="how options are read: letter = the most likely letter; generate = the letter as the one token that the "
        "model generates, as the paper's code; cloze = the most likely option text, for models too small for letters "
        "(default: what the setting says)")  # fmt: skip
    add("--length_normalized", action="store_true",
        help="cloze: score the log-likelihood per character of the option (acc_norm)")  # fmt: skip
    add("--answer_metric", choices=ANSWER_METRICS, default="exact_match",
        help="score of generated answers, all in the same normalisation: equal to an accepted answer (default), "
        "containing one as whole words, overlap of words, or the original's two-way substring match")  # fmt: skip
    add("--max_new_tokens", type=positive, default=32, help="longest generated answer in tokens (default 32)")
    add("--min_new_tokens", type=number(int, 0, 10**6), default=0,
        help="a generated answer may not end before so many tokens (default 0, as the paper); 8 for a model that often "
        "gives no answer, where a figure would show little else")  # fmt: skip
    add("--chat_template", action="store_true",
        help="put every prompt as a user's message in the tokenizer's chat template; a model tuned on conversations "
        "often leaves a bare question unanswered (default: bare, as the paper)")  # fmt: skip
    add("--chat_template_kwargs", type=checked(template_values), metavar="JSON",
        help="values that the chat template reads, a JSON object such as '{\"enable_thinking\": false}'; with "
        "--chat_template")  # fmt: skip
    add("--max_items", type=positive, metavar="N",
        help="a fixed sample of N items of each data set, the same for every seed and model (default all)")  # fmt: skip
    add("--overflow", choices=OVERFLOWS, default="drop_shots",
        help="a prompt longer than the model takes loses its last examples (default), its beginning, or is left out; "
        "never the question. Counted and logged.")  # fmt: skip


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, settings: Mapping[int | str, Setting], own: int | str
) -> Asked:
    """What the command line asks for.

    Raises:
        ValueError: an option that nothing obeys which is asked for, or a strength that does not go with a compression.
    """
    given, names = vars(parser.parse_args(argv)), typed(parser, argv)
    held = {name: value for name, value in given.items() if name in names}
    known = {name for setting in settings.values() for name in setting.obeys}
    others = {name: tuple(sorted(known - set(setting.obeys))) for name, setting in settings.items()}
    unobeyed = dict(others)
    if len(settings) > 1:
        for name, setting in settings.items():
            if setting.answer_mode is None or answer_mode(setting, given) != "cloze":
                unobeyed[name] += ("length_normalized",)
    chosen = list(dict.fromkeys(given.get("settings", [own])))
    check_obeyed(given, held, chosen, unobeyed)
    check_strengths(given)
    check_layers(given, list(held))
    for name in chosen:
        if settings[name].check is not None:
            settings[name].check(given, held)
    defaults = {name: parser.get_default(name) for name in given}
    return Asked(given, defaults, held, {name: settings[name] for name in chosen}, others, unobeyed)


def obeying(option: str, allocations: Sequence[str] = ()) -> list[str]:
    """Names of the compressions that obey an option that not all obey; empty for any other option.

    Args:
        allocations: values of --allocation; OWL reads calibration text whatever the method.
    """
    if option == "magnitude_scope":
        return ["magnitude"]
    if option in LAYER_OPTIONS:
        return list(METHODS)
    if option == "allocation":
        return allocating()
    if option in records.CALIBRATION_OPTIONS:
        by_owl = allocating() if OWL in allocations and option != "true_sequential" else []
        return [name for name, method in METHODS.items() if method.statistic is not None or name in by_owl]
    if option in METHOD_OPTIONS:
        return [name for name, method in METHODS.items() if option in method.options]
    return []


def is_obeyed(option: str, compressions: Sequence[str], allocations: Sequence[str] = ()) -> bool:
    """Whether one of some compressions obeys an option; True for one that not only compressions obey (see obeying)."""
    takers = obeying(option, allocations)
    return not takers or not set(takers).isdisjoint(parts(compressions))


def check_obeyed(
    given: Given, typed: Given, chosen: Sequence[str | int], unobeyed: Mapping[str | int, Sequence[str]]
) -> None:
    """Every option that the command line holds is obeyed by a chosen compression or setting, where it is theirs.

    Of a calibration text that no chosen compression reads a line is logged: loops over compressions name one for all.

    Args:
        typed: the options that the command line holds.
        chosen: names of the settings asked for.
        unobeyed: of every setting, the options that it does not obey.
    Raises:
        ValueError: names the option, what obeys it, and what is asked for.
    """
    compressions = " ".join(given["compression"])
    for option in typed:
        if not is_obeyed(option, given["compression"], given.get("allocation", ())):
            if option in records.CALIBRATION_OPTIONS and option != "true_sequential":
                logger.warning("--%s: none of --compression %s is calibrated", option, compressions)
                continue
            takers = obeying(option, given.get("allocation", ()))
            raise ValueError(f"--{option} is obeyed by --compression {', '.join(takers)}; asked for is {compressions}")
        if option in SOURCE_OF_FIELD:
            check_field(option, SOURCE_OF_FIELD[option], given)
        if option == "magnitude_scope" and not given["sparsity"]:
            raise ValueError("--magnitude_scope ranks weights by --sparsity; --nm_ratio has groups of its own")
        if all(option in unobeyed[name] for name in chosen):
            takers = [str(name) for name, options in unobeyed.items() if option not in options]
            means = "--answer_mode cloze" if option == "length_normalized" else f"setting {', '.join(takers)}"
            raise ValueError(f"--{option} is obeyed by {means}; asked for is setting {', '.join(map(str, chosen))}")


def check_field(option: str, source_option: str, given: Given) -> None:
    """Refuse the name of a column, which the command line holds, where the text is in no file that has columns.

    Args:
        option, source_option: the options that name the column, and the text.
    Raises:
        ValueError: names both.
    """
    source = given[source_option]
    if source.removesuffix(".gz").endswith(".txt") or (source in calibration.HUB_CONFIGS and not given["data_dir"]):
        raise ValueError(f"--{option} names a column of a jsonl or parquet file; --{source_option} {source} has none")


def check_strengths(given: Given) -> None:
    """Every compression has a strength of a kind that it can take, and every strength a compression that takes it.

    Raises:
        ValueError: names the option and what is allowed.
    """
    for name in given["compression"]:
        if missing := missing_strength(name, given):
            raise ValueError(f"--compression {name} needs {missing}")
    taken = {name: METHODS[name].strengths for name in METHODS} | {CHECKPOINT: (CHECKPOINT,)}
    asked_for = {*parts(given["compression"]), *given["compression"]}
    for kind in STRENGTHS:
        if given[kind] and not any(kind in own for name, own in taken.items() if name in asked_for):
            takers = ", ".join(name for name, own in taken.items() if kind in own)
            asked = " ".join(given["compression"])
            raise ValueError(f"--{kind} is taken by --compression {takers}; asked for is {asked}")
    for ratio in given["nm_ratio"]:
        if "sparsegpt" in parts(given["compression"]) and given["block_size"] % parse_nm(ratio)[1]:
            raise ValueError(f"--block_size {given['block_size']} is no multiple of the groups of --nm_ratio {ratio}")
    if given["checkpoint"]:
        check_labels(given["checkpoint"])


def check_together(given: Given) -> None:
    """Refuse options that do not go together, and a device or a --data_dir that is not there.

    Raises:
        ValueError: names them.
    """
    scoped = [name for name in given["compression"] if name not in METHODS and "magnitude" in parts([name])]
    if scoped and given["magnitude_scope"] == "global":
        raise ValueError(f"--magnitude_scope global ranks the whole model; {scoped[0]} prunes weight by weight: layer")
    device = given["device"]
    if CHECKPOINT in given["compression"]:
        check_checkpoints(given)
    if given["stream"]:
        check_streamed(given)
    if given.get("kl") and (given["stream"] or given["device_map"] or given["blocks"] == "host"):
        raise ValueError("--kl holds the whole dense model on the device too: no --stream, --device_map, --blocks host")
    if given["device_map"] and device != "auto":
        raise ValueError(f"--device_map spreads a model over all GPUs: --device {device} must be auto")
    if given["device_map"] and (given["stream"] or job_size() > 1):
        raise ValueError("--device_map takes all GPUs for one process: no --stream, accelerate launch or torchrun")
    if given["blocks"] != "auto" and (given["stream"] or given["device_map"]):
        raise ValueError(f"--blocks {given['blocks']}: --stream and --device_map say themselves where the blocks are")
    if given["blocks"] == "host" and device_of(given).type == "cpu":
        raise ValueError("--blocks host brings blocks from host memory to an accelerator; the device is the CPU")
    if job_size() > 1 and ":" in device:
        raise ValueError(f"--device {device}: a job gives each process a GPU of its own; allowed: auto, cuda, cpu")
    if given["export"] and not any(method and method.quantize for method in map(method_of, given["compression"])):
        takers = ", ".join(name for name, method in METHODS.items() if method.quantize)
        asked = " ".join(given["compression"])
        raise ValueError(f"--export packs what --compression {takers} make; asked for is {asked}")
    if given["export"] and given["stream"]:
        raise ValueError("--export packs a model that is in memory; with --stream one block is")
    device_of(given)
    check_data_dir(given["data_dir"])


def check_checkpoints(given: Given) -> None:
    """Refuse what cannot be done with a model that is compressed already; see check_together."""
    reasons = {
        "stream": "compresses and measures block by block; a checkpoint is loaded whole",
        "save_model": "writes what is compressed here; a checkpoint is written already",
    }
    for option, reason in reasons.items():
        if given[option]:
            raise ValueError(f"--{option} {reason}: give --compression {CHECKPOINT} a command of its own")
    if given["blocks"] == "host":
        raise ValueError("--blocks host keeps dense blocks in host memory; a checkpoint is loaded whole to the device")


def check_streamed(given: Given) -> None:
    """Refuse what cannot be computed with one block in memory at a time; see check_together."""
    if job_size() > 1:
        raise ValueError("--stream computes in one process: start it without accelerate launch or torchrun")
    if given["weights"] != "safetensors":
        raise ValueError("--stream reads safetensors tensor by tensor; --weights bin is read whole")
    if not Path(given["model_name_or_path"]).is_dir():
        raise ValueError(f"--stream reads the files of a folder; {given['model_name_or_path']} is none")
    if given["magnitude_scope"] == "global" and "magnitude" in given["compression"] and given["sparsity"]:
        raise ValueError("--magnitude_scope global ranks the whole model; with --stream one block is in memory")
