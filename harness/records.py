"""What makes two runs the same: content, the options that change a number, and the arithmetic. Never a path.

A record is what args.json holds of a run: its arguments, and the environment that it was made in. Records of any age
compare: an option that a record does not have counts as what the program did before the option existed, and what a
record cannot know (a hash that was not taken then) is compared only where both sides know it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

Record = Mapping[str, Any]

# Options that change no number: how a run is carried out, and where its files lie.
RUN_OPTIONS = frozenset({
    "output_dir", "overwrite", "list_cells", "group_by", "checkpointing_steps", "resume_from_checkpoint",
    "with_tracking", "report_to", "eval_each_epoch", "tokens_per_batch", "stream", "settings", "device", "device_map",
    "plain", "blocks", "activations", "dry_run",
})  # fmt: skip
# Options that came later, and what a run without them did; None, False and an empty list count as absent anyway.
DEFAULT_BEFORE = {"weights": "safetensors", "engine_arithmetic": 1, "method_arithmetic": 1}
# The options that every record holds whatever their value, as the first ones did. Any other is recorded only where it
# is not at its default: a new option leaves the runs before it what they are.
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
# Hashes and commits by newest form first, and the options that name what they are of. The first form that two records
# share decides, and the options do not; without one (from the hub, before commits were recorded) the options do.
DATA_FORMS = ("data_content_sha256", "data_sha256", "data_commit")
CONTENT = {
    ("model_sha256", "model_commit"): ("model_name_or_path", "weights", "revision"),
    DATA_FORMS: (
        "data_dir", "train_file", "validation_file", "task_file", "factoid_file", "dataset_name",
    ),
    ("text_content_sha256", "text_sha256", "text_commit"): ("text",),
    ("calibration_content_sha256", "calibration_sha256", "calibration_commit"): ("calibration",),
}  # fmt: skip
# Of a model besides its weights.
MODEL_FILES = ("config_sha256", "generation_config_sha256", "tokenizer_sha256", "template_sha256", "code_sha256")
# What not every older record tells, newest form first, and the options that it follows from.
TOLD_LATER = {
    ("precision_used",): ("precision", "mixed_precision"),
    ("dtype_used",): ("dtype",),
    **{(name,): () for name in MODEL_FILES},
    ("file_order",): (),
    ("training", "training_recipes"): (),
}
# Texts whose name says how they are read, whatever file they come from.
NAMED_TEXTS = ("c4", "wikitext2")

CALIBRATION_OPTIONS = (
    "calibration", "calibration_field", "calibration_windows", "calibration_length", "nsamples", "true_sequential",
)  # fmt: skip
CALIBRATION_CONTENT = ("calibration_sha256", "calibration_content_sha256", "calibration_commit")
METHOD_OPTIONS = ("block_size", "damping", "group_size", "symmetric", "act_order", "static_groups")
# By kind of run, the arguments that tell the runs of one sweep apart: those that differ in these alone stand in one
# figure.
COORDINATES = {
    "fine-tuning": (
        "task_name", "mixture", "shots", "transfer", "compression", "strength", "sparsity", "nm_ratio",
        "validation_split_percentage", "seed", "magnitude_scope", "noembed", "prune_new_head", "method", "save_model",
    ),
    "line": (
        "pair", "data_fraction", "strength", "magnitude_scope", "start_seed", "end_seed", "start_sha256", "end_sha256",
    ),
    "compressed": (
        "compression", "sparsity", "nm_ratio", "bits", "rank", "seed", "magnitude_scope", "save_model", "export",
        *CALIBRATION_OPTIONS, *CALIBRATION_CONTENT, *METHOD_OPTIONS, "method_arithmetic",
    ),
}  # fmt: skip
# By recipe, the arguments that it is a hash of; the recipe itself is of all but the coordinates.
PARTS = {
    "compression_recipe": (*CALIBRATION_OPTIONS, *CALIBRATION_CONTENT, "noembed", "prune_new_head"),
    "method_recipe": (*METHOD_OPTIONS, "method_arithmetic"),
}


def recorded_options(options: Record, defaults: Record) -> dict[str, Any]:
    """The options that a record holds, as JSON holds them: those that came later only where they have another value.

    Args:
        options: by name, those that change no number among them.
        defaults: of the options, by name.
    """
    found = {}
    for name, value in options.items():
        default = defaults.get(name)
        if name in RUN_OPTIONS or (name not in ALWAYS_RECORDED and not is_absent(name, default) and default == value):
            continue
        # an option that is switched off and was on without it is not absent
        found[name] = str(value) if is_absent(name, value) and not is_absent(name, default) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, PurePath) else value


def normal(arguments: Record, environment: Record | None = None) -> dict[str, Any]:
    """A record of any age as today's records are: no options that change no number, no absent values.

    Args:
        environment: where older records hold the precision that was really used.
    """
    found = {name: value for name, value in arguments.items() if name not in RUN_OPTIONS and not is_absent(name, value)}
    for used, value in zip(("precision_used", "dtype_used"), precision(environment or {}), strict=True):
        if value is not None:
            found.setdefault(used, value)
    if files := [found[name] for name in ("train_file", "validation_file") if name in found]:
        found.pop("task_name", None)  # it is that of the files' folder
        if "data_content_sha256" not in found:  # a hash of the files in the order of their paths
            found["file_order"] = _order(*files)
    return found


def precision(environment: Record) -> tuple[str | None, str | None]:
    """What a run's environment says it computed in: precision and dtype, None where it does not say."""
    asked, dtype = environment.get("precision"), environment.get("dtype")
    # a model of another dtype computes in it, whatever is asked for
    return asked if dtype in (None, "torch.float32") else "no", dtype


