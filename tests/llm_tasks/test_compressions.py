"""Two compressions in a row: what each does by hand, zeros kept, cells and commands, what is refused."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from method_lists import exported
from transformers import AutoModelForCausalLM

from harness import run_folder
from llm_tasks import perplexity, run
from llm_tasks.compressions import (
    PairStrength,
    check_compression,
    compressed_by,
    method_of,
    parts,
    strength_of,
    strength_values,
    strengths,
)
from llm_tasks.methods import METHODS, Method, Options, Strength, by_input_norms
from pruning.layers import decoder_weights
from pruning.magnitude import magnitude_masks
from pruning.sparsegpt import sparsegpt_prune
from pruning.walk import InputStatistics
from pruning.wanda import wanda_mask
from quantization.gptq import gptq_grid, round_to_nearest, round_to_nearest_grid

HALF_AT_4 = PairStrength(Strength("sparsity", 0.5), Strength("bits", 4))
GROUPS = Options(group_size=8)


def layer(rows: int = 12, features: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(90, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return torch.randn(rows, features, generator=generator), X


def statistics(statistic: str | None, X: torch.Tensor) -> InputStatistics | None:
    if statistic is None:
        return None
    found = InputStatistics(statistic, X.shape[1], X.device)
    found.add(X)
    return found


def test_by_hand():
    """Half of [4, -1, 0.5, 2] is 4 and 2; 2 bits from 0 to 4 are steps of 4/3: 2 is 1.5 steps, which is 2 (even)."""
    W = torch.tensor([[4.0, -1.0, 0.5, 2.0]])
    found = method_of("magnitude+rtn").compress(
        W, None, PairStrength(Strength("sparsity", 0.5), Strength("bits", 2)), Options(group_size=-1)
    )
    torch.testing.assert_close(found, torch.tensor([[4.0, 0, 0, 8 / 3]]))
    assert found[0, 1:3].tolist() == [0, 0]
    of_group = method_of("magnitude+rtn").compress(
        W, None, PairStrength(Strength("nm_ratio", "1:2"), Strength("bits", 2)), Options(group_size=2)
    )
    assert of_group.tolist() == [[4, 0, 0, 2]]


def pruned_by(name: str, W: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    if name == "sparsegpt":
        return sparsegpt_prune(W, X.T @ X, 0.5)
    mask = magnitude_masks({"": W}, [0.5], "layer")[0][""] if name == "magnitude" else None
    return W * (mask if mask is not None else wanda_mask(W, X.square().sum(0), sparsity=0.5))


@pytest.mark.parametrize("first", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("second", ["rtn", "gptq"])
def test_a_pair_is_one_after_the_other_with_the_zeros_kept(first: str, second: str):
    W, X = layer()
    pruned = pruned_by(first, W, X)
    grid = (
        round_to_nearest_grid(pruned, 4, 8)
        if second == "rtn"
        else gptq_grid(pruned, X.T @ X, 4, 8, keep_mask=pruned != 0)
    )
    method = method_of(f"{first}+{second}")
    found = method.compress(W, statistics(method.statistic, X), HALF_AT_4, GROUPS)
    torch.testing.assert_close(found, grid.dequantize())
    assert not found[pruned == 0].any() and (found == 0).float().mean() >= 0.5
    integers = method.quantize(W, statistics(method.statistic, X), HALF_AT_4, GROUPS)
    assert torch.equal(integers.dequantize(), found)


@pytest.mark.parametrize("first", [name for name, own in METHODS.items() if own.strengths == ("sparsity", "nm_ratio")])
@pytest.mark.parametrize("second", [name for name, own in METHODS.items() if own.strengths == ("bits",)])
@pytest.mark.parametrize("options", [Options(), Options(group_size=8, symmetric=True), Options(group_size=-1)])
@pytest.mark.parametrize("bits", [2, 8])
def test_zeros_are_kept_in_every_pair(first: str, second: str, options: Options, bits: int):
    if {METHODS[first].statistic, METHODS[second].statistic} - {None, "sq_norms", "hessian"}:
        pytest.skip("one walk does not collect what both read")
    W, X = layer()
    method = method_of(f"{first}+{second}")
    for pruning in (Strength("sparsity", 0.6), Strength("nm_ratio", "2:4")):
        read = METHODS[first].statistic
        found = METHODS[first].compress(W, statistics(read, X), pruning, options)
        dropped = ~found if found.dtype == torch.bool else found == 0
        both = PairStrength(pruning, Strength("bits", bits))
        made = method.compress(W, statistics(method.statistic, X), both, options)
        # The norms that the first reads are the diagonal of a Hessian here, equal to rounding: so are few ranks.
        assert (made[dropped] == 0).float().mean() > 0.99 and (made == 0).sum() >= dropped.sum()


def test_what_is_kept_can_be_every_bit_of_the_weight():
    """Nothing is pruned at a sparsity of 0: the pair is the second alone."""
    W, X = layer()
    nothing = PairStrength(Strength("sparsity", 0.0), Strength("bits", 3))
    for second in ("rtn", "gptq"):
        pair, alone = method_of(f"wanda+{second}"), METHODS[second]
        found = pair.compress(W, statistics(pair.statistic, X), nothing, GROUPS)
        assert torch.equal(found, alone.compress(W, statistics(alone.statistic, X), Strength("bits", 3), GROUPS))


@pytest.mark.parametrize("name", ["sparsegpt+gptq", "wanda+rtn", "magnitude+gptq"])
def test_an_accelerator_agrees_with_the_cpu(accelerator: str, name: str):
    W, X = layer()
    method, found = method_of(name), []
    for device in ("cpu", accelerator):
        made = method.compress(W.to(device), statistics(method.statistic, X.to(device)), HALF_AT_4, GROUPS)
        assert made.device.type == device and (made == 0).float().mean() >= 0.5
        found.append(((made.cpu() - W).double() @ X.double().T).norm())
    assert float(found[1]) == pytest.approx(float(found[0]), rel=5e-3)


def test_one_walk_collects_what_both_read():
    named = {"magnitude+rtn": None, "wanda+rtn": "sq_norms", "magnitude+gptq": "hessian", "wanda+gptq": "hessian",
             "ria+gptq": "hessian", "sparsegpt+gptq": "hessian", "sparsegpt+rtn": "hessian"}  # fmt: skip
    assert {name: method_of(name).statistic for name in named} == named
    X = layer()[1]
    assert torch.allclose(statistics("hessian", X).sum_of("sq_norms"), statistics("sq_norms", X).sum_of("sq_norms"))
    assert set(method_of("sparsegpt+rtn").options) == {"block_size", "damping", "group_size", "symmetric"}
    assert method_of("wanda+gptq").arithmetic(Options(group_size=64)) == 2


def test_any_quantizer_keeps_the_zeros_of_any_pruner(monkeypatch: pytest.MonkeyPatch):
    """A user's quantizers that know nothing of masks: one that makes integers, and one that does not."""

    def up(W: torch.Tensor, inputs: None, strength: Strength, options: Options):  # moves 0 as well
        grid = round_to_nearest_grid(W, strength.value, options.group_size)
        return grid._replace(codes=(grid.codes + 1).clamp(max=2**strength.value - 1))

    one_more = Method(lambda W, *_: W + 1, ("bits",))
    monkeypatch.setitem(METHODS, "up", Method(lambda *given: up(*given).dequantize(), ("bits",), quantize=up))
    monkeypatch.setitem(METHODS, "one_more", one_more)
    W, _ = layer()
    keep = magnitude_masks({"": W}, [0.5], "layer")[0][""]
    for name in ("up", "one_more"):
        found = method_of(f"magnitude+{name}").compress(W, None, HALF_AT_4, GROUPS)
        assert not found[~keep].any() and found[keep].ne(0).float().mean() > 0.8
    assert method_of("magnitude+one_more").quantize is None
    assert torch.equal(method_of("magnitude+one_more").compress(W, None, HALF_AT_4, GROUPS), (W + 1) * keep)


