"""scripts/benchmark.py: its commands and arithmetic on tiny models; speed itself is never asserted."""

import hashlib
import itertools
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.layers import decoder_weights
from pruning.masks import zero_fraction


@pytest.fixture(scope="module")
def benchmark(load_script) -> ModuleType:
    return load_script("benchmark")


@pytest.fixture(scope="module")
def llama_folder(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random blocks of 64 and 170 inputs."""
    folder = tmp_path_factory.mktemp("llama")
    benchmark.random_llama(2, 64, torch.float32).save_pretrained(folder)
    return folder


def compression_options(python: str) -> list[str]:
    return ["compression", "--peer_python", python, "--calibration", "some.jsonl"]


def test_finetuning_keeps_its_options(benchmark):
    args = benchmark.parse_args(["finetuning", "masks", "--turns", "3", "--seeds", "41", "42"])
    assert (args.run, args.parts, args.turns, args.seeds) == (benchmark.finetuning, ["masks"], 3, [41, 42])
    assert benchmark.parse_args(["finetuning"]).parts == benchmark.PARTS


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "COMMAND"),
        (["speed"], "invalid choice"),
        (["finetuning", "mask"], "mask is not one of masks, hold, epoch"),
        (compression_options("no/such/python"), "no/such/python: no such file; peer_llmcompressor.py says how"),
        ([*compression_options(sys.executable), "--nsamples", "0"], "0 is below 1"),
        ([*compression_options(sys.executable), "--methods", "magnitude"], "invalid choice"),
        (["growth", "--blocks", "2", "4"], "expected 3 arguments"),
        (["evaluation"], "evaluation needs --peer_python, --growth or --k_shot"),
        (["evaluation", "--peer_python", "no/such/python"], "no/such/python: no such file; peer_lm_eval.py says how"),
        (["evaluation", "--peer_python", sys.executable, "--growth"], "--growth measures our side alone"),
        (["evaluation", "--growth", "--k_shot"], "not allowed with argument"),
        (["evaluation", "--growth", "--tasks", "boolq"], "invalid choice: 'boolq'"),
        (["evaluation", "--growth", "--items", "0"], "0 is below 1"),
        (["evaluation", "--growth", "--num_shots", "6"], "invalid choice: 6"),
        (["evaluation", "--growth", "--tasks", "piqa", "--subjects", "anatomy"], "--subjects is for mmlu"),
        (["evaluation", "--growth", "--model", "no/such/model"], "no/such/model: no folder with a config.json"),
        (["evaluation_side", "--task", "piqa", "--items", "items.json"], "are required: --shots, --output"),
    ],
)
def test_bad_options_are_refused_by_name(benchmark, capsys, argv, message):
    with pytest.raises(SystemExit):
        benchmark.parse_args(argv)
    assert message in capsys.readouterr().err


def test_exponent_of_linear_quadratic_and_constant_time(benchmark):
    assert benchmark.growth_exponent([2, 4, 8], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert benchmark.growth_exponent([2, 4, 8], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert benchmark.growth_exponent([2, 4, 8], [5.0, 5.0, 5.0]) == pytest.approx(0, abs=1e-9)


def test_ratio_pairs_the_turns(benchmark):
    assert benchmark.ratio([6.0, 9.0, 20.0], [2.0, 3.0, 5.0]) == "3.00 (from 3.00 to 4.00)"


def test_no_ratio_to_a_peer_whose_work_fitted_into_what_loading_left(benchmark):
    run = {"peak_bytes": 4_000_000, "loaded_bytes": 3_000_000}
    sides = {
        "peer": [{**run, "compressing_peak_bytes": 3_000_000}],
        "ours": [{**run, "compressing_peak_bytes": 5_000_000}],
    }
    assert benchmark.memory_cells(sides) == ["4", "4", "100%", "0", "2", "-"]


def test_memory_beside_the_loaded_model(benchmark):
    runs = [
        {"peak_bytes": 900, "compressing_peak_bytes": 700, "loaded_bytes": 500},
        {"peak_bytes": 950, "compressing_peak_bytes": 690, "loaded_bytes": 530},
        {"peak_bytes": 910, "compressing_peak_bytes": 720, "loaded_bytes": 540},
    ]
    assert benchmark.memory(runs, beside_the_loaded=False) == 910
    assert benchmark.memory(runs, beside_the_loaded=True) == 180


def test_time_of_a_patched_function_is_added_and_the_function_comes_back(benchmark):
    class Sleeper:
        def nap(self) -> str:
            return "slept"

    own, times = Sleeper.nap, {"nap": 0.0}
    with benchmark.timed(Sleeper, "nap", times, "nap"):
        assert Sleeper().nap() == "slept"
    assert Sleeper.nap is own
    assert times["nap"] > 0


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "gptq"])
def test_stages_of_each_method_are_timed_while_it_compresses(benchmark, name):
    model = benchmark.random_llama(2, 64, torch.float32)
    compress = benchmark.method_of_the_peer(name, sparsity=0.5, bits=4, group_size=64)
    benchmark.warm_up(compress)
    tokens = benchmark.random_tokens(4, 16)
    stages = benchmark.compress_in_stages(model, tokens, compress, benchmark.STATISTICS[name], windows_per_batch=2)
    assert list(stages) == ["forward", "statistics", "factorisation", "method"]
    assert all(seconds > 0 for stage, seconds in stages.items() if stage != "factorisation")
    assert (stages["factorisation"] > 0) == (name != "wanda")
    matrices = [weight.matrix for weight in decoder_weights(model).values()]
    if name == "gptq":
        row = decoder_weights(model)["model.layers.0.self_attn.q_proj.weight"].matrix[0]
        assert len(row.unique()) <= 16
    else:
        assert zero_fraction(matrices) == pytest.approx(0.5, abs=0.001)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_own_side_writes_what_the_table_reads(benchmark, llama_folder, tmp_path, monkeypatch):
    save_file({"tokens": benchmark.random_tokens(4, 16)}, tmp_path / "windows.safetensors")
    monkeypatch.setattr(benchmark.AutoTokenizer, "from_pretrained", lambda name: benchmark.AutoTokenizer)
    monkeypatch.setattr(benchmark.AutoTokenizer, "save_pretrained", lambda folder: None, raising=False)
    benchmark.main(
        ["own_side", "--method", "wanda", "--windows", str(tmp_path / "windows.safetensors"), "--windows_per_batch",
         "2", "--model_name_or_path", str(llama_folder), "--dtype", "float32", "--result",
         str(tmp_path / "result.json"), "--save_model", str(tmp_path / "saved")]
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["seconds"] == pytest.approx(sum(result["stages"].values()))
    assert 0 < result["compressing_peak_bytes"] <= result["peak_bytes"]
    # the kernel counts pages in batches: what is resident may be a little above what has been the most
    assert 0 < result["loaded_bytes"] < 1.1 * result["compressing_peak_bytes"]
    assert result["floor_seconds"] > 0
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert zero_fraction([saved["model.layers.1.mlp.up_proj.weight"]]) == 0.5


FAKE_PEER = """
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["--sparsity"] == "0.5"
run = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100, "compressing_peak_bytes": 300, "peak_bytes": 400}
open(options["--result"], "w").write(json.dumps(run))
"""


def test_sides_take_turns_and_the_first_models_are_kept(benchmark, tmp_path, monkeypatch):
    """Both sides are stand-ins: what is tested is the order, the command line and what is read back."""
    commands = []
    run_quietly = benchmark.run_quietly

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        commands.append(command)
        options = command[command.index("--method") :]
        run_quietly([sys.executable, "-c", FAKE_PEER, *options], environment, folder)

    monkeypatch.setattr(benchmark, "run_quietly", run_stand_in)
    problem = benchmark.Problem(tmp_path / "windows", ["--sparsity", "0.5"], dict(os.environ))
    runs = benchmark.take_turns(problem, "wanda", Path("peer/python"), 2, tmp_path)
    assert [command[0] for command in commands] == [sys.executable, "peer/python"] * 2
    assert ["--save_model" in command for command in commands] == [True, True, False, False]
    assert {side: len(measured) for side, measured in runs.items()} == {"ours": 2, "peer": 2}


def test_tables_of_compression(benchmark, capsys):
    ours = {"seconds": 2.0, "cpu_seconds": 2.0, "floor_seconds": 0.5, "warm_up_seconds": 0.1, "loaded_bytes": 100e6,
            "compressing_peak_bytes": 150e6, "peak_bytes": 200e6,
            "stages": {"forward": 1.0, "statistics": 0.5, "factorisation": 0.25, "method": 0.25}}  # fmt: skip
    peer = {"seconds": 6.0, "cpu_seconds": 8.0, "loaded_bytes": 100e6, "compressing_peak_bytes": 300e6,
            "peak_bytes": 400e6}  # fmt: skip
    scores = {"dense": 20.0, "wanda-ours": 50.5, "wanda-peer": 50.0}
    benchmark.print_compression({"wanda": {"ours": [ours], "peer": [peer]}}, scores)
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert lines[0] == ["wanda", "6.0", "2.0", "3.00 (from 3.00 to 3.00)", "4.00 (from 4.00 to 4.00)", "0.5"]
    assert lines[1] == ["wanda", "400", "200", "50%", "200", "50", "25%"]
    assert lines[2] == ["wanda", "50.000", "50.500", "+1.00%"]
    assert lines[3] == ["wanda", "1.00", "0.50", "0.25", "0.25", "0.1"]


def test_a_failing_side_shows_its_log(benchmark, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)no modifier.*exit code 3"):
        benchmark.run_quietly([sys.executable, "-c", "print('no modifier'); exit(3)"], None, tmp_path)


def test_growth_prints_a_row_per_method(benchmark, capsys):
    benchmark.main(
        ["growth", "--methods", "wanda", "--nsamples", "1", "2", "4", "--blocks", "1", "2", "3", "--hidden_size", "64",
         "--calibration_length", "8", "--turns", "1", "--dtype", "float32"]
    )  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("wanda")]
    assert [len(row) for row in rows] == [5, 5]


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


def scored_row(row: int, gold: int, log_likelihoods: list[float], acc: float, acc_norm: float, **more) -> dict:
    return {"row": row, "group": None, "gold": gold, "log_likelihoods": log_likelihoods, "acc": acc,
            "acc_norm": acc_norm, "requests_sha256": "same", **more}  # fmt: skip


def peer_run() -> dict:
    """Row 7 says the same as ours to 0.25; row 3 holds the other option most likely."""
    return {
        "rows": [scored_row(3, 1, [-2.5, -3.0], 0.0, 0.0), scored_row(7, 0, [-1.25, -2.0], 1.0, 0.0)],
        "seconds": {"build": 4.5, "score": 8.0}, "cpu_seconds": {"build": 4.5, "score": 9.0},
        "loaded_bytes": 100e6, "scoring_peak_bytes": 300e6, "peak_bytes": 400e6, "cut_requests": 1,
        "versions": {"lm_eval": "0.0"},
    }  # fmt: skip


def our_run() -> dict:
    """Row 7: -1 / 2 and -2 / 8 per character, so the second option by length."""
    return {
        "rows": [scored_row(7, 0, [-1.0, -2.0], 1.0, 0.0, lengths=[2, 8]),
                 scored_row(3, 1, [-3.0, -2.75], 1.0, 1.0, lengths=[1, 1])],
        "seconds": {"load": 1.0, "build": 0.5, "tokenize": 0.5, "forward": 1.5, "score": 2.0},
        "cpu_seconds": {"build": 0.5, "score": 2.0},
        "loaded_bytes": 100e6, "scoring_peak_bytes": 150e6, "peak_bytes": 200e6, "shortened": 0,
        "tokens_computed": 1250, "tokens_distinct": 1000, "tokens_of_peer": 6500,
    }  # fmt: skip


def test_predictions_by_sum_and_by_character(benchmark):
    assert benchmark.predictions([-1.0, -2.0, -2.0], [2, 8, 4]) == (0, 1)
    assert benchmark.predictions([-2.0, -2.0], [3, 3]) == (0, 0)


def test_agreement_of_two_rows_of_which_one_differs(benchmark):
    same = benchmark.agreement(peer_run()["rows"], our_run()["rows"])
    assert (same.acc, same.acc_norm, same.largest, same.same_text) == (0.5, 0.5, 0.5, 1.0)
    assert [(peer["row"], ours["row"]) for peer, ours in same.differing] == [(3, 3)]


def test_a_judgement_of_the_peer_that_its_log_likelihoods_do_not_give_is_listed(benchmark):
    peer = [scored_row(7, 0, [-1.0, -2.0], 1.0, 1.0)]
    same = benchmark.agreement(peer, our_run()["rows"][:1])
    assert (same.acc, same.acc_norm, same.largest) == (1.0, 1.0, 0.0)
    assert len(same.differing) == 1


def test_letters_have_no_score_per_character(benchmark):
    peer = [{name: value for name, value in peer_run()["rows"][1].items() if name != "acc_norm"}]
    same = benchmark.agreement(peer, our_run()["rows"][:1])
    assert (same.acc, same.acc_norm, same.differing) == (1.0, None, [])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"row": 8}, "row 3 was scored by one side only; of such rows there are 2"),
        ({"gold": 0}, "row 3 is not the same item on both sides"),
        ({"log_likelihoods": [-1.0, -2.0, -3.0]}, "row 3 is not the same item on both sides"),
    ],
)
def test_sides_that_scored_other_rows_are_not_compared(benchmark, changed, message):
    peer = peer_run()["rows"]
    peer[0] |= changed
    with pytest.raises(SystemExit, match=message):
        benchmark.agreement(peer, our_run()["rows"])


def test_tables_of_evaluation(benchmark):
    tables = benchmark.comparison_tables({"piqa": {"peer": [peer_run()], "ours": [our_run()]}})
    assert all(len(row) == len(titles) for titles, rows in tables for row in rows)
    agreement, differing, seconds, memory, tokens, stages = (rows[0][1:] for _, rows in tables)
    assert agreement == ["2", "50.00%", "50.00%", "5.0e-01", "100%", "0.5000", "1.0000", "0.0000", "0.5000", "1", "0"]
    assert differing == ["3", "", "1", "-2.50000 -3.00000", "-3.00000 -2.75000", "1 1", "yes"]
    assert seconds == ["8.0", "2.0", "4.00 (from 4.00 to 4.00)", "4.50 (from 4.50 to 4.50)", "12.5", "2.5",
                       "5.00 (from 5.00 to 5.00)"]  # fmt: skip
    assert memory == ["400", "200", "50%", "200", "50", "25%"]
    assert tokens == ["1,250", "1,000", "1.250", "6,500", "6.50", "5.20"]
    assert stages == ["1.00", "0.50", "0.50", "1.50"]


def test_tables_of_evaluation_leave_out_what_is_empty(benchmark):
    ours = our_run()
    tables = benchmark.comparison_tables({"piqa": {"peer": [{**peer_run(), "rows": ours["rows"]}], "ours": [ours]}})
    assert [titles[0] for titles, _ in tables] == ["task", "seconds", "peak MB", "tokens", "our seconds"]


def test_growth_table_over_items(benchmark):
    """Tokens are ten an item; seconds are the square."""
    runs = {
        str(size): [{"seconds": {"score": size**2}, "tokens_computed": 10 * size, "tokens_distinct": 9 * size}]
        for size in (20, 40, 80)
    }
    titles, rows = benchmark.growth_table("piqa", runs)
    assert (titles[:4], titles[-1]) == (["piqa, items", "20", "40", "80"], "grows as items ^")
    assert rows == [
        ["seconds", "400.0", "1600.0", "6400.0", "20", "40", "80", "2.00"],
        ["tokens", "200", "400", "800", "10", "10", "10", "1.00"],
        ["distinct tokens", "180", "360", "720", "9", "9", "9", "1.00"],
    ]


def test_ways_table_against_all_levels_together(benchmark):
    together = our_run()
    apart = {**our_run(), "tokens_computed": 5000, "seconds": {"score": 6.0}, "scoring_peak_bytes": 180e6}
    apart["rows"][0]["log_likelihoods"] = [-1.0, -1.5]
    _, rows = benchmark.ways_table({"together": [together], "apart": [apart]})
    assert rows == [
        ["together", "1,250", "1.00", "2.0", "1.00 (from 1.00 to 1.00)", "50", "0.0e+00"],
        ["apart", "5,000", "4.00", "6.0", "3.00 (from 3.00 to 3.00)", "80", "5.0e-01"],
    ]


def test_markdown_table(benchmark):
    assert benchmark.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def questions_of(benchmark, subjects: str) -> list:
    return [benchmark.mmlu.Question("?", ("yes", "no"), 0, subject, str(row)) for row, subject in enumerate(subjects)]


def test_rows_of_mmlu_come_subject_by_subject(benchmark):
    questions = questions_of(benchmark, "abcabcabc")
    assert benchmark.draw_rows(questions, 5, ["c", "a"]) == [2, 5, 8, 0, 3]
    drawn = benchmark.draw_rows(questions, 9, None)
    assert sorted(drawn) == list(range(9))
    assert [len({questions[row].subject for row in drawn[start : start + 3]}) for start in (0, 3, 6)] == [1, 1, 1]
    assert benchmark.draw_rows(questions, 4, None) == drawn[:4]
    with pytest.raises(ValueError, match="--subjects d: there are a, b, c"):
        benchmark.draw_rows(questions, 1, ["d"])
    with pytest.raises(ValueError, match="--items: 4 rows are wanted, and there are 3"):
        benchmark.draw_rows(questions, 4, ["a"])


def test_rows_of_other_tasks_are_drawn_once_each_and_nested(benchmark):
    questions = [benchmark.commonsense.Question("?", ("yes", "no"), 0, "?", (" yes", " no"))] * 50
    drawn = benchmark.draw_rows(questions, 50, None)
    assert sorted(drawn) == list(range(50)) != drawn
    assert benchmark.draw_rows(questions, 7, None) == drawn[:7]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two items of PIQA; two MMLU questions with one worked example."""
    questions = [{"question": word, "subject": "film", "choices": ["good", "bad"], "answer": 1}
                 for word in ("fine", "poor", "the")]  # fmt: skip
    splits = {
        "piqa/validation": [{"goal": "the film", "sol1": "is good", "sol2": "is bad", "label": 0},
                            {"goal": "the plot", "sol1": "good", "sol2": "a story", "label": 1}],
        "mmlu/test": questions[:2],
        "mmlu/dev": questions[2:],
    }  # fmt: skip
    for split, rows in splits.items():
        path = tmp_path / "data" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "data"


