import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import dense, level_run, perplexity_run, run, write_tree

SCRIPT = Path(__file__).parents[2] / "scripts" / "max_strength.py"


@pytest.fixture
def max_strength(load_script):
    return load_script("max_strength")


def lost(count):
    return [0.0] * count + [1.0] * (100 - count) + [0.0] * 100


def sweep():
    levels = [("easy", 1), ("hard", 4)]
    runs = [level_run(levels={name: lost(0) for name, _ in levels}, chance=0.0, metrics={"accuracy": 0.5})]
    return runs + [
        level_run("magnitude", strength, {name: lost(count * step) for name, count in levels}, chance=0.0)
        for step, strength in ((1, 0.2), (5, 0.4), (9, 0.6))
    ]


@pytest.fixture
def printed(tmp_path, capsys, max_strength):
    def call(*options, runs=None):
        write_tree(tmp_path / "runs", *(sweep() if runs is None else runs))
        max_strength.main(["--results_dir", str(tmp_path / "runs"), "--resamples", "500", *options])
        return capsys.readouterr().out.splitlines()

    return call


def test_runs_of_some_layers_do_not_count(printed, capsys):
    """They are methods of their own, over which the p-values would be corrected too."""
    lines = printed()
    some = [level_run("magnitude", strength, {name: lost(0) for name in ("easy", "hard")}, chance=0.0, layers=layers)
            for layers in ("0", "1") for strength in (0.2, 0.4, 0.6)]  # fmt: skip
    assert printed(runs=some) == lines


def test_an_own_task_named_like_a_category_is_judged(printed):
    runs = [{**run, "setting": "own_task", "task": "commonsense reasoning"} for run in sweep()]
    assert "## Own task: commonsense reasoning, model-a" in printed(runs=runs)


def test_it_prints_the_strongest_compression_and_the_junk_dna_score(printed):
    lines = printed("--tolerance", "0.06")
    assert lines[0] == "# Strongest compression that loses at most 6 % of the dense score"
    assert "## Setting 2: option_count, model-a" in lines
    easy, hard = (next(line for line in lines if line.startswith(f"| Magnitude (threshold: layer) | {name} |"))
                  for name in ("easy", "hard"))  # fmt: skip
    # The drops are 1, 5 and 9 %, 4, 20 and 36 %; the bytes of 80 % of the values and a bitmap.
    assert (
        easy.startswith("| Magnitude (threshold: layer) | easy | 20 % | -1.0 % (-")
        and "| 86 % | 40 %: -5.0 % (-" in easy
    )
    assert "| **none** |" in hard and "| 200 | 1 | the weakest measured fails already; what fails is within the" in hard
    # Of 100 right answers one is lost: 4.7 % by Clopper and Pearson may be, and 10.3 % where five are.
    assert 4 < float(re.search(r"\| 20 % \| -1\.0 % \(-(.*?) %\)", easy)[1]) < 6
    # Slopes -.2 and -.8.
    score = next(line for line in lines if line.startswith("| Magnitude (threshold: layer) | raw | 2 | 0.600 ["))
    assert "monotonic" in score
    low, high = map(float, re.search(r"0\.600 \[(.*), (.*)\]", score).groups())
    assert low < 0.6 < high < 1.1


def test_the_confidence_is_that_of_the_strengths_and_of_the_scores(printed):
    """Of 100 right answers 4 are lost: with 95 % confidence no more than 9.0 %, with 60 % no more than 5.2 %."""
    runs, widths = None, []
    for words, hard in (((), "| **none** |"), (("--confidence", "0.6"), "| 20 % | -4.0 % (-5.")):
        lines, runs = printed("--tolerance", "0.06", *words, runs=runs), []
        assert hard in next(line for line in lines if line.startswith("| Magnitude (threshold: layer) | hard |"))
        (score,) = [line for line in lines if "| raw |" in line]
        low, high = map(float, re.search(r"0\.600 \[(.*), (.*)\]", score).groups())
        widths.append(high - low)
    # .842 standard errors to each side against 1.960.
    assert widths[1] / widths[0] == pytest.approx(0.842 / 1.96, rel=0.2)


def test_it_writes_markdown_or_two_tables(printed, tmp_path):
    lines = printed("--output", str(tmp_path / "found.md"))
    assert lines[-1] == str(tmp_path / "found.md")
    assert (tmp_path / "found.md").read_text().splitlines() == lines[:-2]
    lines = printed("--output", str(tmp_path / "found.csv"), runs=[])
    assert lines[-2:] == [str(tmp_path / "found.csv"), str(tmp_path / "found_junk_dna.csv")]
    with (tmp_path / "found.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["level"], row["tolerance"], row["compression"]) for row in rows] == [
        ("easy", "0.05", "magnitude"), ("hard", "0.05", "magnitude"),
    ]  # fmt: skip
    with (tmp_path / "found_junk_dna.csv").open() as stream:
        assert float(next(csv.DictReader(stream))["junk_dna_score"]) == pytest.approx(0.6, abs=1e-5)


