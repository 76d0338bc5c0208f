"""Some layers compressed, or sparsity spread over them: to the bit, to the count, in memory and from files."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import slow_cases
from plain_twins import SIZE
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedModel

from harness import run_folder
from harness.cells import Cell
from llm_tasks import compressed_model, perplexity
from llm_tasks.compressed_model import CompressibleModel, Compression, compression_facts
from llm_tasks.layer_options import allocation, allocation_label, check_layers, owl_of, varied_layers
from llm_tasks.methods import METHODS, STRENGTHS, Options
from llm_tasks.shares import PUBLISHED_OWL, Owl, check_choices, compress_to_count
from pruning.allocation import owl_sparsities
from pruning.layer_choice import block_indices, choose_weights
from pruning.layers import decoder_weights

WINDOWS = torch.arange(60).view(5, 12) % 15
VALUES = {"sparsity": 0.5, "nm_ratio": "2:4", "bits": 4, "rank": 3}
PRUNERS = [name for name, method in METHODS.items() if "sparsity" in method.strengths]
Measured = Callable[..., Path]


def cell(compression: str, sparsity: float | None = None, **changes: object) -> Cell:
    """A cell at the method's first kind of strength."""
    kind = METHODS[compression].strengths[0]
    value = sparsity if sparsity is not None else VALUES[kind]
    return {"compression": compression, **dict.fromkeys(STRENGTHS), kind: value, "seed": 0, **changes}


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


def compressible(
    folder: Path, keep_dense: bool = True, scope: str = "layer", true_sequential: bool = False, precision: str = "no",
    owl: Owl = PUBLISHED_OWL,
) -> CompressibleModel:  # fmt: skip
    options = Options(block_size=8, group_size=8)
    how = Compression(options, scope, true_sequential, None, {}, tokens_per_batch=24, precision=precision, owl=owl)
    return CompressibleModel(loaded(folder), how, keep_dense)


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def zeros(model: PreTrainedModel, names: list[str]) -> int:
    weights = decoder_weights(model)
    return sum(int((weights[name].matrix == 0).sum()) for name in names)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("choice", [("1", None), (None, "mlp"), ("0-1,down_proj", "1.self_attn")])
def test_what_is_not_chosen_stays_dense_to_the_bit(tiny_decoder: Path, name: str, choice: tuple[str | None, ...]):
    model = compressible(tiny_decoder)
    dense, blocks = state(model.model), block_indices(model.model)
    chosen = choose_weights(blocks, *choice)
    for again in ("2", None):  # the weights of another choice, or all of them, come back
        model.compress(cell(name, only_layers=again), WINDOWS)
        model.compress(cell(name, only_layers=choice[0], skip_layers=choice[1]), WINDOWS)
        changed = [key for key, value in state(model.model).items() if not torch.equal(value, dense[key])]
        assert changed == [key for key in dense if key in chosen]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.statistic == "sq_norms"])
def test_norms_that_one_walk_gives_for_every_block_are_those_of_a_walk_for_each(
    tiny_decoder: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    read, method = [], METHODS[name]
    noted = method._replace(
        compress=lambda W, X, *more: read.append(X.sq_norms.clone()) or method.compress(W, X, *more)
    )
    monkeypatch.setitem(METHODS, name, noted)
    together = compressible(tiny_decoder, precision="bf16")
    for block in ("2", "0", "1"):
        one = cell(name, only_layers=block)
        together.compress(one, WINDOWS)
        alone = compressible(tiny_decoder, keep_dense=False, precision="bf16")
        alone.compress(one, WINDOWS)
        assert not alone._norms and together._norms
        assert len(read) == 2 * 7 and all(map(torch.equal, read[:7], read[7:]))
        read.clear()
        for key, value in alone.model.state_dict().items():
            assert torch.equal(value, together.model.state_dict()[key]), (block, key)


def test_every_seed_has_norms_of_its_own_windows(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()
    monkeypatch.setattr(compressed_model, "clock", lambda devices: next(clock))
    monkeypatch.setattr(compressed_model, "dense_norms", lambda model, tokens, *more: tokens)
    model = compressible(tiny_decoder)
    for seed, seconds_before in ((0, 0), (1, 0), (0, 1)):
        asked = cell("wanda", allocation_from="owl", seed=seed)
        norms, seconds = model._dense_norms(asked, WINDOWS[: 2 + seed])
        assert (len(norms), seconds) == (2 + seed, seconds_before)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.statistic == "sq_norms"])