def run_evaluation_side(benchmark, model: Path, data_dir: Path, task: str, items: list[int], *options: str) -> dict:
    result = data_dir / "result.json"
    (data_dir / "items.json").write_text(json.dumps(items))
    benchmark.main(
        ["evaluation_side", "--task", task, "--items", str(data_dir / "items.json"), "--model", str(model),
         "--data_dir", str(data_dir), "--output", str(result), *options]
    )  # fmt: skip
    return json.loads(result.read_text())


@linux
def test_evaluation_side_writes_what_the_tables_read(benchmark, tiny_decoder, data_dir):
    """Words and signs are tokens: "Question : the film Answer :" and "Question : the plot Answer :" are six each."""
    result = run_evaluation_side(benchmark, tiny_decoder, data_dir, "piqa", [1, 0], "--shots", "5")
    assert [(row["row"], row["gold"], row["lengths"]) for row in result["rows"]] == [(1, 1, [4, 7]), (0, 0, [7, 6])]
    for row in result["rows"]:
        best, best_per_character = benchmark.predictions(row["log_likelihoods"], row["lengths"])
        assert (row["acc"], row["acc_norm"]) == (best == row["gold"], best_per_character == row["gold"])
    # fed are the film's six and "is", once for both options, the plot's six alone and with "a"
    assert result["tokens_of_peer"] == 7 + 6 + 7
    assert result["tokens_distinct"] == 3 + 4 + 4
    assert result["tokens_computed"] >= result["tokens_distinct"]
    assert set(result["seconds"]) == set(result["cpu_seconds"]) == {"load", "build", "tokenize", "forward", "score"}
    assert result["seconds"]["score"] == result["seconds"]["tokenize"] + result["seconds"]["forward"]
    assert 0 < result["scoring_peak_bytes"] <= result["peak_bytes"]
    assert result["shortened"] == 0
    texts = [["Question: the plot\nAnswer:", " good"], ["Question: the plot\nAnswer:", " a story"]]
    assert result["rows"][0]["requests_sha256"] == hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    benchmark.comparison_tables({"piqa": {"peer": [{**result, "cut_requests": 0}], "ours": [result]}})


