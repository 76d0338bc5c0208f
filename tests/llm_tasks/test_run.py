"""Stages of a run, by stand-ins: on which model fast paths are proven, and for what memory is asked."""

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
