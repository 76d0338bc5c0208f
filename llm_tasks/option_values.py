"""The values that the library takes, made of the options that a command line gives."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from harness.device import best_precision, device_named
from llm_tasks.compressed_model import Calibration, Compression, ModelSource
from llm_tasks.engine.cpu import WORKER_TOKENS
from llm_tasks.engine.processes import local_device
from llm_tasks.evaluation import Reading
from llm_tasks.layer_options import allocation_files, owl_of
from llm_tasks.levels import Setting
from llm_tasks.methods import METHOD_OPTIONS, METHODS, Options, Strength

TOKENS_PER_BATCH, TOKENS_PER_BATCH_CPU = 4096, 2048  # more are no faster on a CPU, and take memory
MOST_WORKERS = 8  # by default: what many threads compute side by side would fill the memory
SOURCE_OF_FIELD = {"calibration_field": "calibration", "text_field": "text"}  # the option that names a column's text

Given = Mapping[str, Any]  # options by name


def answer_mode(setting: Setting, given: Given) -> str | None:
    """How the setting's options to choose from are read."""
    return given["answer_mode"] or setting.answer_mode


def values_of(setting: Setting, given: Given, **more: Any) -> Any:
    """The options that a setting's functions read, as its `values`; `more` are those that are no options."""
    known = {**given, **more}
    if "answer_mode" in given:
        known["answer_mode"] = answer_mode(setting, given)
    return setting.values(**{field.name: known[field.name] for field in fields(setting.values) if field.name in known})


def device_of(given: Given) -> torch.device:
    """Raises ValueError where the machine has no such device."""
    return local_device(device_named(given["device"]))


def model_source(given: Given) -> ModelSource:
    names = ("weights", "revision", "trust_remote_code", "dtype", "device_map")
    return ModelSource(given["model_name_or_path"], device_of(given), **{name: given[name] for name in names})


def precision_of(given: Given) -> str:
    """Of a float32 model's matmuls: "bf16" or "no"."""
    return best_precision(device_of(given)) if given["precision"] == "auto" else given["precision"]


def compression(given: Given) -> Compression:
    shared = {name: shared_strengths(given, name) for name in dict.fromkeys(given["compression"])}
    return Compression(
        options=method_options(given),
        magnitude_scope=given["magnitude_scope"],
        true_sequential=given["true_sequential"],
        export=given["export"],
        shared={name: strengths for name, strengths in shared.items() if strengths},
        tokens_per_batch=tokens_per_batch(given["tokens_per_batch"], device_of(given)),
        precision=precision_of(given),
        activations=torch.device("cpu") if given["activations"] == "host" else None,
        owl=owl_of(given),
        allocation_files=allocation_files(given),
    )


def method_options(given: Given) -> Options:
    return Options(**{name: given[name] for name in METHOD_OPTIONS})


def shared_strengths(given: Given, name: str) -> list[Strength]:
    """The strengths for which a compression prepares each weight once; none where there are not several."""
    method = METHODS.get(name)
    if method is None or method.shared is None:
        return []
    strengths = [Strength(kind, value) for kind in method.strengths for value in dict.fromkeys(given[kind])]
    return strengths if len(strengths) > 1 else []


def calibration_of(given: Given, max_length: int) -> Calibration:
    """The text to calibrate on, in windows of as many tokens as asked for or as the model takes.

    Args:
        max_length: tokens that the model takes.
    Raises:
        ValueError: longer windows are asked for.
    """
    length = given["calibration_length"] or min(2048, max_length)
    if length > max_length:
        raise ValueError(f"--calibration_length {length}: {given['model_name_or_path']} takes {max_length} tokens")
    return Calibration(
        given["calibration"], given["calibration_field"], given["calibration_windows"], given["nsamples"],
        length, given["data_dir"],
    )  # fmt: skip


def template_values(given: Given) -> dict[str, Any] | None:
    """The values that the chat template is handed; None where prompts are bare, as a text's are."""
    return json.loads(given["chat_template_kwargs"] or "{}") if given.get("chat_template") else None


def reading(given: Given) -> Reading:
    """How prompts are put to a model and its answers read.

    Raises:
        ValueError: options that do not go together.
    """
    if given["min_new_tokens"] > given["max_new_tokens"]:
        raise ValueError(
            f"--min_new_tokens {given['min_new_tokens']}: allowed up to --max_new_tokens {given['max_new_tokens']}"
        )
    if given["chat_template"] and given["overflow"] == "truncate_left":
        raise ValueError("--chat_template: --overflow truncate_left would cut the template; allowed: drop_shots, skip")
    if given["chat_template_kwargs"] and not given["chat_template"]:
        raise ValueError(f"--chat_template_kwargs {given['chat_template_kwargs']} goes with --chat_template")
    names = ("answer_metric", "length_normalized", "max_new_tokens", "min_new_tokens", "overflow", "plain")
    return Reading(
        **{name: given[name] for name in names},
        template_values=template_values(given),
        tokens_per_batch=tokens_scored_at_once(given["tokens_per_batch"], device_of(given)),
        precision=precision_of(given),
    )


def tokens_per_batch(asked: int | None, device: torch.device) -> int:
    """Tokens computed at once: as many as asked for, else what suits the device."""
    return asked or (TOKENS_PER_BATCH_CPU if device.type == "cpu" else TOKENS_PER_BATCH)


def tokens_scored_at_once(asked: int | None, device: torch.device) -> int:
    """tokens_per_batch; on a CPU by default as many as its threads compute side by side."""
    return tokens_scored_on_cpu() if device.type == "cpu" and not asked else tokens_per_batch(asked, device)


def tokens_scored_on_cpu() -> int:
    """Tokens per batch that are enough for as many worker threads as torch has threads, up to MOST_WORKERS."""
    return max(TOKENS_PER_BATCH_CPU, WORKER_TOKENS * min(torch.get_num_threads(), MOST_WORKERS))