@linux
def test_ways_of_scoring_all_shots_agree_and_sharing_computes_less(benchmark, tiny_decoder, data_dir):
    found = {
        way: run_evaluation_side(benchmark, tiny_decoder, data_dir, "mmlu", [0, 1], "--shots", "0", "1", "--way", way)
        for way in benchmark.WAYS
    }
    together, apart, unshared = (found[way] for way in ("together", "apart", "unshared"))
    shown = [("1 shot", 0), ("1 shot", 1), ("0 shots", 0), ("0 shots", 1)]
    assert all([(row["level"], row["row"]) for row in one["rows"]] == shown for one in found.values())
    for one, other in zip(together["rows"], unshared["rows"], strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-5)
    assert together["tokens_distinct"] < apart["tokens_distinct"] == unshared["tokens_distinct"]
    # both letters are one unknown word: a sequence is fed once, and whole
    assert unshared["tokens_computed"] == unshared["tokens_of_peer"]
    assert "acc_norm" not in together["rows"][0]
    benchmark.ways_table({way: [one] for way, one in found.items()})


@linux
def test_evaluation_takes_turns_and_writes_its_tables(benchmark, tiny_decoder, data_dir, tmp_path, monkeypatch, capsys):
    """Both sides are stand-ins: what is tested is the order, the command line and what is written."""
    commands = []

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        commands.append(command)
        assert environment["OMP_NUM_THREADS"] == "1"
        options = dict(itertools.pairwise(command))
        assert sorted(json.loads(Path(options["--items"]).read_text())) == [0, 1]
        run = our_run() if "evaluation_side" in command else peer_run()
        Path(options["--output"]).write_text(json.dumps(run))

    monkeypatch.setattr(benchmark, "run_quietly", run_stand_in)
    output = tmp_path / "evaluation.json"
    benchmark.main(
        ["evaluation", "--peer_python", sys.executable, "--tasks", "piqa", "mmlu", "--model", str(tiny_decoder),
         "--data_dir", str(data_dir), "--items", "2", "--num_shots", "1", "--turns", "2", "--threads", "1",
         "--batch_size", "4", "--output", str(output)]
    )  # fmt: skip
    scripts = [Path(command[1]).name for command in commands]
    assert scripts == ["peer_lm_eval.py", "benchmark.py"] * 4
    assert ["--num_fewshot" in command for command in commands] == [False] * 4 + [True, False] * 2
    peer, ours = commands[4], commands[5]
    assert peer[peer.index("--batch_size") + 1] == "4"
    assert ours[ours.index("--shots") + 1 : ours.index("--way") + 2] == ["1", "--way", "together"]
    written = json.loads(output.read_text())
    assert {task: {side: len(runs) for side, runs in sides.items()} for task, sides in written["runs"].items()} == {
        task: {"peer": 2, "ours": 2} for task in ("piqa", "mmlu")
    }
    tables = output.with_suffix(".md").read_text()
    assert "| piqa | 8.0 | 2.0 | 4.00 (from 4.00 to 4.00) |" in tables
    assert "{'lm_eval': '0.0'}" in capsys.readouterr().out


