"""scripts/benchmarks/against_lm_eval.py and our_evaluation.py: agreement, tables, turns; the peer is a stand-in."""

import hashlib
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

import against_lm_eval
import our_evaluation
from llm_tasks.tasks import commonsense, mmlu

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


def test_predictions_by_sum_and_by_character():
    assert against_lm_eval.predictions([-1.0, -2.0, -2.0], [2, 8, 4]) == (0, 1)
    assert against_lm_eval.predictions([-2.0, -2.0], [3, 3]) == (0, 0)


def test_agreement_of_two_rows_of_which_one_differs():
    same = against_lm_eval.agreement(peer_run()["rows"], our_run()["rows"])
    assert (same.acc, same.acc_norm, same.largest, same.same_text) == (0.5, 0.5, 0.5, 1.0)
    assert [(peer["row"], ours["row"]) for peer, ours in same.differing] == [(3, 3)]


def test_a_judgement_of_the_peer_that_its_log_likelihoods_do_not_give_is_listed():
    peer = [scored_row(7, 0, [-1.0, -2.0], 1.0, 1.0)]
    same = against_lm_eval.agreement(peer, our_run()["rows"][:1])
    assert (same.acc, same.acc_norm, same.largest) == (1.0, 1.0, 0.0)
    assert len(same.differing) == 1


def test_letters_have_no_score_per_character():
    peer = [{name: value for name, value in peer_run()["rows"][1].items() if name != "acc_norm"}]
    same = against_lm_eval.agreement(peer, our_run()["rows"][:1])
    assert (same.acc, same.acc_norm, same.differing) == (1.0, None, [])


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"row": 8}, "row 3 was scored by one side only; of such rows there are 2"),
        ({"gold": 0}, "row 3 is not the same item on both sides"),
        ({"log_likelihoods": [-1.0, -2.0, -3.0]}, "row 3 is not the same item on both sides"),
    ],
)
def test_sides_that_scored_other_rows_are_not_compared(changed, message):
    peer = peer_run()["rows"]
    peer[0] |= changed
    with pytest.raises(SystemExit, match=message):
        against_lm_eval.agreement(peer, our_run()["rows"])


def test_tables_of_evaluation():
    tables = against_lm_eval.comparison_tables({"piqa": {"peer": [peer_run()], "ours": [our_run()]}})
    assert all(len(row) == len(titles) for titles, rows in tables for row in rows)
    agreement, differing, seconds, memory, tokens, stages = (rows[0][1:] for _, rows in tables)
    assert agreement == ["2", "50.00%", "50.00%", "5.0e-01", "100%", "0.5000", "1.0000", "0.0000", "0.5000", "1", "0"]
    assert differing == ["3", "", "1", "-2.50000 -3.00000", "-3.00000 -2.75000", "1 1", "yes"]
    assert seconds == ["8.0", "2.0", "4.00 (from 4.00 to 4.00)", "4.50 (from 4.50 to 4.50)", "12.5", "2.5",
                       "5.00 (from 5.00 to 5.00)"]  # fmt: skip
    assert memory == ["400", "200", "50%", "200", "50", "25%"]
    assert tokens == ["1,250", "1,000", "1.250", "6,500", "6.50", "5.20"]
    assert stages == ["1.00", "0.50", "0.50", "1.50"]


def test_tables_of_evaluation_leave_out_what_is_empty():
    ours = our_run()
    tables = against_lm_eval.comparison_tables(
        {"piqa": {"peer": [{**peer_run(), "rows": ours["rows"]}], "ours": [ours]}}
    )
    assert [titles[0] for titles, _ in tables] == ["task", "seconds", "peak MB", "tokens", "our seconds"]


def test_growth_table_over_items():
    """Tokens are ten an item; seconds are the square."""
    runs = {
        str(size): [{"seconds": {"score": size**2}, "tokens_computed": 10 * size, "tokens_distinct": 9 * size}]
        for size in (20, 40, 80)
    }
    titles, rows = against_lm_eval.growth_table("piqa", runs)
    assert (titles[:4], titles[-1]) == (["piqa, items", "20", "40", "80"], "grows as items ^")
    assert rows == [
        ["seconds", "400.0", "1600.0", "6400.0", "20", "40", "80", "2.00"],
        ["tokens", "200", "400", "800", "10", "10", "10", "1.00"],
        ["distinct tokens", "180", "360", "720", "9", "9", "9", "1.00"],
    ]


def test_ways_table_against_all_levels_together():
    together = our_run()
    apart = {**our_run(), "tokens_computed": 5000, "seconds": {"score": 6.0}, "scoring_peak_bytes": 180e6}
    apart["rows"][0]["log_likelihoods"] = [-1.0, -1.5]
    _, rows = against_lm_eval.ways_table({"together": [together], "apart": [apart]})
    assert rows == [
        ["together", "1,250", "1.00", "2.0", "1.00 (from 1.00 to 1.00)", "50", "0.0e+00"],
        ["apart", "5,000", "4.00", "6.0", "3.00 (from 3.00 to 3.00)", "80", "5.0e-01"],
    ]


def questions_of(subjects: str) -> list:
    return [mmlu.Question("?", ("yes", "no"), 0, subject, str(row)) for row, subject in enumerate(subjects)]