def test_strengths_are_all_combinations_and_cells_hold_both():
    given = {"sparsity": [0.5, 0.25], "nm_ratio": ["2:4"], "bits": [4, 8, 4], "rank": []}
    found = strengths("sparsegpt+gptq", given)
    assert [one.label for one in found] == ["0.5+4bit", "0.5+8bit", "0.25+4bit", "0.25+8bit", "2of4+4bit", "2of4+8bit"]
    assert [(one.kind, one.value, one.requested_sparsity) for one in found[1::3]] == [
        ("sparsity+bits", "0.5+8", 0.5), ("nm_ratio+bits", "2:4+4", 0.5),
    ]  # fmt: skip
    cells = [{"compression": "sparsegpt+gptq", "seed": 0, **strength_values(one)} for one in found]
    assert [strength_of(cell) for cell in cells] == found and len(set(map(compressed_by, cells))) == 6
    assert strengths("dense", given) == [] and strengths("gptq", given) == [Strength("bits", 4), Strength("bits", 8)]
    assert parts(["dense", "wanda+rtn", "wanda", "gptq"]) == ["wanda", "rtn", "gptq"]


def test_what_tells_a_model_from_those_of_other_cells():
    def models(plain: dict, *changes: dict) -> int:
        return len({compressed_by(plain | change) for change in ({}, *changes)})

    wanda = {"compression": "wanda", **strength_values(Strength("sparsity", 0.5)), "seed": 0}
    others = {"compression": "ria", "sparsity": 0.4, "seed": 1, "only_layers": "0", "skip_layers": "0",
              "allocation_from": "owl"}  # fmt: skip
    assert models(wanda, *({name: value} for name, value in others.items())) == 1 + len(others)
    magnitude = wanda | {"compression": "magnitude"}  # which reads no calibration text, but by OWL
    assert models(magnitude, {"seed": 1}) == 1 and models(magnitude | {"allocation_from": "owl"}, {"seed": 1}) == 2
    checkpoint = {"compression": "checkpoint", **strength_values(Strength("checkpoint", "a")), "seed": 0}
    assert models(checkpoint, {"checkpoint": "b"}) == 2


