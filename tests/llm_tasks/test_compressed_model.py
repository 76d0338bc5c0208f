"""How long a compression took, by a clock that only loading, preparing and compressing move."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import run_folder
from llm_tasks import compressed_model, methods, perplexity
from llm_tasks import run as llm_run
from llm_tasks.methods import METHODS, STRENGTHS, Method, Options, Shared, Strength

MATRICES = 21  # of the tiny decoder: 3 blocks of 7 weights
LOADING, PREPARING = 1000.0, 10.0
Perplexity = Callable[..., dict[tuple[str, str], float]]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: one second for each weight that "timed" compresses, many for loading and the fast paths' trials."""
    at = [0.0]
    load = llm_run.load_dense

    def slow_load(job: llm_run.Job) -> compressed_model.CompressibleModel:
        at[0] += LOADING
        return load(job)

    def compress(W: torch.Tensor, inputs: object, strength: Strength, options: Options) -> torch.Tensor:
        at[0] += strength.value
        return W / 2

    monkeypatch.setattr(compressed_model, "clock", lambda devices: at[0])
    monkeypatch.setattr(llm_run, "load_dense", slow_load)
    monkeypatch.setitem(METHODS, "timed", Method(compress, ("bits",)))
    return at


def seconds_below(folder: Path) -> dict[tuple[str, ...], float]:
    """compress_seconds of every run below a folder, by the names of its folders."""
    found = {tuple(path.parent.relative_to(folder).parts): json.loads(path.read_text())
             for path in folder.rglob(run_folder.RESULT_FILE)}  # fmt: skip
    return {names: run["compress_seconds"] for names, run in found.items()}


@pytest.fixture
def measured(tiny_decoder: Path, text_file: Path, tmp_path: Path) -> Perplexity:
    """Runs perplexity.py with these options; returns compress_seconds by compression and strength."""

    def run(*words: str) -> dict[tuple[str, str], float]:
        base = ["--model_name_or_path", str(tiny_decoder), "--text", str(text_file), "--seq_len", "16"]
        assert perplexity.main([*base, *words, "--output_dir", str(tmp_path / "runs/{compression}/{strength}")]) == 0
        return seconds_below(tmp_path / "runs")

    return run


@pytest.mark.parametrize("order", [("timed", "dense"), ("dense", "timed")])
def test_a_run_is_charged_for_its_compression_alone(order: tuple[str, str], measured: Perplexity, now: list[float]):
    assert measured("--compression", *order, "--bits", "2", "4") == {
        ("dense", "dense"): 0, ("timed", "2bit"): 2 * MATRICES, ("timed", "4bit"): 4 * MATRICES,
    }  # fmt: skip
    assert now[0] == LOADING + 6 * MATRICES


def test_a_reused_model_keeps_its_seconds(tiny_decoder: Path, now: list[float]):
    model = compressed_model.AutoModelForCausalLM.from_pretrained(tiny_decoder).requires_grad_(False)
    how = compressed_model.Compression(
        Options(), "layer", true_sequential=False, export=None, shared={}, tokens_per_batch=4096, precision="no"
    )
    dense = compressed_model.CompressibleModel(model, how, keep_dense=True)
    cell = {"compression": "timed", **dict.fromkeys(methods.STRENGTHS), "bits": 2, "seed": 0}
    for again, _ in itertools.product(range(2), range(2)):
        dense.compress({**cell, "seed": again}, None)  # of a method without calibration all seeds are one model
        assert dense.seconds == 2 * MATRICES and now[0] == 2 * MATRICES
    dense.compress({**cell, "compression": methods.DENSE, "bits": None}, None)
    assert dense.seconds == 0
    dense.compress({**cell, "bits": 4}, None)
    assert dense.seconds == 4 * MATRICES