def test_rows_of_mmlu_come_subject_by_subject():
    questions = questions_of("abcabcabc")
    assert against_lm_eval.draw_rows(questions, 5, ["c", "a"]) == [2, 5, 8, 0, 3]
    drawn = against_lm_eval.draw_rows(questions, 9, None)
    assert sorted(drawn) == list(range(9))
    assert [len({questions[row].subject for row in drawn[start : start + 3]}) for start in (0, 3, 6)] == [1, 1, 1]
    assert against_lm_eval.draw_rows(questions, 4, None) == drawn[:4]
    with pytest.raises(ValueError, match="--subjects d: there are a, b, c"):
        against_lm_eval.draw_rows(questions, 1, ["d"])
    with pytest.raises(ValueError, match="--items: 4 rows are wanted, and there are 3"):
        against_lm_eval.draw_rows(questions, 4, ["a"])


def test_rows_of_other_tasks_are_drawn_once_each_and_nested():
    questions = [commonsense.Question("?", ("yes", "no"), 0, "?", (" yes", " no"))] * 50
    drawn = against_lm_eval.draw_rows(questions, 50, None)
    assert sorted(drawn) == list(range(50)) != drawn
    assert against_lm_eval.draw_rows(questions, 7, None) == drawn[:7]


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


def run_evaluation_side(model: Path, data_dir: Path, task: str, items: list[int], *options: str) -> dict:
    result = data_dir / "result.json"
    (data_dir / "items.json").write_text(json.dumps(items))
    our_evaluation.main(
        ["--task", task, "--items", str(data_dir / "items.json"), "--model", str(model),
         "--data_dir", str(data_dir), "--output", str(result), *options]
    )  # fmt: skip
    return json.loads(result.read_text())


@linux
def test_evaluation_side_writes_what_the_tables_read(tiny_decoder, data_dir):
    """Words and signs are tokens: "Question : the film Answer :" and "Question : the plot Answer :" are six each."""
    result = run_evaluation_side(tiny_decoder, data_dir, "piqa", [1, 0], "--shots", "5")
    assert [(row["row"], row["gold"], row["lengths"]) for row in result["rows"]] == [(1, 1, [4, 7]), (0, 0, [7, 6])]
    for row in result["rows"]:
        best, best_per_character = against_lm_eval.predictions(row["log_likelihoods"], row["lengths"])
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
    against_lm_eval.comparison_tables({"piqa": {"peer": [{**result, "cut_requests": 0}], "ours": [result]}})


@linux
def test_ways_of_scoring_all_shots_agree_and_sharing_computes_less(tiny_decoder, data_dir):
    found = {
        way: run_evaluation_side(tiny_decoder, data_dir, "mmlu", [0, 1], "--shots", "0", "1", "--way", way)
        for way in our_evaluation.WAYS
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
    against_lm_eval.ways_table({way: [one] for way, one in found.items()})


@linux
def test_evaluation_takes_turns_and_writes_its_tables(tiny_decoder, data_dir, tmp_path, monkeypatch, capsys):
    """Both sides are stand-ins: what is tested is the order, the command line and what is written."""
    commands = []

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        commands.append(command)
        assert environment["OMP_NUM_THREADS"] == "1"
        options = dict(itertools.pairwise(command))
        assert sorted(json.loads(Path(options["--items"]).read_text())) == [0, 1]
        run = our_run() if "our_evaluation.py" in command[1] else peer_run()
        Path(options["--output"]).write_text(json.dumps(run))

    monkeypatch.setattr(against_lm_eval, "run_quietly", run_stand_in)
    output = tmp_path / "evaluation.json"
    against_lm_eval.main(
        ["--peer_python", sys.executable, "--tasks", "piqa", "mmlu", "--model", str(tiny_decoder),
         "--data_dir", str(data_dir), "--items", "2", "--num_shots", "1", "--turns", "2", "--threads", "1",
         "--batch_size", "4", "--output", str(output)]
    )  # fmt: skip
    scripts = [Path(command[1]).name for command in commands]
    assert scripts == ["peer_lm_eval.py", "our_evaluation.py"] * 4
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
    tiny_decoder, data_dir, monkeypatch, capsys, options, sizes, ways, shown
):
    runs = []

    def run_stand_in(command: list[str], environment: dict[str, str], folder: Path) -> None:
        options = dict(itertools.pairwise(command))
        runs.append((len(json.loads(Path(options["--items"]).read_text())), options["--way"]))
        Path(options["--output"]).write_text(json.dumps(our_run()))

    monkeypatch.setattr(against_lm_eval, "run_quietly", run_stand_in)
    rows = [{"goal": f"the film {row}", "sol1": "good", "sol2": "bad", "label": 0} for row in range(4)]
    (data_dir / "piqa" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    against_lm_eval.main(
        [*options, "--tasks", "piqa", "--model", str(tiny_decoder), "--data_dir", str(data_dir),
         "--turns", "1", "--threads", "1"]
    )  # fmt: skip
    assert runs == list(zip(sizes, ways, strict=True))
    assert re.search(shown, capsys.readouterr().out, re.MULTILINE)


@linux
def test_evaluation_refuses_data_before_it_starts_a_process(tiny_decoder, data_dir, monkeypatch):
    monkeypatch.setattr(against_lm_eval, "run_quietly", lambda *given: pytest.fail("a process was started"))
    options = ["--growth", "--model", str(tiny_decoder), "--data_dir", str(data_dir), "--tasks"]
    with pytest.raises(SystemExit, match=r"evaluation: --items: 400 rows are wanted, and there are 2"):
        against_lm_eval.main([*options, "piqa"])
    with pytest.raises(SystemExit, match=r"evaluation: --data_dir .* has no openbookqa/test.jsonl"):
        against_lm_eval.main([*options, "openbookqa"])
