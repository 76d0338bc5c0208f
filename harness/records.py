"""What makes two runs the same: content of model and data, options that change a number, arithmetic. Never a path.

A record is what args.json holds of a run: its arguments and its environment. Records of any age can be compared: an
option that a record lacks has the value that the program used before the option existed, and what only later records
hold, such as a hash, is compared only where both records have it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

Record = Mapping[str, Any]

# Options that change no number: how a run is carried out, and where its files are.
RUN_OPTIONS = frozenset({
    "output_dir", "overwrite", "list_cells", "group_by", "checkpointing_steps", "resume_from_checkpoint",
    "with_tracking", "report_to", "eval_each_epoch", "tokens_per_batch", "stream", "settings", "device", "device_map",
    "plain", "blocks", "activations", "dry_run",
})  # fmt: skip
# Later options whose value in runs without them was not None, False or an empty list.
DEFAULT_BEFORE = {
    "weights": "safetensors", "engine_arithmetic": 1, "method_arithmetic": 1, "lm_eval_arithmetic": 1,
    "head_arithmetic": 1, "bleu_arithmetic": 1,
}  # fmt: skip
# What an option means that is left out, where None is its default and the run makes a value of it. The records of older
# runs hold what was typed, and so do their recipes: only `differences` takes the two as the same.
LEFT_OUT = {"num_options": 5, "option_seed": 0, "winogrande_config": "winogrande_xl"}
# Options that every record holds, as the oldest ones do. Any other is recorded only where it is not at its default, so
# that a new option leaves older runs the same.
ALWAYS_RECORDED = frozenset({
    # of llm_tasks
    "dtype", "precision", "block_size", "damping", "group_size", "calibration", "calibration_field",
    "calibration_windows", "nsamples", "magnitude_scope", "text", "text_field", "answer_metric", "max_new_tokens",
    "min_new_tokens", "overflow", "option_counts", "num_shots", "shots", "shot_order", "context_dataset",
    "context_shares", "context_tokens", "tasks", "factoid_dataset",
    # of GLUE_tasks
    "subset", "max_length", "max_train_samples", "per_device_train_batch_size", "per_device_eval_batch_size",
    "learning_rate", "weight_decay", "num_train_epochs", "gradient_accumulation_steps", "lr_scheduler_type",
    "mixed_precision", "validation_split_percentage", "mixture", "eval_split", "num_beams", "bleu_tokenize", "seed",
})  # fmt: skip
# Hashes and commits, newest form first, and the options that name what was hashed. Two records are compared by the
# first form that both have. Only without one (hub data, before commits were recorded) are the options compared.
DATA_FORMS = ("data_content_sha256", "data_sha256", "data_commit")
CONTENT = {
    ("model_sha256", "model_commit"): ("model_name_or_path", "weights", "revision"),
    DATA_FORMS: (
        "data_dir", "train_file", "validation_file", "task_file", "factoid_file", "dataset_name",
    ),
    ("text_content_sha256", "text_sha256", "text_commit"): ("text",),
    ("calibration_content_sha256", "calibration_sha256", "calibration_commit"): ("calibration",),
    ("train_text_content_sha256", "train_text_sha256", "train_text_commit"): ("train_text",),
    ("checkpoint_sha256",): ("checkpoint",),
}  # fmt: skip
# Hashes of a model's files other than its weights.
MODEL_FILES = ("config_sha256", "generation_config_sha256", "tokenizer_sha256", "template_sha256", "code_sha256")
# The same of a line's two ends.
END_FILES = tuple(f"{end}_{name}" for end in ("start", "end") for name in MODEL_FILES)
# What older records may lack, newest form first, and the options that it follows from.
RECORDED_LATER = {
    ("precision_used",): ("precision", "mixed_precision"),
    ("dtype_used",): ("dtype",),
    **{(name,): () for name in (*MODEL_FILES, *END_FILES)},
    ("pruning",): (),
    ("file_order",): (),
    ("training", "training_recipes"): (),
}
# Values of --text, --calibration and --train_text that also say how the text is read, whatever file it comes from.
NAMED_TEXTS = ("c4", "wikitext2")

CALIBRATION_OPTIONS = (
    "calibration", "calibration_field", "calibration_windows", "calibration_length", "nsamples", "true_sequential",
)  # fmt: skip
CALIBRATION_CONTENT = ("calibration_sha256", "calibration_content_sha256", "calibration_commit")
METHOD_OPTIONS = ("block_size", "damping", "group_size", "symmetric", "act_order", "static_groups")
# By kind of run, the arguments in which runs of one sweep may differ: runs that differ in nothing else are drawn in one
# figure.
COORDINATES = {
    "fine-tuning": (
        "task_name", "mixture", "shots", "transfer", "compression", "strength", "sparsity", "nm_ratio",
        "validation_split_percentage", "seed", "magnitude_scope", "noembed", "prune_new_head", "method", "save_model",
        "method_arithmetic",
    ),
    "line": (
        "pair", "data_fraction", "strength", "magnitude_scope", "start_seed", "end_seed", "start_sha256", "end_sha256",
        *END_FILES, "pruning", "method_arithmetic",
    ),
    "recovery": (
        "transfer", "compression", "sparsity", "nm_ratio", "bits", "rank", "seed", "magnitude_scope", "true_sequential",
        *METHOD_OPTIONS, "method_arithmetic",
    ),
    "compressed": (
        "compression", "sparsity", "nm_ratio", "bits", "rank", "checkpoint", "checkpoint_sha256", "seed",
        "magnitude_scope", "save_model", "export", "kl",
        *CALIBRATION_OPTIONS, *CALIBRATION_CONTENT, *METHOD_OPTIONS, "method_arithmetic",
        "only_layers", "skip_layers", "allocation", "owl_outliers", "owl_range",
    ),
}  # fmt: skip
# By kind of recipe, the arguments that it hashes; "recipe" itself hashes all but the COORDINATES. "layers" and
# "allocation" are what the labels of these names in results stand for.
PARTS = {
    "compression_recipe": (*CALIBRATION_OPTIONS, *CALIBRATION_CONTENT, "noembed", "prune_new_head"),
    "method_recipe": (*METHOD_OPTIONS, "method_arithmetic", "checkpoint_sha256"),
    "layers": ("only_layers", "skip_layers"),
    "allocation": ("allocation", "owl_outliers", "owl_range"),
}


def recorded_options(options: Record, defaults: Record) -> dict[str, Any]:
    """The options to record, in JSON's types: ALWAYS_RECORDED, and others that change a number and are not at default.

    Args:
        options: values of all options, by name.
        defaults: their default values, by name.
    """
    recorded = {}
    for name, value in options.items():
        default = defaults.get(name)
        if name in RUN_OPTIONS or (name not in ALWAYS_RECORDED and not is_absent(name, default) and default == value):
            continue
        # an option that is on by default and switched off must not count as absent
        recorded[name] = str(value) if is_absent(name, value) and not is_absent(name, default) else _plain(value)
    return recorded


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, PurePath) else value


def normal(arguments: Record, environment: Record | None = None) -> dict[str, Any]:
    """Arguments of any age in today's form, without RUN_OPTIONS and without absent values (is_absent).

    Args:
        environment: of the same record; older ones hold the precision there that was really used.
    """
    kept = {name: value for name, value in arguments.items() if name not in RUN_OPTIONS and not is_absent(name, value)}
    if kept.get("compression") in ("magnitude", "magnitude+rtn"):  # once recorded with owl, whose own walk is dense
        kept.pop("true_sequential", None)
    for used, value in zip(("precision_used", "dtype_used"), precision(environment or {}), strict=True):
        if value is not None:
            kept.setdefault(used, value)
    if files := [kept[name] for name in ("train_file", "validation_file") if name in kept]:
        kept.pop("task_name", None)  # it is the name of the files' folder
        if "data_content_sha256" not in kept:  # data_sha256 hashes files sorted by path
            kept["file_order"] = _order(*files)
    return kept


def precision(environment: Record) -> tuple[str | None, str | None]:
    """The precision and dtype that a run really computed in, by its environment; None where that lacks it."""
    option, dtype = environment.get("precision"), environment.get("dtype")
    # only float32 models are autocast
    return option if dtype in (None, "torch.float32") else "no", dtype


def _order(*files: str | list[str]) -> list[int]:
    """The indices of the files sorted by path."""
    paths = [PurePath(path) for value in files for path in ([value] if isinstance(value, str) else value)]
    return sorted(range(len(paths)), key=paths.__getitem__)


def is_absent(name: str, value: Any) -> bool:
    """Whether an option with this value and a missing option mean the same."""
    return value is None or value is False or value in ("", [], ()) or DEFAULT_BEFORE.get(name) == value


def differences(one: Record, other: Record) -> list[str]:
    """How two records' runs differ, a text for each argument: "name: value here, other value there"; empty if not."""
    here, there = _comparable(normal(one)), _comparable(normal(other))
    compared = here.keys() | there.keys()
    for forms, options in (*CONTENT.items(), *RECORDED_LATER.items()):
        shared = [form for form in forms if form in here and form in there][:1]
        hashed = [any(form in record and form.endswith("sha256") for form in forms) for record in (here, there)]
        if shared or forms in RECORDED_LATER or hashed[0] == hashed[1]:  # else files and hub data, which differ
            compared -= {*forms} - {*shared}
        if shared:
            compared -= {name for name in options if not _says_how_read(name, here) and not _says_how_read(name, there)}
    if "data_content_sha256" in here and "data_content_sha256" in there:
        compared.discard("file_order")
    return [
        f"{name}: {_shown(here, name)} here, {_shown(there, name)} there"
        for name in sorted(compared)
        if here.get(name) != there.get(name)
    ]