def test_what_a_failed_compression_left_is_not_taken_for_the_model_before_it(
    tiny_decoder: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
):
    model = compressed_model.load_model(compressed_model.ModelSource(str(tiny_decoder), torch.device("cpu")))
    assert not model.training  # dropout would be drawn at random
    how = compressed_model.Compression(
        Options(), "layer", true_sequential=False, export=None, shared={}, tokens_per_batch=4096, precision="no"
    )
    dense = compressed_model.CompressibleModel(model, how, keep_dense=True)
    cell = {"compression": "timed", **dict.fromkeys(methods.STRENGTHS), "bits": 2, "seed": 0}
    dense.compress(cell, None)
    made = {name: matrix.clone() for name, matrix in dense.matrices().items()}
    calls = itertools.count()

    def failing(W: torch.Tensor, *more: object) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("out of memory")
        return W * 0

    monkeypatch.setitem(METHODS, "failing", Method(failing, ("bits",)))
    with pytest.raises(RuntimeError, match="out of memory"):
        dense.compress({**cell, "compression": "failing"}, None)
    dense.compress(cell, None)
    assert all(torch.equal(matrix, made[name]) for name, matrix in dense.matrices().items())


def test_options_reach_the_text_of_calibration_and_the_generation_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compressed_model.calibration, "calibration_tokens", lambda *given, **more: (given, more))
    chosen = compressed_model.Calibration("c4", "passage", "joined", 3, 9, Path("data"))
    more = {"windows": "joined", "text_field": "passage", "data_dir": Path("data")}
    assert chosen.tokens("tokenizer", 5) == (("tokenizer", "c4", 3, 9, 5), more)
    monkeypatch.setattr(compressed_model.GenerationConfig, "from_pretrained", lambda *given, **more: (given, more))
    source = compressed_model.ModelSource("lab/model", torch.device("cpu"), revision="v2")
    assert compressed_model.generation_config(source, None) == (("lab/model",), {"revision": "v2"})


def test_options_reach_the_loading_of_a_model(monkeypatch: pytest.MonkeyPatch):
    seen, loaded = [], torch.nn.Linear(1, 1)
    loaded.generation_config = None
    monkeypatch.setattr(
        compressed_model, "load_pretrained", lambda *given, **more: seen.append((given, more)) or (loaded, ())
    )
    source = compressed_model.ModelSource(
        "lab/model", torch.device("cpu"), weights="bin", revision="v2", trust_remote_code=True, dtype="bfloat16",
        device_map="auto",
    )  # fmt: skip
    compressed_model.load_model(source)
    more = {"weights": "bin", "revision": "v2", "trust_remote_code": True, "device_map": "auto"}
    assert seen == [(("lab/model", compressed_model.AutoModelForCausalLM, torch.bfloat16), more)]
    stored, unknown = SimpleNamespace(dtype=torch.float16), SimpleNamespace(dtype=None)
    assert source.dtype_of(stored) == torch.bfloat16
    auto = replace(source, dtype="auto")
    assert (auto.dtype_of(stored), auto.dtype_of(unknown)) == (torch.float16, torch.float32)


