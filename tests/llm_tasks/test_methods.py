"""What the table of compressions says of each, and that a user's own method is what is called."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import run_folder
from llm_tasks import compressed_model, methods, perplexity
from llm_tasks.methods import METHODS, Method, Options, Shared, Strength
from pruning.sparsegpt import sparsegpt_prune
from pruning.walk import STATISTICS, InputStatistics, Statistic, add_sq_norms
from pruning.wanda import wanda_mask
from quantization.gptq import gptq_quantize, round_to_nearest

KNOWN = ", ".join(STATISTICS)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        (Options(), 1),
        (Options(group_size=-1), 1),
        (Options(group_size=256), 1),
        (Options(group_size=64), 2),
        (Options(group_size=127, act_order=True), 2),
        (Options(group_size=192), 2),  # its second group begins inside a block
        (Options(group_size=64, block_size=32), 1),
        (Options(group_size=64, static_groups=True), 1),
    ],
)
def test_gptq_has_another_arithmetic_where_groups_begin_inside_a_block(options: Options, number: int):
    assert METHODS["gptq"].arithmetic(options) == number


def test_what_never_changed_keeps_its_first_arithmetic():
    others = [method for name, method in METHODS.items() if name != "gptq"]
    assert [method.arithmetic(Options(group_size=32)) for method in others] == [1] * len(others)


@pytest.mark.parametrize(
    ("name", "strength", "alone"),
    [
        ("rtn", Strength("bits", 3), lambda W, H, own: round_to_nearest(W, 3, own.group_size, own.symmetric)),
        ("sparsegpt", Strength("sparsity", 0.5),
         lambda W, H, own: sparsegpt_prune(W, H, 0.5, block_size=own.block_size, damping=own.damping)),
        ("gptq", Strength("bits", 3), lambda W, H, own: gptq_quantize(
            W, H, 3, group_size=own.group_size, symmetric=own.symmetric, act_order=own.act_order,
            static_groups=own.static_groups, block_size=own.block_size, damping=own.damping)),
    ],
)  # fmt: skip
def test_a_method_obeys_the_options_that_it_names_and_no_others(name: str, strength: Strength, alone: Callable):
    generator = torch.Generator().manual_seed(0)
    W, inputs = torch.randn(6, 32, generator=generator), InputStatistics("hessian", 32, torch.device("cpu"))
    inputs.add(torch.randn(80, 32, generator=generator) @ torch.randn(32, 32, generator=generator))
    plain = Options(block_size=16, damping=0.01, group_size=8)
    changes = {"block_size": 4, "damping": 0.5, "group_size": 16, "symmetric": True, "act_order": True,
               "static_groups": True}  # fmt: skip
    before = METHODS[name].compress(W, inputs, strength, plain)
    for option, value in changes.items():
        own = dataclasses.replace(plain, **{option: value})
        found = METHODS[name].compress(W, inputs, strength, own)
        assert torch.equal(found, alone(W, inputs.hessian, own))
        assert torch.equal(found, before) == (option not in METHODS[name].options), option


@pytest.fixture
def sweep(tiny_decoder: Path, text_file: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs perplexity.py with these options, a folder for each strength."""

    def run(*words: str) -> int:
        base = ["--model_name_or_path", str(tiny_decoder), "--text", str(text_file), "--seq_len", "16"]
        return perplexity.main([*base, *words, "--output_dir", str(tmp_path / "{compression}/{strength}")])

    return run