def _comparable(record: Record) -> Record:
    """The record without options whose value is what leaving them out means, and with what no hash of files tells."""
    meant = {**LEFT_OUT, "answer_mode": "cloze" if "tasks" in record else "letter"}  # setting 5 has tasks
    kept = {name: value for name, value in record.items() if meant.get(name) != value}
    if "train_file" in kept:  # one hash is of the files for training and those for evaluation, in this order
        kept["num_train_files"] = len(kept["train_file"]) if isinstance(kept["train_file"], list) else 1
    return kept


def content_differences(kind: str, one: Record, other: Record) -> list[str]:
    """How two runs differ in their "model" or their "data" (kind); texts as in differences."""
    forms, options = next((forms, names) for forms, names in CONTENT.items() if forms[0].startswith(kind))
    names = {*forms, *options, "file_order"} | ({*MODEL_FILES} if kind == "model" else set())
    parts = [{name: value for name, value in normal(record).items() if name in names} for record in (one, other)]
    return differences(*parts)


def _says_how_read(name: str, record: Record) -> bool:
    """Whether an option that names a text also says how it is read."""
    return name in ("text", "calibration", "train_text") and record.get(name) in NAMED_TEXTS


def _shown(record: Record, name: str) -> str:
    return repr(record.get(name, DEFAULT_BEFORE.get(name)))