def test_statistics_inside_a_block_are_never_taken_from_the_norms_that_owl_reads(tiny_decoder: Path, name: str):
    """By --true_sequential they are those of a block that is compressed in part."""
    one = cell(name, 0.5, only_layers="1", allocation_from="owl")
    found = {}
    for true_sequential in (False, True):
        several, alone = (compressible(tiny_decoder, keep, true_sequential=true_sequential) for keep in (True, False))
        several.compress(one, WINDOWS)
        alone.compress(one, WINDOWS)
        assert several._norms and not alone._norms
        found[true_sequential] = state(several.model)
        assert all(torch.equal(value, found[true_sequential][key]) for key, value in state(alone.model).items())
    assert any(not torch.equal(value, found[False][key]) for key, value in found[True].items())


@pytest.fixture
def starved(tmp_path: Path) -> Path:
    """A mixture of which no token reaches expert 4 of block 1: two others are above its 0 for all but padding."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZE, num_local_experts=5, num_experts_per_tok=2))
    router = model.model.layers[1].mlp.gate.weight.data
    router[1], router[3], router[4] = -router[0], -router[2], 0
    model.save_pretrained(tmp_path / "starved")
    return tmp_path / "starved"


@pytest.mark.parametrize("keep_dense", [True, *slow_cases(False)])
def test_an_expert_that_no_token_reaches_stops_the_cells_alone_that_read_its_inputs(starved: Path, keep_dense: bool):
    """With keep_dense one walk serves the cells of a sweep, which read the inputs of different weights."""
    model = compressible(starved, keep_dense)
    cells = [cell("wanda", only_layers="1"), cell("magnitude", allocation_from="owl", skip_layers="0"),
             cell("magnitude", only_layers="1"), cell("wanda", only_layers="1.self_attn"),
             cell("magnitude", allocation_from="owl", only_layers="self_attn"),
             cell("ria", allocation_from="owl", skip_layers="1.mlp")]  # fmt: skip
    for index, one in enumerate(cells):
        model = model if keep_dense else compressible(starved, keep_dense)
        if index < 2:
            with pytest.raises(
                ValueError, match=r"1\.mlp\.experts\.gate_up_proj\[4\]: no calibration token reached it"
            ):
                model.compress(one, WINDOWS + 1)
            continue
        model.compress(one, WINDOWS + 1)
        names = choose_weights(block_indices(model.model), one.get("only_layers"), one.get("skip_layers"))
        assert zeros(model.model, names) == sum(decoder_weights(model.model)[key].matrix.numel() for key in names) / 2


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("sparsity", [0.37, 0.613])
@pytest.mark.parametrize("only", [None, "0,2,1.mlp"])
def test_owl_leaves_exactly_the_total(tiny_decoder: Path, name: str, sparsity: float, only: str | None):
    model = compressible(tiny_decoder)
    model.compress(cell(name, sparsity, allocation_from="owl", only_layers=only), WINDOWS)
    chosen = choose_weights(block_indices(model.model), only)
    total = sum(decoder_weights(model.model)[key].matrix.numel() for key in chosen)
    assert zeros(model.model, chosen) == round(sparsity * total)
    assert zeros(model.model, list(decoder_weights(model.model))) == round(sparsity * total)


def test_owl_is_that_of_the_inputs_of_a_whole_forward(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch):
    """The twin: hooks on a dense model, scores of a whole block in float64."""
    obeyed, magnitude = set(), METHODS["magnitude"]
    noted = magnitude._replace(compress=lambda *given: obeyed.add(given[-1]) or magnitude.compress(*given))
    monkeypatch.setitem(METHODS, "magnitude", noted)
    dense = loaded(tiny_decoder)
    inputs: dict[str, Tensor] = {}
    for name, weight in decoder_weights(dense).items():
        weight.module.register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0].flatten(0, -2).double())
        )
    dense(WINDOWS, use_cache=False)
    blocks, ratios, sizes = block_indices(dense), {}, {}
    for block in range(3):
        scores = torch.cat([
            (decoder_weights(dense)[name].matrix.double().abs() * inputs[name].square().sum(0).sqrt()).flatten()
            for name in blocks if blocks[name] == block
        ])  # fmt: skip
        ratios[block], sizes[block] = float((scores > 4 * scores.mean()).double().mean()), len(scores)
    assert len(set(ratios.values())) == 3
    expected = owl_sparsities(ratios, sizes, 0.5, 0.2)
    for keep_dense in (True, False):
        model = compressible(tiny_decoder, keep_dense, owl=Owl(4.0, 0.2))
        asked = cell("magnitude", 0.5, allocation_from="owl", allocation="owl", layers="all")
        model.compress(asked, WINDOWS)
        facts = compression_facts({**asked}, model.matrices().items(), model.model)
        assert facts["chosen_weights"] == sum(sizes.values()) and facts["chosen_sparsity"] == 0.5
        for block, value in facts["block_sparsity"].items():
            assert value == pytest.approx(expected[int(block)], abs=7 / sizes[0])  # each of 7 matrices is rounded
    assert obeyed == {Options(block_size=8, group_size=8)}


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_blocks_in_host_memory_give_the_same_bits(tiny_decoder: Path, name: str):
    found = []
    for computed_on, keep_dense in ((None, True), (torch.device("cpu"), True), (torch.device("cpu"), False)):
        model = compressible(tiny_decoder, keep_dense)
        model._computed_on = computed_on
        model.compress(cell(name, 0.45, allocation_from="owl", only_layers="0,2"), WINDOWS)
        found.append(state(model.model))
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in other)


def test_a_low_rank_of_some_layers_counts_the_others_whole(tiny_decoder: Path):
    """Block 0 has 768 + 1152 weights; at rank 3 the factors of its matrices have 3 * (rows + columns) each."""
    model = compressible(tiny_decoder)
    asked = cell("low_rank", only_layers="0", layers="0")
    model.compress(asked, None)
    found = compression_facts(asked, model.matrices().items(), model.model)
    factors = 3 * (2 * 32 + 2 * 24 + 3 * 40)  # q and o of (16, 16), k and v of (8, 16), three of (24, 16)
    assert found["parameter_ratio"] == pytest.approx((factors + 2 * 1920) / (3 * 1920))
    found = compression_facts({**asked, "rank": 7}, model.matrices().items(), model.model)
    factors = 7 * (2 * 32 + 3 * 40) + 2 * 128  # k and v have fewer weights than factors would have
    assert found["parameter_ratio"] == pytest.approx((factors + 2 * 1920) / (3 * 1920))


def test_magnitude_with_one_threshold_ranks_the_chosen_weights(tiny_decoder: Path):
    model = compressible(tiny_decoder, scope="global")
    weights = {name: weight.matrix.clone() for name, weight in decoder_weights(model.model).items()}
    model.compress(cell("magnitude", 0.5, only_layers="mlp", layers="mlp"), None)
    chosen = [name for name in weights if "mlp" in name]
    magnitudes = torch.cat([weights[name].abs().flatten() for name in chosen]).sort().values
    limit = magnitudes[len(magnitudes) // 2]
    for name in chosen:
        assert torch.equal(decoder_weights(model.model)[name].matrix == 0, weights[name].abs() < limit)


def test_rows_share_what_does_not_divide():
    """5 weights of 3 rows of 4: two rows lose two, the last one loses one."""
    W = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4]])

    def smallest(rows: Tensor, _: None, sparsity: float) -> Tensor:
        return rows.argsort(dim=1).argsort(dim=1) >= round(sparsity * 4)

    keep = compress_to_count(smallest, True, W, None, 5)
    assert (~keep).sum(dim=1).tolist() == [2, 2, 1] and (W * keep).tolist()[1] == [4, 3, 0, 0]
    assert compress_to_count(lambda W, _, sparsity: sparsity, False, W, None, 5) == 5 / 12


@pytest.fixture
def measured(tiny_decoder: Path, text_file: Path, tmp_path: Path) -> Measured:
    """Runs perplexity.py with these options below a folder of this name; returns the folder."""

    def run(name: str, *words: str, template: str = "{compression}/{layers}/{allocation}/{strength}") -> Path:
        base = ["--model_name_or_path", str(tiny_decoder), "--text", str(text_file), "--seq_len", "16", "--nsamples",
                "6", "--calibration", str(text_file), "--calibration_length", "16"]  # fmt: skip
        assert perplexity.main([*base, *words, "--output_dir", str(tmp_path / name / template)]) == 0
        return tmp_path / name

    return run


def result(folder: Path) -> dict:
    return json.loads((folder / run_folder.RESULT_FILE).read_text())


@pytest.mark.parametrize("name", ["magnitude", *slow_cases("wanda", "sparsegpt")])
def test_a_streamed_model_has_the_bits_of_one_in_memory(measured: Measured, tiny_decoder: Path, name: str):
    words = ["--compression", name, "--sparsity", "0.45", "--allocation", "owl", "--only_layers", "0-1", "mlp"]
    memory = measured("memory", *words, "--save_model")
    streamed = measured("streamed", *words, "--stream")
    for layers in ("0-1", "mlp"):
        found = []
        for tree in (memory, streamed):
            folder = tree / name / layers / "owl" / "0.45"
            files = sorted((folder / "model").glob("*.safetensors"))
            found.append({key: value for file in files for key, value in load_file(file).items()})
        assert {key for key in found[0] if "layers" in key} == {key for key in found[1] if "layers" in key}
        assert all(torch.equal(found[0][key], found[1][key]) for key in found[0].keys() & found[1].keys())
        facts = [result(tree / name / layers / "owl" / "0.45") for tree in (memory, streamed)]
        assert facts[0]["block_sparsity"] == facts[1]["block_sparsity"]
        assert facts[0]["levels"][0]["score"] == pytest.approx(facts[1]["levels"][0]["score"], rel=1e-6)


def test_a_run_says_what_was_compressed(measured: Measured):
    tree = measured("runs", "--compression", "dense", "magnitude", "--sparsity", "0.5", "--only_layers", "0-1", "2",
                    "--skip_layers", "mlp", "--allocation", "uniform", "owl")  # fmt: skip
    dense = result(tree / "dense/all/uniform/dense")
    assert (dense["layers"], dense["allocation"]) == (None, None) and "chosen_sparsity" not in dense
    own = result(tree / "magnitude/0-1_without_mlp/owl/0.5")
    assert (own["layers"], own["allocation"], own["requested_sparsity"]) == ("0-1_without_mlp", "owl", 0.5)
    assert own["chosen_weights"] == 2 * 768 and own["chosen_sparsity"] == 0.5  # q, k, v and o of two blocks
    assert own["measured_sparsity"] == pytest.approx(0.5 * 2 * 768 / (3 * (768 + 3 * 16 * 24)))
    assert set(own["block_sparsity"]) == {"0", "1"}
    uniform = result(tree / "magnitude/2_without_mlp/uniform/0.5")
    assert uniform["allocation"] is None and "block_sparsity" not in uniform and uniform["chosen_sparsity"] == 0.5


def test_a_file_is_what_it_holds_wherever_it_lies(measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--compression", "wanda", "--sparsity", "0.5", "--allocation"]
    (tmp_path / "a.json").write_text('{"0": 0.2, "mlp": 0.55}')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.json").write_text('{"mlp": 0.55,\n "0": 0.2}')
    tree = measured("runs", *words, str(tmp_path / "a.json"), template="one")
    before = (tree / "one" / run_folder.RESULT_FILE).stat().st_mtime_ns
    assert measured("runs", *words, str(tmp_path / "b" / "c.json"), template="one") == tree
    assert (tree / "one" / run_folder.RESULT_FILE).stat().st_mtime_ns == before
    facts = result(tree / "one")
    assert facts["allocation"] == "a" and facts["chosen_sparsity"] == pytest.approx(0.5, abs=1e-4)
    # block 0 names 7 matrices, mlp 9: the block counts where both name one
    assert facts["block_sparsity"]["0"] == pytest.approx(0.2, abs=0.01)
    for other in ('{"0": 0.2, "mlp": 0.5}', '{"1": 0.2, "mlp": 0.55}'):
        (tmp_path / "a.json").write_text(other)
        with pytest.raises(SystemExit):
            measured("runs", *words, str(tmp_path / "a.json"), template="one")
        assert "allocation: 'sha256:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        measured("runs", *words, "uniform", template="one")
    assert "allocation: None here, 'sha256:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stem", "is_taken"),
    [("owl", True), ("uniform", True), ("owl_M3", True), ("OWL M3", True), ("layers 0-3", True), ("a, layers 0", True),
     ("mine", False), ("owlet", False), ("uniform_2", False)],
)  # fmt: skip
def test_a_file_has_no_name_that_results_give_something_else(tmp_path: Path, stem: str, is_taken: bool):
    path = tmp_path / f"{stem}.json"
    path.write_text('{"0": 0.2}')
    if is_taken:
        with pytest.raises(ValueError, match=rf"--allocation {path}: .* '{stem}' could .*; allowed: a stem without"):
            allocation(str(path))
    else:
        assert allocation(str(path)) == str(path)


def test_layers_tell_runs_apart_and_uniform_over_all_is_a_run_of_before(
    measured: Measured, capsys: pytest.CaptureFixture
):
    words = ["--compression", "magnitude", "--sparsity", "0.5"]
    tree = measured("runs", *words, template="one")
    recorded = json.loads((tree / "one" / run_folder.ARGUMENTS_FILE).read_text())["arguments"]
    names = ("only_layers", "skip_layers", "allocation", "owl_range", "owl_outliers")
    assert all(recorded.get(name) is None for name in names)
    assert measured("runs", *words, "--allocation", "uniform", template="one") == tree
    for more, message in (
        (["--only_layers", "0-2"], "only_layers: '0-2' here, None there"),
        (["--skip_layers", "1"], "skip_layers: '1' here, None there"),
        (["--allocation", "owl"], "allocation: 'owl' here, None there"),
    ):
        with pytest.raises(SystemExit):
            measured("runs", *words, *more, template="one")
        assert message in capsys.readouterr().err
    tree = measured("owl", *words, "--allocation", "owl", template="one")
    with pytest.raises(SystemExit):
        measured("owl", *words, "--allocation", "owl", "--owl_range", "0.1", template="one")
    assert "owl_range: 0.1 here, None there" in capsys.readouterr().err


def test_cells_are_listed_and_each_command_is_its_own(measured: Measured, capsys: pytest.CaptureFixture):
    words = ["--compression", "dense", "magnitude", "gptq", "--sparsity", "0.3", "0.5", "--bits", "4", "--seed", "0",
             "1", "--only_layers", "0", "mlp"]  # fmt: skip
    template = "{compression}/{layers}/{strength}/{seed}"
    measured("listed", *words, "--list_cells", template=template)
    found = capsys.readouterr().out.splitlines()
    # dense; magnitude at two strengths and choices; gptq at one strength, two choices and two seeds
    assert len(found) == 1 + 4 + 4
    assert "--only_layers" not in found[0] and "dense/all/dense/0" in found[0]
    assert sum("--only_layers mlp" in line for line in found) == 4
    capsys.readouterr()
    measured("listed", *words, "--list_cells", "--group_by", "layers", template=template)
    grouped = capsys.readouterr().out.splitlines()
    assert len(grouped) == 3 and [line.count("--only_layers") for line in grouped] == [0, 1, 1]
    words = ("--compression magnitude gptq --sparsity 0.3 0.5 --bits 4", "--seed 0 1")
    assert all(part in line for part in words for line in grouped[1:])


def test_owl_calibrates_magnitude_and_its_seeds_are_cells(measured: Measured, capsys: pytest.CaptureFixture):
    words = ["--compression", "dense", "magnitude", "wanda", "--sparsity", "0.5", "--allocation", "uniform", "owl",
             "--seed", "0", "1", "--owl_range", "0.1"]  # fmt: skip
    measured("listed", *words, "--list_cells", template="{compression}/{allocation}/{seed}")
    found = capsys.readouterr().out.splitlines()
    # dense, uniform magnitude: one seed each; magnitude by OWL and both of Wanda: two seeds
    assert len(found) == 2 + 2 + 4
    for line in found:
        by_owl = "owl_range0.1" in line
        assert by_owl == ("--allocation owl" in line) == ("--owl_range 0.1" in line)
        assert ("--calibration " in line) == (by_owl or "wanda" in line)


def test_true_sequential_is_no_option_of_what_owl_alone_calibrates(measured: Measured, capsys: pytest.CaptureFixture):
    words = ["--compression", "magnitude", "wanda", "--sparsity", "0.5", "--allocation", "owl", "--true_sequential"]
    measured("listed", *words, "--list_cells")
    assert ["--true_sequential" in line for line in capsys.readouterr().out.splitlines()] == [False, True]
    tree = measured("listed", *words[:1], "magnitude", *words[3:-1])  # as it is listed
    assert measured("listed", *words) == tree  # the same run
    path = tree / "magnitude/all/owl/0.5" / run_folder.ARGUMENTS_FILE
    record = json.loads(path.read_text())
    assert "true_sequential" not in record["arguments"]
    record["arguments"]["true_sequential"] = True  # as earlier versions wrote it
    path.write_text(json.dumps(record))
    assert measured("listed", *words) == tree
    assert run_folder.recorded_identity(tree / "wanda/all/owl/0.5")["true_sequential"] is True


def test_shapes_are_those_of_the_layers_that_a_cell_compresses(measured: Measured, capsys: pytest.CaptureFixture):
    """down_proj has 24 inputs and rank 16, q_proj 16 inputs, k_proj rank 8."""
    for words, message in (
        (["wanda", "--nm_ratio", "3:16"], "down_proj.weight has 24 inputs, no multiple of 16; --skip_layers leaves it"),
        (["low_rank", "--rank", "3", "8", "--only_layers", "q_proj", "k_proj"],
         "--rank 8: the highest rank of a weight of k_proj is 8; allowed: 1 to 7"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            measured("refused", "--compression", *words)
        assert message in capsys.readouterr().err
    tree = measured("runs", "--compression", "wanda", "--nm_ratio", "3:16", "--skip_layers", "down_proj")
    assert result(tree / "wanda/without_down_proj/uniform/3of16")["chosen_sparsity"] == 1 - 3 / 16
    measured("runs", "--compression", "low_rank", "--rank", "8", "--only_layers", "q_proj")


def test_a_sparsity_that_rounds_to_no_weight_is_not_recorded(
    measured: Measured, tiny_decoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Wanda removes round(0.02 * 16) or round(0.02 * 24) of each row: none; RIA 3 to 8 of each matrix."""
    words = ["--sparsity", "0.02", "--skip_layers", "1"]
    measured("runs", "--compression", "ria", *words)
    with pytest.raises(AssertionError):
        measured("runs", "--compression", "wanda", *words)
    assert "--sparsity 0.02 removed nothing: it rounds to 0 of the weights it is a share of" in caplog.text
    assert not list((tmp_path / "runs" / "wanda").rglob(run_folder.RESULT_FILE))
    measured("runs", "--compression", "magnitude", "--sparsity", "0")  # is what it says