@linux
@pytest.mark.parametrize(
    "options, sizes, ways, shown",
    [
        (["--growth", "--items", "1"], [1, 2, 4], ["together"] * 3, r"^tokens +1,250 +1,250 +1,250 +1250 +625 "),
        (["--k_shot", "--items", "2"], [2, 2, 2], ["together", "apart", "unshared"], r"^apart +1,250 +1\.00 "),
    ],
)
def test_our_side_alone_at_three_sizes_or_in_three_ways(
    benchmark, tiny_decoder, data_dir, monkeypatch, capsys, options, sizes, ways, shown
):
    runs = []

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        options = dict(itertools.pairwise(command))
        runs.append((len(json.loads(Path(options["--items"]).read_text())), options["--way"]))
        Path(options["--output"]).write_text(json.dumps(our_run()))

    monkeypatch.setattr(benchmark, "run_quietly", run_stand_in)
    rows = [{"goal": f"the film {row}", "sol1": "good", "sol2": "bad", "label": 0} for row in range(4)]
    (data_dir / "piqa" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmark.main(
        ["evaluation", *options, "--tasks", "piqa", "--model", str(tiny_decoder), "--data_dir", str(data_dir),
         "--turns", "1", "--threads", "1"]
    )  # fmt: skip
    assert runs == list(zip(sizes, ways, strict=True))
    assert re.search(shown, capsys.readouterr().out, re.MULTILINE)


@linux
def test_evaluation_refuses_data_before_it_starts_a_process(benchmark, tiny_decoder, data_dir, monkeypatch):
    monkeypatch.setattr(benchmark, "run_quietly", lambda *given: pytest.fail("a process was started"))
    options = ["--growth", "--model", str(tiny_decoder), "--data_dir", str(data_dir), "--tasks"]
    with pytest.raises(SystemExit, match=r"evaluation: --items: 400 rows are wanted, and there are 2"):
        benchmark.main(["evaluation", *options, "piqa"])
    with pytest.raises(SystemExit, match=r"evaluation: --data_dir .* has no openbookqa/test.jsonl"):
        benchmark.main(["evaluation", *options, "openbookqa"])