def recipe(arguments: Record, left_out: Iterable[str] = ()) -> str:
    """Short hash of a run's arguments without those in `left_out`, in today's form.

    Equal hashes mean equal arguments. Different hashes may mean the same where an older version wrote one of them; then
    `differences` decides.
    """
    hashed = normal(arguments)
    for forms, options in (*CONTENT.items(), *RECORDED_LATER.items()):
        known = [form for form in forms if form in hashed]
        for name in (*known[1:], *(options if known else ())):
            if not _says_how_read(name, hashed):
                hashed.pop(name, None)
    for name in left_out:
        hashed.pop(name, None)
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


def method_recipe(identity: Record) -> str | None:
    """Short hash of the method's own options and arithmetic; None where all are absent (is_absent)."""
    told = normal(part_of(identity, "method_recipe"))
    return recipe(told) if told else None


def part_of(record: Record, key: str) -> dict[str, Any]:
    """The arguments that a recipe hashes: all but COORDINATES for the key "recipe", else those of PARTS."""
    if key in PARTS:
        return {name: value for name, value in record.items() if name in PARTS[key]}
    marks = {"train_text": "recovery", "transfer": "fine-tuning", "pair": "line"}
    kind = next((kind for mark, kind in marks.items() if mark in record), "compressed")
    return {name: value for name, value in record.items() if name not in COORDINATES[kind]}