def test_options_reach_the_packed_model(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(compressed_model, "save_packed", lambda *given: seen.extend(given[:-1]))
    how = compressed_model.Compression(
        Options(group_size=16, symmetric=False), "layer", true_sequential=False, export="gptqmodel", shared={},
        tokens_per_batch=4096, precision="no",
    )  # fmt: skip
    cell = {"compression": "timed", **dict.fromkeys(methods.STRENGTHS), "bits": 3}
    compressed_model.export(Path("run"), "model", "grids", cell, {"model_name_or_path": "m"}, how, "tokenizer")
    assert seen == [Path("run/gptqmodel"), "model", "grids", 3, 16, False, "tokenizer"]


def test_a_streamed_model_is_opened_without_what_a_killed_process_converted(tiny_decoder: Path, tmp_path: Path):
    left = tmp_path / "converted-before"
    left.mkdir()
    source = compressed_model.ModelSource(str(tiny_decoder), torch.device("cpu"))
    _, seconds = compressed_model.stream(tmp_path, {"compression": methods.DENSE}, source, None, {}, None, None)
    assert not left.exists() and seconds == 0


def test_blocks_that_cannot_be_run_alone_are_refused_before_a_method_without_calibration_streams_them(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(model: object, storage: object, precision: str) -> None:
        raise ValueError(f"cannot be run block by block in {precision}")

    monkeypatch.setattr(compressed_model, "check_replayed", refuse)
    monkeypatch.setattr(compressed_model.records, "recipe", lambda identity: "job")
    how = compressed_model.Compression(
        Options(), "layer", true_sequential=False, export=None, shared={}, tokens_per_batch=4096, precision="bf16"
    )
    source = compressed_model.ModelSource(str(tiny_decoder), torch.device("cpu"))
    with pytest.raises(ValueError, match="block by block in bf16"):
        compressed_model.stream(tmp_path, {"compression": "magnitude"}, source, how, {}, None, None)


def test_what_strengths_share_is_charged_to_each_as_if_it_were_made_alone(
    measured: Perplexity, now: list[float], monkeypatch: pytest.MonkeyPatch
):
    def prepare(W: torch.Tensor, strengths: list[Strength]) -> None:
        now[0] += PREPARING

    def compress(W: torch.Tensor, prepared: None, strength: Strength) -> torch.Tensor:
        now[0] += strength.value
        return W / 2

    alone = METHODS["timed"].compress
    monkeypatch.setitem(METHODS, "timed", Method(alone, ("bits",), shared=Shared(prepare, compress)))
    assert measured("--compression", "timed", "--bits", "2", "4") == {
        ("timed", "2bit"): (PREPARING + 2) * MATRICES, ("timed", "4bit"): (PREPARING + 4) * MATRICES,
    }  # fmt: skip
    assert now[0] == LOADING + (PREPARING + 6) * MATRICES


def test_a_streamed_model_that_is_reused_has_the_seconds_of_when_it_was_made(
    measured: Perplexity, now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["--stream", "--compression", "timed", "dense", "--bits", "2"]
    folder = tmp_path / "runs/timed/2bit"
    expected = {("timed", "2bit"): 2 * MATRICES, ("dense", "dense"): 0}
    assert measured(*words) == expected
    (folder / run_folder.RESULT_FILE).unlink()  # as if it had been killed while it was measured
    assert measured(*words) == expected and now[0] == 2 * MATRICES
    (folder / run_folder.RESULT_FILE).unlink()
    (folder / "model" / compressed_model.SECONDS_FILE).unlink()  # made by an older version
    assert measured(*words)["timed", "2bit"] is None


@pytest.mark.slow
def test_a_streamed_model_of_which_a_killed_job_made_some_blocks_took_nobody_knows_how_long(
    measured: Perplexity, now: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    method = METHODS["timed"]
    calls = itertools.count()

    def dying(*args: object) -> torch.Tensor:
        if next(calls) == 9:  # in the second of three blocks
            raise KeyboardInterrupt
        return method.compress(*args)

    words = ["--stream", "--compression", "timed", "--bits", "2"]
    monkeypatch.setitem(METHODS, "timed", method._replace(compress=dying))
    with pytest.raises(KeyboardInterrupt):
        measured(*words)
    assert measured(*words) == {("timed", "2bit"): None}
    assert now[0] == 2 * (MATRICES + 2)


def test_a_complete_run_has_its_streamed_model_in_the_folder_of_any_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dense, rtn = ({"compression": name, **dict.fromkeys(STRENGTHS), "seed": 0} for name in ("dense", "rtn"))
    folders = {tmp_path / "0": dense, tmp_path / "2": rtn, tmp_path / "4": rtn}
    for folder in folders:
        (folder / "model").mkdir(parents=True)
        (folder / run_folder.RESULT_FILE).touch()
    for folder in (tmp_path / "0" / "model", tmp_path / "4" / "model"):
        folder.rmdir()
    compressed_model.warn_of_unwritten(folders)
    assert not caplog.messages
    (tmp_path / "2" / "model").rmdir()
    compressed_model.warn_of_unwritten(folders)
    assert f"without one: 2, such as {tmp_path / '2'};" in caplog.text
    (tmp_path / "4" / run_folder.RESULT_FILE).unlink()  # it will write one
    compressed_model.warn_of_unwritten(folders)
    assert len(caplog.messages) == 1
