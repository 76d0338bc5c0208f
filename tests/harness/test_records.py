"""harness/records.py: what makes two runs the same, whatever version recorded them."""

import pytest
import torch
from architectures import tiny_config
from transformers import AutoModelForCausalLM

from harness import records
from harness.records import differences, normal, recipe
from llm_tasks import methods, plan
from llm_tasks.methods import Options

LLM = {
    "model_name_or_path": "models/m", "model_sha256": "m1", "compression": "gptq", "bits": 4, "sparsity": None,
    "dtype": "auto", "precision": "auto", "group_size": 8, "calibration": "data/c.jsonl", "calibration_sha256": "c1",
    "text": "data/t.txt", "text_sha256": "t1", "seed": 0, "trust_remote_code": False,
}  # fmt: skip
GLUE = {
    "model_name_or_path": "m", "model_sha256": "m1", "transfer": "sparse_transfer", "task_name": "toy", "seed": 41,
    "train_file": "toy/train.csv", "validation_file": "toy/validation.csv", "data_sha256": "d1",
    "mixed_precision": "auto", "learning_rate": 2e-5,
}  # fmt: skip


def changed(record: dict, **values: object) -> list[str]:
    """Names of the arguments by which a record differs from the same with other values."""
    return [text.partition(":")[0] for text in differences(record, {**record, **values})]


def test_differences_tell_absent_from_present():
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b: 2 here, None there", "c: None here, 3 there"]


@pytest.mark.parametrize(
    ("record", "values"),
    [
        (LLM, {"model_name_or_path": "/elsewhere/models/m"}),
        (LLM, {"text": "/data/t.txt"}),
        (LLM, {"calibration": "/data/c.jsonl"}),
        (LLM, {"output_dir": "x", "device": "cuda", "tokens_per_batch": 7, "stream": True, "plain": True}),
        (LLM, {"weights": "bin", "revision": "v2"}),  # the weights' hash is the same
        (LLM, {"symmetric": False, "answer_mode": None, "tasks": []}),  # options that did not exist
        (LLM, {"weights": "safetensors", "engine_arithmetic": 1, "method_arithmetic": 1}),
        (GLUE, {"train_file": "/a/toy/train.csv", "validation_file": "/a/toy/validation.csv"}),
        (GLUE, {"train_file": "copy/train.csv", "validation_file": "copy/validation.csv", "task_name": "copy"}),
        (GLUE, {"checkpointing_steps": 5, "report_to": "none"}),
    ],
)
def test_paths_and_ways_to_carry_a_run_out_are_no_identity(record, values):
    assert changed(record, **values) == []


def test_a_file_that_moves_from_training_to_evaluation_makes_another_run():
    """Of which the hash of all files, in their order, knows nothing."""
    hashes = {"data_sha256": "d1", "data_content_sha256": "d2"}
    one = {**GLUE, **hashes, "train_file": ["a.jsonl", "b.jsonl"], "validation_file": ["c.jsonl"]}
    other = {**GLUE, **hashes, "train_file": ["copy/a.jsonl"], "validation_file": ["b.jsonl", "c.jsonl"]}
    assert differences(one, other) == ["num_train_files: 2 here, 1 there"]
    assert not differences({**one, "train_file": ["x", "y"]}, one)


@pytest.mark.parametrize(
    ("record", "option", "meant", "other"),
    [
        (LLM, "answer_mode", "letter", "cloze"),
        ({**LLM, "tasks": ["piqa"]}, "answer_mode", "cloze", "letter"),  # setting 5
        (GLUE, "num_options", 5, 4),
        (GLUE, "option_seed", 0, 1),
        (GLUE, "winogrande_config", "winogrande_xl", "winogrande_l"),
    ],
)
def test_a_default_that_is_typed_is_the_default_left_out(record: dict, option: str, meant: object, other: object):
    """In either order; the recipes stay those that older runs have, which typed it too."""
    typed = {**record, option: meant}
    assert differences(record, typed) == differences(typed, record) == []
    assert changed(record, **{option: other}) == changed(typed, **{option: other}) == [option]
    assert recipe(record) != recipe(typed)


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (LLM, "model_sha256", "m2"), (LLM, "text_sha256", "t2"), (LLM, "calibration_sha256", "c2"),
        (LLM, "group_size", -1), (LLM, "symmetric", True), (LLM, "seed", 1), (LLM, "engine_arithmetic", 2),
        (LLM, "method_arithmetic", 2), (LLM, "max_items", 0), (LLM, "trust_remote_code", True),
        (GLUE, "data_sha256", "d2"), (GLUE, "learning_rate", 1e-5), (GLUE, "num_warmup_steps", 0),
    ],
)  # fmt: skip
def test_what_changes_a_number_is_identity(record, name, value):
    assert changed(record, **{name: value}) == [name]