def test_zeros_that_other_layers_had_do_not_hide_a_sparsity_that_removed_nothing(tiny_decoder: Path):
    model = compressible(tiny_decoder)
    model.weights["model.layers.1.mlp.up_proj.weight"].matrix.zero_()
    with pytest.raises(ValueError, match="removed nothing"):
        asked = cell("magnitude", 0.5, only_layers="0", layers="0")
        compression_facts(asked, model.matrices().items(), model.model)


def test_a_file_is_held_against_the_chosen_weights_before_any_is_compressed(tiny_decoder: Path):
    model, one = loaded(tiny_decoder), cell("magnitude", allocation_from="f.json", only_layers="0", layers="0")
    for key, message in (("9", "'9' names no weight"), ("1", "'1' names .* leaves dense")):
        with pytest.raises(ValueError, match=message):
            check_choices(model, [one], {"f.json": {key: 0.4}})


def test_uniform_is_named_where_a_method_is_allocated_uniformly_too():
    dense, uniform, owl = (
        {"compression": name, "only_layers": None, "skip_layers": None, "allocation_from": source}
        for name, source in (("dense", None), ("wanda", None), ("wanda", "owl"))
    )
    named = [varied_layers(cells)["allocation"] for cells in ([dense, uniform], [dense, owl], [dense, uniform, owl])]
    assert named == [[], ["owl"], ["uniform", "owl"]]