def test_the_score_of_a_method_is_that_of_the_levels_whose_difficulty_is_known(printed):
    """The score is .6 of easy and hard; a level without difficulty that falls little takes it from nobody."""
    levels = [("new", 0), ("easy", 1), ("hard", 4)]
    same = {"chance": 0.0, "of_level": {"new": {"difficulty": None}}}
    runs = [level_run(levels={name: lost(0) for name, _ in levels}, metrics={"accuracy": 0.5}, **same)]
    runs += [
        level_run("magnitude", strength, {name: lost(count * step) for name, count in levels}, **same)
        for step, strength in ((1, 0.2), (5, 0.4), (9, 0.6))
    ]
    lines = printed(runs=runs)
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| Magnitude (threshold: layer) | ")] == [
        "easy", "hard", "new", "raw",
    ]  # fmt: skip
    (score,) = [line for line in lines if "| raw |" in line]
    assert "| 2 | 0.600 [" in score and score.endswith("; without new, of unknown difficulty. |")


def test_chance_can_be_taken_out(printed):
    lines = printed("--corrected")
    assert lines[0] == "# Strongest compression that loses at most 5 % of the dense score above chance"


def test_above_chance_a_loss_is_a_larger_share(printed):
    """1 of 100 right answers of 200 is 1 % of the score, and 2 % of what is above a chance of .25."""
    runs = [level_run(levels={"easy": lost(0)}), level_run("magnitude", 0.2, {"easy": lost(1)})]
    for words, drop in (((), "-1.0 %"), (("--corrected",), "-2.0 %")):
        lines = printed("--tolerance", "0.2", *words, runs=runs)
        runs = []
        assert any(line.startswith(f"| Magnitude (threshold: layer) | easy | 20 % | {drop} (-") for line in lines)


def test_fine_tuned_tasks_are_judged_too(printed):
    def answers(wrong):
        return {"label": np.ones(200, int), "prediction": np.array([0] * wrong + [1] * (200 - wrong))}

    runs = [
        {**like, "items": answers(wrong)}
        for like, wrong in (
            (dense(0.9), 20), (run(strength=0.2, score=0.9), 20), (run(strength=0.5, score=0.45), 110),
        )
    ]  # fmt: skip
    lines = printed(runs=runs)
    assert "## Setting 1: qnli, model-a" in lines
    row = next(line for line in lines if line.startswith("| Magnitude (threshold: global) | 100 % | 20 % | +0.0 % ("))
    assert "| 86 % | 50 %: -50.0 % (-" in row
    assert sum(line.startswith("| Magnitude") and "| 86 % |" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tolerance", "5"], "argument --tolerance: 5 is outside [0.001, 0.999]"),
        (["--confidence", "0.5"], "argument --confidence: 0.5 is outside [0.51, 0.999]"),
        (["--resamples", "10"], "argument --resamples: 10 is outside [100, 1e+06]"),
        (["--output", "found.txt"], "--output found.txt: must end in .md or .csv"),
        (["--output", "no/such/found.md"], "--output no/such/found.md: there is no folder no/such"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, max_strength, options, message):
    with pytest.raises(SystemExit) as stopped:
        max_strength.parse_args(["--results_dir", str(tmp_path), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(capsys, max_strength):
    with pytest.raises(SystemExit):
        max_strength.parse_args(["--results_dir", "no/such"])
    assert "--results_dir no/such: there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ([], [], "holds no complete run of settings 1 to 6 or of a task of your own; scripts/setting2.sh makes some"),
        ([perplexity_run()], [], "holds no complete run of settings 1 to 6"),
        ([dense()], [], "only dense runs were found"),
        ([level_run()], [], "only dense runs were found: there is no compression to judge"),
        (sweep(), ["--metric", "f1"], "--metric f1: the runs recorded accuracy"),
        ([*sweep(), sweep()[1]], [], "is there twice"),
    ],
)
def test_what_cannot_be_judged_ends_with_the_reason(printed, tmp_path, runs, options, message):
    (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit) as stopped:
        printed(*options, runs=runs)
    assert str(stopped.value).startswith("max_strength.py: ") and message in str(stopped.value)


def test_without_a_dense_run_it_says_so(printed):
    lines = printed(runs=sweep()[1:])
    assert any("| **none** |" in line and "there is no dense run of this level" in line for line in lines)


def test_it_runs_from_its_own_folder(tmp_path):
    tree = write_tree(tmp_path, *sweep())
    command = [sys.executable, "max_strength.py", "--results_dir", str(tree), "--resamples", "100"]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("# Strongest compression")