@pytest.mark.parametrize("compression", ["magnitude", "magnitude+rtn"])
def test_what_owl_alone_calibrates_was_recorded_with_an_option_that_it_does_not_obey(compression: str):
    record = {"compression": compression, "allocation": "owl"}
    assert not changed(record, true_sequential=True)
    assert changed({**record, "compression": "wanda"}, true_sequential=True) == ["true_sequential"]


def test_arithmetic_that_a_record_does_not_tell_is_the_first():
    assert differences(LLM, {**LLM, "engine_arithmetic": 2}) == ["engine_arithmetic: 1 here, 2 there"]


@pytest.mark.parametrize("name", ["text", "calibration"])
def test_the_name_of_a_text_says_how_it_is_read(name):
    named = {**LLM, name: "wikitext2"}
    assert differences(named, dict(named)) == []
    assert changed(named, **{name: "data/wikitext2/train.txt"}) == [name]
    assert recipe(named) != recipe(LLM)


def test_the_precision_really_used_is_read_from_the_environment_of_older_records():
    bf16 = normal(LLM, {"precision": "bf16", "dtype": "torch.float32"})
    float32 = normal(LLM, {"precision": "no", "dtype": "torch.float32"})
    assert differences(bf16, float32) == ["precision_used: 'bf16' here, 'no' there"]
    assert differences(float32, {**LLM, "precision": "no", "precision_used": "no", "dtype_used": "torch.float32"}) == []
    assert differences(LLM, bf16) == []  # where nothing tells


def test_models_of_another_dtype_compute_in_it_whatever_is_asked_for():
    """auto is bf16 on one machine and float32 on another, for float32 models alone."""
    one, other = (normal(LLM, {"precision": name, "dtype": "torch.bfloat16"}) for name in ("no", "bf16"))
    assert differences(one, other) == []
    (changed,) = differences(one, normal(LLM, {"precision": "no", "dtype": "torch.float32"}))
    assert changed.startswith("dtype_used: ")


def test_content_decides_by_the_newest_form_that_both_know():
    newer = {**LLM, "text_content_sha256": "x1", "config_sha256": "y1"}
    assert differences(LLM, newer) == [] == differences(newer, LLM)
    assert differences(newer, {**newer, "text": "other", "text_sha256": "name counts"}) == []
    assert changed(newer, text_content_sha256="x2") == ["text_content_sha256"]
    assert changed(newer, config_sha256="y2") == ["config_sha256"]


def test_a_hub_model_is_its_commit_and_before_commits_were_recorded_its_name():
    older = {**LLM, "model_name_or_path": "lab/m", "model_sha256": None}
    newer = {**{name: value for name, value in older.items() if name != "model_sha256"}, "model_commit": "a" * 40}
    assert differences(older, newer) == []
    assert changed(newer, model_commit="b" * 40) == ["model_commit"]
    assert changed(newer, revision="v2") == []
    assert changed(older, model_name_or_path="lab/n") == ["model_name_or_path"]
    assert changed(older, model_sha256="m1") == ["model_sha256"]  # a folder of the hub's name


def test_data_of_the_hub_are_not_those_of_a_folder():
    folder, hub = {"seed": 0, "data_sha256": "d1", "data_content_sha256": "e1"}, {"seed": 0, "data_commit": "x@1"}
    assert differences(folder, hub)


def test_older_hashes_follow_the_paths_order_so_that_swapped_files_are_told_apart():
    one = {**GLUE, "train_file": "a/x.csv", "validation_file": "b/x.csv"}
    swapped = {**GLUE, "train_file": "b/x.csv", "validation_file": "a/x.csv"}
    assert [text.partition(":")[0] for text in differences(one, swapped)] == ["file_order"]
    assert differences({**one, "data_content_sha256": "e"}, {**swapped, "data_content_sha256": "e"}) == []