@pytest.fixture
def options(tiny_decoder: Path, text_file: Path) -> list[str]:
    return [
        "--model_name_or_path", str(tiny_decoder), "--calibration", str(text_file), "--text", str(text_file),
        "--nsamples", "4", "--calibration_length", "8", "--seq_len", "16", "--precision", "no",
    ]  # fmt: skip


PAIR = ["--compression", "sparsegpt+gptq", "--sparsity", "0.5", "--bits", "4", "--group_size", "8"]


def read(folder: Path) -> dict:
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["loaded", "streamed"])
def test_a_saved_pair_has_its_zeros_and_its_steps(options: list[str], tmp_path: Path, tiny_decoder: Path, stream: list):
    words = [
        *options,
        "--compression",
        "magnitude+rtn",
        "--nm_ratio",
        "2:4",
        "--bits",
        "3",
        "--group_size",
        "8",
        *stream,
    ]
    assert perplexity.main([*words, "--save_model", "--output_dir", str(tmp_path / "run")]) == 0
    found = read(tmp_path / "run")
    assert [found[name] for name in ("compression", "strength_kind", "strength", "requested_sparsity")] == [
        "magnitude+rtn", "nm+bits", "2:4+3", 0.5,
    ]  # fmt: skip
    assert found["magnitude_scope"] is None and found["measured_sparsity"] >= 0.5
    dense = decoder_weights(AutoModelForCausalLM.from_pretrained(tiny_decoder))
    made = decoder_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"))
    for name, weight in dense.items():
        groups = weight.matrix.abs().unflatten(1, (-1, 4))
        pruned = weight.matrix * (groups.argsort(dim=-1, stable=True).argsort(dim=-1) >= 2).flatten(1)
        assert torch.equal(made[name].matrix, round_to_nearest(pruned, 3, 8))
    assert "magnitude+rtn, nm_ratio+bits 2:4+3" in (tmp_path / "run/model/README.md").read_text()