def _order(*files: str | list[str]) -> list[int]:
    """How sorting by path reorders files."""
    paths = [PurePath(path) for some in files for path in ([some] if isinstance(some, str) else some)]
    return sorted(range(len(paths)), key=paths.__getitem__)


def is_absent(name: str, value: Any) -> bool:
    """Whether the value says what a record says that lacks the option."""
    return value is None or value is False or value in ("", [], ()) or DEFAULT_BEFORE.get(name) == value


def differences(one: Record, other: Record) -> list[str]:
    """One text per argument by which two records are of different runs: "name: value here, other value there"."""
    here, there = normal(one), normal(other)
    compared = here.keys() | there.keys()
    for forms, options in (*CONTENT.items(), *TOLD_LATER.items()):
        shared = [form for form in forms if form in here and form in there][:1]
        hashed = [any(form in record and form.endswith("sha256") for form in forms) for record in (here, there)]
        if shared or forms in TOLD_LATER or hashed[0] == hashed[1]:  # else one is of files, the other of the hub
            compared -= {*forms} - {*shared}
        if shared:
            compared -= {name for name in options if not _says_how(name, here) and not _says_how(name, there)}
    if "data_content_sha256" in here and "data_content_sha256" in there:
        compared.discard("file_order")
    return [
        f"{name}: {_told(here, name)} here, {_told(there, name)} there"
        for name in sorted(compared)
        if here.get(name) != there.get(name)
    ]


def content_differences(kind: str, one: Record, other: Record) -> list[str]:
    """How two runs differ in their "model" or "data", as differences says it."""
    forms, options = next((forms, names) for forms, names in CONTENT.items() if forms[0].startswith(kind))
    names = {*forms, *options, "file_order"} | ({*MODEL_FILES} if kind == "model" else set())
    parts = [{name: value for name, value in normal(record).items() if name in names} for record in (one, other)]
    return differences(*parts)


def _says_how(name: str, record: Record) -> bool:
    """Whether an option that names a text says how it is read besides."""
    return name in ("text", "calibration") and record.get(name) in NAMED_TEXTS


def _told(record: Record, name: str) -> str:
    return repr(record.get(name, DEFAULT_BEFORE.get(name)))


def recipe(arguments: Record, left_out: Iterable[str] = ()) -> str:
    """Short hash of what tells a run from others, some arguments left out.

    Equal hashes mean equal recipes. Different hashes may mean the same recipe, where an older version wrote one of them
    (see differences).
    """
    found = normal(arguments)
    for forms, options in (*CONTENT.items(), *TOLD_LATER.items()):
        known = [form for form in forms if form in found]
        for name in (*known[1:], *(options if known else ())):
            if not _says_how(name, found):
                found.pop(name, None)
    for name in left_out:
        found.pop(name, None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def part_of(record: Record, key: str) -> dict[str, Any]:
    """Of a record, what a recipe is a hash of: "recipe", of all but the coordinates, or one of PARTS."""
    if key in PARTS:
        return {name: value for name, value in record.items() if name in PARTS[key]}
    kind = "fine-tuning" if "transfer" in record else "line" if "pair" in record else "compressed"
    return {name: value for name, value in record.items() if name not in COORDINATES[kind]}