def test_recipe_ignores_what_is_left_out_order_and_paths_alone():
    found = recipe({"lr": 1e-5, "seed": 1}, ["seed"])
    assert found == recipe({"seed": 2, "lr": 1e-5}, ["seed"])
    assert found != recipe({"lr": 2e-5, "seed": 1}, ["seed"])
    assert recipe(LLM) == recipe({**LLM, "model_name_or_path": "/models/m", "text": "t.txt", "device": "cpu"})
    assert recipe(LLM) != recipe({**LLM, "model_sha256": "m2"})


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("fine-tuning", ("learning_rate", "num_train_epochs", "max_train_steps", "max_length", "subset", "weight_decay",
                         "max_train_samples", "max_eval_samples", "lr_scheduler_type", "num_warmup_steps",
                         "per_device_train_batch_size", "gradient_accumulation_steps", "num_processes",
                         "precision_used", "model_sha256", "data_sha256")),
        ("line", ("num_points", "max_train_samples", "max_eval_samples", "seed", "training", "data_sha256")),
        ("recovery", ("learning_rate", "max_train_steps", "train_length", "train_text_sha256", "text_sha256")),
        ("compressed", ("text_sha256", "data_sha256", "seq_len", "max_windows", "answer_mode", "num_shots", "max_items",
                        "dtype_used", "precision_used", "engine_arithmetic", "model_sha256")),
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_coordinates_have_different_recipes(kind: str, names: tuple[str, ...]):
    """Or figures would average what was trained or measured otherwise."""
    base = dict.fromkeys((*names, "seed", "sparsity", "transfer"), 7)
    coordinates = records.COORDINATES[kind]
    for name in names:
        assert recipe(base, coordinates) != recipe({**base, name: 8}, coordinates), name
    for name in {"seed", "sparsity", "transfer"} & {*coordinates}:
        assert recipe(base, coordinates) == recipe({**base, name: 8}, coordinates), name


@pytest.mark.parametrize("name", ["calibration", "nsamples", "calibration_sha256", "noembed", "prune_new_head"])
def test_what_is_compressed_and_on_which_text_is_the_recipe_of_compression(name: str):
    here, there = (recipe(records.part_of(record, "compression_recipe")) for record in ({name: 7}, {name: 8}))
    assert here != there


def test_an_option_that_came_later_is_recorded_where_it_is_not_at_its_default():
    defaults = {"grid": "published", "dtype": "auto", "count": 7, "flag": False}
    kept = records.recorded_options({"grid": "published", "dtype": "auto", "count": 8, "flag": False}, defaults)
    assert kept == {"dtype": "auto", "count": 8, "flag": False}


def test_an_option_that_was_on_before_it_could_be_switched_off_is_recorded_as_off():
    kept = records.recorded_options({"untied": False}, {"untied": True})
    assert records.recorded_options({"untied": True}, {"untied": True}) == {}
    assert differences({}, kept) == ["untied: None here, 'False' there"]


def test_every_option_of_a_method_is_a_part_of_its_recipe():
    assert set(methods.METHOD_OPTIONS) <= {*records.METHOD_OPTIONS}, "name it in analysis/records.py"


@pytest.mark.parametrize(
    ("compression", "group_size", "walk_arithmetic", "expected"),
    [("dense", 128, 2, 1), ("magnitude", 128, 2, 1), ("wanda", 128, 1, 1), ("wanda", 128, 2, 2), ("rtn", 32, 2, 1),
     ("gptq", 128, 1, 1), ("gptq", 32, 1, 2), ("gptq", -1, 2, 2)],
)  # fmt: skip
def test_a_compressions_number_counts_the_statistics_that_it_is_calibrated_on(
    compression: str, group_size: int, walk_arithmetic: int, expected: int
):
    computed = plan.Computation("torch.float32", "no", 1, walk_arithmetic)
    options, cell = Options(group_size=group_size), {"compression": compression}
    assert plan.method_arithmetic(options, cell, computed) == expected
    more = plan.method_arithmetic(options, cell, computed._replace(layers_arithmetic=2))  # of every compression
    assert more == expected + (compression != "dense")


@pytest.mark.parametrize(("name", "number"), [("phimoe", 2), ("mixtral", 1)])
def test_a_model_whose_gates_were_compressed_once_has_another_number(name: str, number: int):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name))
    computed = plan.computation(model, torch.float32, "no", ("perplexity",))
    assert plan.method_arithmetic(Options(), {"compression": "magnitude"}, computed) == number