def test_the_options_of_owl_are_those_that_are_given():
    given = {"allocation": ["owl"], "owl_outliers": 3.0, "owl_range": 0.02, "sparsity": [0.5, 0.05], "nm_ratio": [],
             "bits": [], "rank": [], "compression": ["magnitude"], "magnitude_scope": "layer",
             "export": None}  # fmt: skip
    assert owl_of(given) == Owl(3.0, 0.02) and allocation_label("owl", given) == "owl_M3_range0.02"
    check_layers(given, [])
    for change, message in (
        ({"owl_range": 0.08}, "--sparsity 0.05: blocks get 0.05 - 0.08"),
        ({"bits": [4]}, "--bits is the same for each"),
        ({"rank": [4]}, "--rank is the same for each"),
        ({"magnitude_scope": "global"}, "--magnitude_scope global spreads the sparsity itself"),
        ({"export": "gptqmodel", "only_layers": None, "skip_layers": ["0"]}, "packs all weights: no --only_layers"),
    ):
        with pytest.raises(ValueError, match=message):
            check_layers(given | change, [])


def test_owl_over_one_block_says_that_it_is_uniform(measured: Measured, caplog: pytest.LogCaptureFixture):
    words = ["--compression", "magnitude", "--sparsity", "0.5", "--only_layers", "1.mlp", "0-1", "--allocation"]
    measured("runs", *words, "uniform", "--dry_run")
    assert "one block" not in caplog.text
    measured("runs", *words, "owl", "--dry_run")
    assert [text for text in caplog.messages if "one block" in text] == [
        "--allocation owl: 1.mlp is one block's, which gets --sparsity as by uniform"
    ]