def test_streamed_and_loaded_pairs_agree_and_are_the_same_run(
    options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name, more in {"loaded": [], "streamed": ["--stream"]}.items():
        assert perplexity.main([*options, *PAIR, *more, "--output_dir", str(tmp_path / name)]) == 0
    assert read(tmp_path / "loaded")["levels"] == read(tmp_path / "streamed")["levels"]
    assert read(tmp_path / "loaded")["measured_sparsity"] >= 0.5
    for name in ("streamed", "loaded"):  # streams what is complete
        assert "writes no model" not in caplog.text
        assert perplexity.main([*options, *PAIR, "--stream", "--output_dir", str(tmp_path / name)]) == 0
    said = f"of complete runs; without one: 1, such as {tmp_path / 'loaded'}; --overwrite writes it"
    assert said in caplog.text and not (tmp_path / "loaded" / "model").exists()


@pytest.mark.slow
def test_a_sweep_of_pairs_equals_single_runs_and_its_listed_cells(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["llm_tasks/perplexity.py"])
    template = str(tmp_path / "{compression}/{strength}/{seed}")
    words = [*options, "--compression", "dense", "sparsegpt+gptq", "wanda+rtn", "--sparsity", "0.5",
             "--nm_ratio", "2:4", "--bits", "4", "--group_size", "8", "--output_dir", template]  # fmt: skip
    assert perplexity.main([*words, "--list_cells"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 1 + 2 + 2
    (alone,) = (shlex.split(one)[2:] for one in commands if "sparsegpt+gptq/0.5+4bit" in one)
    assert alone[alone.index("--sparsity") : alone.index("--sparsity") + 4] == ["--sparsity", "0.5", "--bits", "4"]
    assert perplexity.main(words) == 0
    found = {row["folder"]: row for row in run_folder.read_runs(tmp_path)}
    run_folder.check_runs(found.values())
    assert {Path(folder).parent.name for folder in found} == {"0.5+4bit", "2of4+4bit", "dense"}
    for command in commands:
        monkeypatch.setattr(run, "load_model", lambda source: pytest.fail("the sweep's runs are complete"))
        assert perplexity.main(shlex.split(command)[2:]) == 0
    monkeypatch.undo()
    assert perplexity.main([*options, *PAIR, "--output_dir", str(tmp_path / "single")]) == 0
    assert read(tmp_path / "single")["levels"] == read(tmp_path / "sparsegpt+gptq/0.5+4bit/0")["levels"]


BAD = [
    (["--compression", "wanda+magnitude", "--sparsity", "0.5"], "wanda+magnitude: both prune"),
    (["--compression", "gptq+rtn", "--bits", "4"], "gptq+rtn: both quantize"),
    (["--compression", "gptq+sparsegpt", "--sparsity", "0.5", "--bits", "4"],
     "gptq+sparsegpt: what is pruned first keeps its zeros: sparsegpt+gptq"),
    (["--compression", "wanda+low_rank", "--sparsity", "0.5"], "wanda+low_rank: low_rank takes rank"),
    (["--compression", "dense+gptq", "--bits", "4"], "dense+gptq: 'dense' is no method"),
    (["--compression", "wanda+", "--sparsity", "0.5"], "wanda+: '' is no method"),
    (["--compression", "wanda+awq", "--sparsity", "0.5"], "wanda+awq: 'awq' is no method"),
    (["--compression", "magnitude+wanda+gptq"], "two may follow each other, not 3"),
    (["--compression", "sparsegpt+gptq", "--sparsity", "0.5"], "sparsegpt+gptq needs --bits for gptq"),
    (["--compression", "sparsegpt+gptq", "--bits", "4"],
     "sparsegpt+gptq needs --sparsity or --nm_ratio for sparsegpt"),
    (["--compression", "wanda+rtn", "--sparsity", "0.5", "--bits", "4", "--rank", "3"], "--rank is taken by"),
    (["--compression", "sparsegpt+rtn", "--nm_ratio", "2:4", "--bits", "4", "--block_size", "6"],
     "--block_size 6 is no multiple"),
    (["--compression", "magnitude+rtn", "--sparsity", "0.5", "--bits", "4", "--magnitude_scope", "global"],
     "magnitude+rtn prunes weight by weight"),
    (["--compression", "wanda+rtn", "--sparsity", "0.5", "--bits", "4", "--act_order"], "--act_order is obeyed by"),
    (["--compression", "wanda+one_more", "--sparsity", "0.5", "--bits", "4", "--export", "gptqmodel"],
     f"--export packs what --compression {exported()} make"),
    (["--compression", "own_sums+gptq", "--sparsity", "0.5", "--bits", "4"],
     "own_sums+gptq: a walk collects one statistic, and these read hessian and own_sums"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words[1] + " " + " ".join(words[2:3]) for words, _ in BAD])
def test_bad_pairs_are_one_clear_line_before_a_model_loads(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    words: list[str], message: str,
):  # fmt: skip
    from pruning.walk import STATISTICS

    monkeypatch.setitem(STATISTICS, "own_sums", STATISTICS["sq_norms"])
    monkeypatch.setitem(METHODS, "own_sums", Method(by_input_norms(wanda_mask, "own_sums"), ("sparsity",), "own_sums"))
    monkeypatch.setitem(METHODS, "one_more", Method(lambda W, *_: W + 1, ("bits",)))
    monkeypatch.setattr(run, "load_model", lambda source: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as stopped:
        perplexity.main([*options, "--output_dir", str(tmp_path / "run"), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_pair_that_a_user_names_as_a_method_is_that_method(monkeypatch: pytest.MonkeyPatch):
    own = Method(lambda W, *_: W, ("bits",))
    monkeypatch.setitem(METHODS, "awq+clip", own)
    assert check_compression("awq+clip") == "awq+clip" and method_of("awq+clip") is own
    assert parts(["awq+clip"]) == ["awq+clip"]