@pytest.mark.parametrize("ranks", [["3"], ["3", "5"], ["5", "3", "4"]])
def test_a_method_that_takes_ranks_is_called_whatever_their_number(
    ranks: list[str], sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    called = []

    def halved(W: torch.Tensor, inputs: None, strength: Strength, options: Options) -> torch.Tensor:
        called.append(strength)
        return W / 2

    monkeypatch.setitem(METHODS, "halved", Method(halved, ("rank",)))
    assert sweep("--compression", "halved", "low_rank", "--rank", *ranks) == 0
    # 3 blocks of 7 weights
    assert called == [Strength("rank", int(rank)) for rank in ranks for _ in range(21)]
    scores = {row["level_index"]: row["score"] for row in run_folder.read_runs(tmp_path / "halved")}
    assert len(scores) == 1  # the same at every rank
    low_rank = [row["score"] for row in run_folder.read_runs(tmp_path / "low_rank")]
    assert len(set(low_rank)) == len(ranks) and not set(low_rank) & set(scores.values())


def test_a_method_of_ones_own_in_the_place_of_low_rank_is_called(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    called = []
    monkeypatch.setitem(METHODS, "low_rank", Method(lambda W, *_: called.append(W) or W, ("rank",)))
    assert sweep("--compression", "low_rank", "--rank", "3", "5") == 0
    assert len(called) == 42


def test_what_strengths_share_is_prepared_once_for_each_weight(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    prepared = []

    def prepare(W: torch.Tensor, strengths: list[Strength]) -> float:
        prepared.append([strength.value for strength in strengths])
        return float(W.abs().max())

    def scaled(W: torch.Tensor, largest: float, strength: Strength) -> torch.Tensor:
        return W * (strength.value / largest)

    def alone(W: torch.Tensor, inputs: None, strength: Strength, options: Options) -> torch.Tensor:
        return scaled(W, prepare(W, [strength]), strength)

    monkeypatch.setitem(METHODS, "scaled", Method(alone, ("bits",), shared=Shared(prepare, scaled)))
    assert sweep("--compression", "scaled", "--bits", "2", "4") == 0
    assert prepared == [[2, 4]] * 21
    together = [row["score"] for row in run_folder.read_runs(tmp_path)]
    assert sweep("--compression", "scaled", "--bits", "2", "--overwrite") == 0
    assert sweep("--compression", "scaled", "--bits", "4", "--overwrite") == 0
    assert [row["score"] for row in run_folder.read_runs(tmp_path)] == together


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Method(methods.magnitude, ("sparsity",), "hessians"), f"there is no statistic 'hessians'; there are {KNOWN}"),
        (Method(methods.magnitude, ("sparsity",), ""), f"there is no statistic ''; there are {KNOWN}"),
        (Method(methods.magnitude, ("ranks",)), "there is no strength 'ranks'; there are sparsity, nm_ratio"),
        (Method(methods.magnitude, ()), "METHODS['mine'] takes no strength"),
        (Method(methods.magnitude, ("bits",), None, ("groups",)), "there is no option 'groups'; there are block_size"),
    ],
)  # fmt: skip
def test_a_method_that_asks_for_what_there_is_not_is_refused_at_the_start(
    method: Method, said: str, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(METHODS, "mine", method)
    with pytest.raises(SystemExit, match="2"):
        sweep("--compression", "dense")
    assert said in capsys.readouterr().err and said


def test_statistics_are_of_a_kind_that_there_is_and_hand_out_no_other():
    with pytest.raises(ValueError, match=f"there is no statistic 'norms'; there are {KNOWN}"):
        InputStatistics("norms", 4, torch.device("cpu"))
    norms = InputStatistics("sq_norms", 4, torch.device("cpu"))
    for read in (lambda: norms.hessian, lambda: norms.inverse_factor(0.01)):
        with pytest.raises(ValueError, match="reads the statistic 'hessian', but 'sq_norms' was collected"):
            read()


def test_a_statistic_of_ones_own_reaches_the_method_that_reads_it(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Squares summed by another name are Wanda's mask; its score on a text is Wanda's to the last digit."""
    read = []

    def compress(W: torch.Tensor, inputs: InputStatistics, strength: Strength, options: Options) -> torch.Tensor:
        read.append(inputs.sum_of("squares"))
        return wanda_mask(W, read[-1], strength.value)

    monkeypatch.setitem(STATISTICS, "squares", Statistic(lambda features: (features,), add_sq_norms))
    monkeypatch.setitem(METHODS, "mine", Method(compress, ("sparsity",), "squares"))
    calibrated = ["--calibration", str(tmp_path / "text.txt"), "--nsamples", "2", "--calibration_length", "8"]
    (tmp_path / "text.txt").write_text("the film is a good story and the plot is so bad " * 20)
    assert sweep("--compression", "wanda", "mine", "--sparsity", "0.5", *calibrated) == 0
    assert len(read) == 21
    (score,) = {row["score"] for row in run_folder.read_runs(tmp_path)}
    assert score > 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.ones(1, 4), r"the method returned \(1, 4\) for a weight of \(3, 4\)"),
        (torch.full((3, 4), torch.nan), "the method returned NaN or infinity"),
        (None, r"the method returned NoneType for a weight of \(3, 4\)"),
    ],
)
def test_what_cannot_stand_in_a_weights_place_is_refused(found: object, said: str):
    with pytest.raises(ValueError, match=said):
        compressed_model.checked(found, torch.ones(3, 4))


@pytest.mark.parametrize("rank", [2, 5])
def test_low_rank_factors_of_all_layers_are_kept_in_host_memory(accelerator: str, rank: int):
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    prepare, compress = METHODS["low_rank"].shared
    mine = compress(W, prepare(W, [Strength("rank", 3), Strength("rank", 5)]), Strength("rank", rank))
    there = W.to(accelerator)
    found = prepare(there, [Strength("rank", 3), Strength("rank", 5)])
    assert {part.device.type for part in found} == {"cpu"}
    made = compress(there, found, Strength("rank", rank))
    assert made.device.type == accelerator
    torch.testing.assert_close(made.cpu(), mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [Strength("sparsity", 0.4), Strength("nm_ratio", "2:4")])
def test_magnitude_on_an_accelerator_is_that_of_the_cpu(accelerator: str, strength: Strength):
    W = torch.randn(6, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    compress = METHODS["magnitude"].compress
    mine, there = compress(W, None, strength, Options()), compress(W.to(accelerator), None, strength, Options())
    assert torch.equal(there.cpu(), mine)
