"""Stages of a run, by stand-ins: on which model fast paths are proven, and for what memory is asked."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llm_tasks import run
from llm_tasks.engine.processes import ALONE
from llm_tasks.evaluation import Evaluation, Reading
from llm_tasks.methods import CHECKPOINT
from llm_tasks.settings import SETTINGS

LEVELS = {seed: [f"levels of seed {seed}"] for seed in (0, 1)}


def proven(model: object, levels: list[str], plain: bool, storage: object) -> tuple:
    return model, levels, plain


def test_fast_paths_are_proven_on_the_dense_model_before_it_is_compressed(monkeypatch: pytest.MonkeyPatch):
    checked = []
    monkeypatch.setattr(run, "load_model", lambda source: "dense")
    monkeypatch.setattr(run, "refuse_unknown_ids", lambda *given: checked.append(given))
    monkeypatch.setattr(run, "CompressibleModel", lambda *given, **more: SimpleNamespace(storage=lambda: None))
    monkeypatch.setattr(run, "engine_ways", proven)
    job = SimpleNamespace(
        checkpoint={}, source=SimpleNamespace(blocks="device"), tokenizer="tokenizer", several=True, processes=ALONE,
        how=None, reading=Reading(plain=True), measured=(2,), data=lambda name: LEVELS, proven={},
    )  # fmt: skip
    run.load_dense(job)
    assert job.proven == {(2, seed): ("dense", own, True) for seed, own in LEVELS.items()}
    assert checked == [("dense", "tokenizer")]


def test_a_streamed_model_takes_the_fast_paths_of_the_dense_one(monkeypatch: pytest.MonkeyPatch):
    def measured(model: object, tokenizer: object, levels: list, *more: object) -> Evaluation:
        return Evaluation([], {}, {"asked": (model, levels), "ways": more[2]})

    monkeypatch.setattr(run, "engine_ways", proven)
    monkeypatch.setattr(run, "measure", measured)
    setting = SimpleNamespace(name=2, seeded=True, task="option_count")
    job = SimpleNamespace(
        asked=SimpleNamespace(settings={2: setting}, given={"seed": [0, 1]}), data=lambda name: LEVELS,
        reading=Reading(plain=True), streams=True, streamed_ways={}, streamed_dense=SimpleNamespace(model="dense"),
        tokenizer=None, processes=ALONE,
    )  # fmt: skip
    for seed, own in LEVELS.items():
        cell = {"setting": 2, "seed": seed, CHECKPOINT: None, "compression": "wanda"}
        facts = run.measure_model(job, run.Compressed("pruned", "storage", {}), cell).facts
        assert facts == {"task": "option_count", "asked": ("pruned", own), "ways": ("dense", own, True)}


def test_memory_is_asked_for_all_processes_of_a_machine_and_for_written_answers(monkeypatch: pytest.MonkeyPatch):
    told = {}
    monkeypatch.setattr(run, "memory_needed", lambda *given, **more: told.update(more))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    given = {"stream": False, "blocks": "device", CHECKPOINT: None, "rank": [2, 5], "tokens_per_batch": None,
             "activations": "host"}  # fmt: skip
    asked = SimpleNamespace(given=given, settings={6: SETTINGS[6]})
    device = torch.device("cpu")
    source = SimpleNamespace(on_accelerator=False, dtype_of=lambda config: torch.float32, device=device)
    how = SimpleNamespace(shared={"low_rank": ()}, export="gptqmodel", tokens_per_batch=7)
    values, model = {6: SimpleNamespace(answer_mode="letter")}, SimpleNamespace(config=None)
    run.plan_memory(asked, values, source, how, model, [], several=True, is_pending=False)
    assert told == {
        "whole_logits": False, "activations": "host", "several": True, "shared_rank": 5, "exports": True,
        "processes": 3, "writes_answers": True, "beside_dense": False,
    }  # fmt: skip


def test_a_texts_windows_are_built_of_the_first_seed():
    setting = SimpleNamespace(load=lambda values: f"text of {values}", build=lambda *given: given)
    built = run.prepare_data(setting, "values", [5, 6], "tokenizer", 9, None)
    assert built == ("text of values", "values", 5, "tokenizer")


def test_a_run_records_its_precision_and_the_dtype_of_the_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run.run_folder, "describe_environment", lambda device, **more: {"device": device, **more})
    job = SimpleNamespace(
        source=SimpleNamespace(devices=[torch.device("cpu")], dtype="auto"), dtype=torch.bfloat16,
        how=SimpleNamespace(precision="no"), streams=True,
    )  # fmt: skip
    told = run.environment(job)
    assert (told["device"], told["dtype"], told["precision"], told["stream"]) == ("cpu", "torch.bfloat16", "no", True)


def test_a_run_holds_what_was_compressed_and_found_and_how_long_each_took(monkeypatch: pytest.MonkeyPatch):
    at, written = [0.0], {}

    def compress(*given: object) -> run.Compressed:
        at[0] += 5
        return run.Compressed("pruned", None, {"measured_sparsity": 0.5})

    def measure(*given: object) -> Evaluation:
        at[0] += 2
        return Evaluation(["level"], {"items": 1}, {"task": "mine"})

    monkeypatch.setattr(run.time, "monotonic", lambda: at[0])
    monkeypatch.setattr(run, "compress_loaded", compress)
    monkeypatch.setattr(run, "measure_model", measure)
    monkeypatch.setattr(run, "environment", lambda job: {})
    monkeypatch.setattr(run, "once_quantized", lambda *given: None)
    monkeypatch.setattr(run.plan, "describe", lambda *given: {"compression": "wanda"})
    monkeypatch.setattr(run.run_folder, "start_run", lambda *given: None)
    monkeypatch.setattr(run.run_folder, "write_run", lambda folder, result, items: written.update(result, items=items))
    cell, folder = {"setting": 2, CHECKPOINT: None}, Path("run")
    job = SimpleNamespace(
        folders={folder: cell}, identities={folder: {}}, processes=ALONE, streams=False,
        source=SimpleNamespace(devices=[torch.device("cpu")], name="m", weights="safetensors", revision=None),
        asked=SimpleNamespace(given={"model_name_or_path": "m", "magnitude_scope": "layer"}),
    )  # fmt: skip
    run.compute_run(job, lambda: "dense", folder)
    assert written.pop("peak_memory_bytes") > 0
    assert written == {
        "compression": "wanda", "measured_sparsity": 0.5, "task": "mine", "parent_quantized": None,
        "evaluate_seconds": 2, "seconds": 7, "levels": ["level"], "items": {"items": 1},
    }  # fmt: skip


def test_a_streamed_model_is_refused_where_texts_hold_ids_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch):
    checked, folder = [], Path("run")
    blocks = SimpleNamespace(model="pruned", weights=lambda: [])
    monkeypatch.setattr(run, "stream", lambda *given: (blocks, 1.5))
    monkeypatch.setattr(run, "refuse_unknown_ids", lambda *given: checked.append(given))
    monkeypatch.setattr(run, "compression_facts", lambda *given: {"measured_sparsity": 0.5})
    monkeypatch.setattr(run, "compressed_by", lambda cell: ("magnitude", 0.5))
    monkeypatch.setattr(run, "is_calibrated", lambda cell: False)
    job = SimpleNamespace(
        folders={folder: {"seed": 0}}, identities={folder: {}}, source=None, how=None, tokenizer="tokenizer",
        streamed={},
    )  # fmt: skip
    made = run.compress_streamed(job, folder)
    assert checked == [("pruned", "tokenizer")]
    assert made == ("pruned", blocks, {"measured_sparsity": 0.5, "compress_seconds": 1.5})


def test_a_plan_says_how_much_disk_the_streamed_models_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(run, "compressed_by", lambda cell: cell["compression"])
    cells = {Path(name): {"compression": name} for name in ("dense", "wanda", "magnitude")}
    model = torch.nn.Linear(50_000, 20_000, bias=False, device="meta")
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=1000))
    planned = SimpleNamespace(
        source=SimpleNamespace(name="m", devices=[], blocks="files", on_accelerator=False), pending=lambda: cells,
        model=model, dtype=torch.bfloat16, folders=cells,
        asked=SimpleNamespace(given={"output_dir": "runs", "save_model": False}),
        memory=SimpleNamespace(layout="files", described=lambda: []),
    )  # fmt: skip
    run.print_plan(planned)
    told = capsys.readouterr().out
    assert "m: 1.00 billion weights in bfloat16" in told and "disk: 2 models, 4.0 GB" in told
    assert "2.00 MB  more for every 1,000 tokens that are evaluated" in told


def test_a_plan_counts_the_norms_that_owl_reads_and_the_models_that_are_missing(monkeypatch: pytest.MonkeyPatch):
    told, model = {}, SimpleNamespace(config=None)
    source = SimpleNamespace(
        device=None, dtype_of=lambda config: torch.float16, laid_out=lambda layout: f"source in {layout}"
    )
    for name in ("use_device", "check_choices", "check_shapes", "check_folders"):
        monkeypatch.setattr(run, name, lambda *given: None)
    monkeypatch.setattr(run.options, "check_together", lambda given: None)
    monkeypatch.setattr(run.option_values, "model_source", lambda given: source)
    how = SimpleNamespace(allocation_files={}, tokens_per_batch=7)
    monkeypatch.setattr(run.option_values, "compression", lambda given: how)
    calibrated = SimpleNamespace(num_samples=3, seq_len=9)
    monkeypatch.setattr(run.option_values, "calibration_of", lambda given, length: calibrated)
    monkeypatch.setattr(run, "skeleton", lambda source: model)
    monkeypatch.setattr(run, "max_length", lambda model: 9)
    monkeypatch.setattr(run.plan, "identify", lambda *given: {})
    monkeypatch.setattr(run, "pending_runs", lambda folders, overwrite: {Path("b"): folders[Path("b")]})
    monkeypatch.setattr(run, "compressed_by", lambda cell: cell["compression"])
    monkeypatch.setattr(run, "is_owl", lambda cell: cell["compression"] == "magnitude")
    monkeypatch.setattr(run, "walk_costs", lambda *given: told.update(costs=given) or {None: "cost"})
    memory = SimpleNamespace(layout="host")
    monkeypatch.setattr(run, "plan_memory", lambda *given: told.update(several=given[6], pending=given[7]) or memory)
    folders = {Path("a"): {"compression": "wanda"}, Path("b"): {"compression": "magnitude"}}
    given = {"export": None, "checkpoint": None, "overwrite": False, "compression": ["wanda", "magnitude"],
             "group_size": None}  # fmt: skip
    planned = run.plan_job(SimpleNamespace(given=given, settings={}, typed={}), folders)
    costs = (model, ["wanda", "magnitude"], (3, 9), torch.float16, 7, ["sq_norms"])
    assert told == {"costs": costs, "several": False, "pending": True}
    assert planned.source == "source in host"
