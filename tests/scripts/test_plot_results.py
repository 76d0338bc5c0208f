import csv
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import dense, level_run, line_run, perplexity_run, run, write_tree

from harness import run_folder

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_results.py"


@pytest.fixture
def plot(load_script, capsys):
    """Run the script's main; returns the names of the files that it prints."""

    def main(*arguments):
        load_script("plot_results").main([*map(str, arguments), "--dpi", "30"])
        return [Path(line).name for line in capsys.readouterr().out.splitlines()]

    return main


def full_tree(root):
    return write_tree(root, dense(0.8), run(score=0.6), run("sparse_to_dense", 0.5, 0.7))


def test_everything_the_tree_holds_is_drawn(tmp_path, plot):
    tree, images = full_tree(tmp_path / "runs"), tmp_path / "new" / "images"
    names = plot("--results_dir", tree, "--output_dir", images, "--formats", "png", "pdf")
    assert names == [
        "setting1_data_adequacy_model-a.png", "setting1_data_adequacy_model-a.pdf",
        "setting1_data_adequacy_model-a.csv", "setting1_four_transfers_model-a.png",
        "setting1_four_transfers_model-a.pdf", "setting1_four_transfers_model-a.csv",
        "setting1_transfers_compared_model-a.csv", "setting1_tasks_model-a.csv", "verdicts.csv", "slopes.csv",
        "beside_the_paper.csv", "summary.md", "report.html",
    ]  # fmt: skip
    assert sorted(names) == sorted(path.name for path in images.iterdir())
    assert (images / names[0]).read_bytes().startswith(b"\x89PNG")
    with (images / names[2]).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["transfer"], row["mean_score"]) for row in rows] == [
        ("dense_transfer", "0.8"), ("sparse_transfer", "0.6"),
    ]  # fmt: skip
    assert f"![{names[0]}]({names[0]})" in (images / "summary.md").read_text()


def test_several_trees_are_drawn_together_and_overlaps_count_once(tmp_path, plot):
    write_tree(tmp_path / "runs" / "dense", dense())
    write_tree(tmp_path / "runs" / "sparse", run())
    names = plot("--results_dir", tmp_path / "runs", tmp_path / "runs" / "sparse", "--output_dir", tmp_path / "images")
    assert names[0] == "setting1_data_adequacy_model-a.png"
    assert "| qnli | 2 | 41 |" in (tmp_path / "images" / "summary.md").read_text()


def test_a_tree_of_dense_runs_gets_a_summary_alone(tmp_path, plot):
    tree = write_tree(tmp_path / "runs", dense())
    names = plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    assert names == ["setting1_tasks_model-a.csv", "beside_the_paper.csv", "summary.md", "report.html"]


@pytest.mark.slow
def test_every_model_and_scope_gets_its_own_figure(tmp_path, plot):
    models = ("lab/model-a", "copy/model-a", "model b")
    runs = [each(model=model) for model in models for each in (dense, run)]
    tree = write_tree(tmp_path / "runs", *runs, run(model="model b", magnitude_scope="layer"))
    names = plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    drawn = [name for name in names if name.endswith(".png")]
    assert drawn[:2] == ["setting1_data_adequacy_model-b.png", "setting1_data_adequacy_model-b_per_layer.png"]
    assert len(set(drawn)) == 4 and all(name.startswith("setting1_data_adequacy_model-a-") for name in drawn[2:])


@pytest.mark.slow
def test_figures_whose_joined_names_are_alike_do_not_overwrite_each_other(tmp_path, plot):
    own = [(method, model, task) for model, task in (("lm", "qa_big"), ("big_lm", "qa"), ("LM", "qa_big"))
           for method in (("dense", None), ("wanda", 0.5))]  # fmt: skip
    runs = [level_run(*method, setting="own_task", model=model, task=task) for method, model, task in own]
    images = tmp_path / "images"
    names = plot("--results_dir", write_tree(tmp_path / "runs", *runs), "--output_dir", images)
    drawn = [name for name in names if re.fullmatch(r"(?i)own_task_qa_big_lm(-\d)?\.png", name)]
    assert len({name.lower() for name in drawn}) == 3
    tables = [list(csv.DictReader((images / name).with_suffix(".csv").open())) for name in drawn]
    assert {(own[0]["model"], own[0]["task"]) for own in tables} == {own[1:] for own in own}


def test_tables_of_an_earlier_call_are_removed(tmp_path, plot):
    levels = {"easy": (1.0,) * 20, "hard": (1.0,) * 20}
    runs = [level_run(levels=levels), *(level_run("wanda", *place) for place in ((0.3, levels, 0), (0.5, levels, 1)))]
    images = tmp_path / "images"
    plot("--results_dir", write_tree(tmp_path / "one", *runs), "--output_dir", images)
    files = {"missing.csv", "verdicts.csv", "slopes.csv", "flips.csv", "flips.png"}
    assert files <= {path.name for path in images.iterdir()}
    plot("--results_dir", write_tree(tmp_path / "two", perplexity_run()), "--output_dir", images)
    assert not files & {path.name for path in images.iterdir()}


def test_perplexities_are_drawn_beside_fine_tuning(tmp_path, plot):
    wanda = [perplexity_run("wanda", 0.5, level=text) for text in ("wikitext2", "one/a.txt", "two/a.txt")]
    tree = write_tree(tmp_path / "runs", *wanda, perplexity_run(level="wikitext2"), dense(), run())
    images = tmp_path / "images"
    names = plot("--results_dir", tree, "--output_dir", images)
    assert names[:2] == ["setting1_data_adequacy_model-a.png", "setting1_data_adequacy_model-a.csv"]
    drawn = [name for name in names[2:] if name.endswith(".png")]
    assert drawn[2] == "perplexity_wikitext2_model-a.png" and len(set(drawn)) == 3
    assert all(name.startswith("perplexity_a-") and name.endswith("_model-a.png") for name in drawn[:2])
    with (images / "perplexity_wikitext2_model-a.csv").open() as stream:
        assert [(row["compression"], row["seeds"]) for row in csv.DictReader(stream)] == [
            ("dense", "0"),
            ("wanda", "0"),
        ]
    text = (images / "summary.md").read_text()
    assert "![perplexity_wikitext2_model-a.png](perplexity_wikitext2_model-a.png)" in text


def test_perplexities_of_other_windows_end_the_program(tmp_path, plot):
    tree = write_tree(tmp_path / "runs", perplexity_run(), perplexity_run("wanda", 0.5, recipe="two"))
    with pytest.raises(SystemExit, match=r"setting perplexity.*different recipes"):
        plot("--results_dir", tree, "--output_dir", tmp_path / "images")


def test_a_dense_perplexity_alone_gets_a_line_and_no_figure(tmp_path, plot):
    tree = write_tree(tmp_path / "runs", perplexity_run())
    assert plot("--results_dir", tree, "--output_dir", tmp_path / "images") == ["summary.md", "report.html"]
    assert "| Dense |" in (tmp_path / "images" / "summary.md").read_text()


@pytest.mark.slow
def test_settings_without_training_are_drawn_beside_the_others(tmp_path, plot):
    own = {"setting": "own_task", "task": "my tickets.jsonl"}
    tree = write_tree(
        tmp_path / "runs", level_run(), level_run("wanda", 0.5), level_run(**own), level_run("rtn", ("bits", 4), **own),
        level_run(setting=4, task="k_shot"), dense(), run(), perplexity_run(), perplexity_run("wanda", 0.5),
    )  # fmt: skip
    images = tmp_path / "images"
    names = plot("--results_dir", tree, "--output_dir", images)
    figures = [
        "setting1_data_adequacy_model-a.png", "setting2_option_count_model-a.png",
        "own_task_my-tickets_model-a.png", "perplexity_wiki.test_model-a.png",
    ]  # fmt: skip
    assert [name for name in names if name in figures] == figures  # others may stand between them
    assert "setting4_k_shot_model-a.png" not in names  # of a dense run alone
    with (images / "setting2_option_count_model-a.csv").open() as stream:
        assert [(row["level"], row["compression"], row["mean_score"]) for row in csv.DictReader(stream)] == [
            ("2 options", "dense", "0.75"), ("2 options", "wanda", "0.75"), ("4 options", "dense", "0.5"),
            ("4 options", "wanda", "0.5"),
        ]  # fmt: skip
    text = (images / "summary.md").read_text()
    for heading in ("Setting 2: number of options", "Own task: my tickets.jsonl", "Setting 4: number of worked"):
        assert f"## {heading}" in text
    assert "![own_task_my-tickets_model-a.png](own_task_my-tickets_model-a.png)" in text
    assert "No figure is made" not in text


def test_one_call_draws_every_kind_of_run(tmp_path, plot):
    domain = {"setting": "multi_domain", "task": "mood", "mixture": "even"}
    domain |= {"level": "tweets", "share": 0.5, "train_rows": 9}
    tree = write_tree(
        tmp_path / "runs", dense(), run(), dense(task="sst2"), run(task="sst2"), level_run(),
        level_run("magnitude", 0.5), level_run("gptq", ("bits", 4)), dense(**domain), run(**domain), line_run(),
        perplexity_run(), perplexity_run("wanda", 0.5), group_size=128, symmetric=False,
    )  # fmt: skip
    images = tmp_path / "images"
    names = plot("--results_dir", tree, "--output_dir", images, "--resamples", "100")
    figures = [name for name in names if name.endswith(".png")]
    expected = [
        "setting1_data_adequacy_model-a.png", "setting1_human_gap_model-a.png", "setting2_option_count_model-a.png",
        "setting2_option_count_model-a_by_size.png", "multi_domain_mood_model-a.png", "interpolation_model-a.png",
        "perplexity_wiki.test_model-a.png",
    ]  # fmt: skip
    assert [name for name in figures if name in expected] == expected
    assert all(name.replace(".png", ".csv") in names for name in figures)
    assert "interpolation_model-a_barriers.csv" in names
    page, text = (images / "report.html").read_text(), (images / "summary.md").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(figures)
    assert all(f'download="{name}"' in page for name in names if name.endswith(".csv"))
    assert all(f"]({name})" in text or f"`{name}`" in text for name in names[:-2])
    assert "No figure is made" not in text and "## Beside the paper" in text and "## What was found" in text


def test_what_is_missing_is_listed_and_written(tmp_path, plot):
    tree = write_tree(tmp_path / "runs", dense(), run(strength=0.3), run("sparse_to_dense", 0.3), run(strength=0.5))
    images = tmp_path / "images"
    assert "missing.csv" in plot("--results_dir", tree, "--output_dir", images)
    with (images / "missing.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["transfer"], row["strength"], row["seed"], row["pair"]) == ("sparse_to_dense", "0.5", "41", "")
    assert row["model"] == "model-a"  # as in the other tables; the hub's "lab/model-a" is in the runs


def test_cautions_are_logged(tmp_path, plot, caplog):
    tree = write_tree(tmp_path / "runs", run())
    run_folder.start_run(tree / "failed", {"seed": 1}, {})
    plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    assert "NO DENSE TRANSFER" in caplog.text and "1 runs were started and are not complete" in caplog.text


def test_runs_that_do_not_belong_together_end_the_program(tmp_path, plot):
    tree = write_tree(tmp_path / "runs", run(), run(seed=42, recipe="two"))
    with pytest.raises(SystemExit, match=r"plot_results\.py: runs of setting 1.*different recipes.*seed: 41 here"):
        plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_a_crash_while_drawing_leaves_the_earlier_figures_whole(tmp_path, plot, monkeypatch):
    tree, images = write_tree(tmp_path / "runs", dense(), run()), tmp_path / "images"
    names = plot("--results_dir", tree, "--output_dir", images)
    before = {name: (images / name).read_bytes() for name in names}

    def crash(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        plot("--results_dir", tree, "--output_dir", images)
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


@pytest.mark.slow
def test_copies_have_the_names_of_the_original(tmp_path, plot, caplog):
    caplog.set_level(logging.INFO)
    domain = {"setting": "multi_domain", "task": "mood", "mixture": "even"}
    domain |= {"level": "tweets", "share": 0.5, "train_rows": 9}
    setting3, setting5 = {"setting": 3, "task": "context_length"}, {"setting": 5, "task": "human_gap"}
    two = [dense(model="b"), run(model="b"), run(model="b", strength=0.3), run("sparse_to_dense", model="b")]
    tree = write_tree(
        tmp_path / "runs", dense(), run(), run("sparse_to_dense"), dense(task="rte"), run(task="rte"), *two,
        dense(**domain), run(**domain), level_run(**setting3), level_run("wanda", 0.5, **setting3),
        level_run("gptq", ("bits", 4), **setting3), level_run(**setting5), level_run("wanda", 0.5, **setting5),
        group_size=128, symmetric=False,
    )  # fmt: skip
    images = tmp_path / "images"
    names = plot("--results_dir", tree, "--output_dir", images, "--resamples", "100", "--original_names")
    expected = {
        "Task_1": "setting1_data_adequacy_model-a", "Task_2": "multi_domain_mood_model-a",
        "Task_3": "setting3_context_length_model-a", "Task_4": "setting1_human_gap_model-a",
        "TRUE_GEM": "setting1_four_transfers_b",
    }  # fmt: skip
    assert names[-5:] == [f"{name}.png" for name in expected]
    for name, copied in expected.items():
        assert (images / f"{name}.png").read_bytes() == (images / f"{copied}.png").read_bytes(), name
        assert f"{name}.png is {copied}.png" in caplog.messages


def test_original_names_without_such_figures_or_png(tmp_path, plot, caplog, capsys):
    caplog.set_level(logging.INFO)
    tree = write_tree(tmp_path / "runs", dense(), run())
    names = plot("--results_dir", tree, "--output_dir", tmp_path / "images", "--original_names")
    assert [name for name in names if name.startswith(("Task", "TRUE"))] == ["Task_1.png"]
    assert "TRUE_GEM.png is not written: the runs have no such figure" in caplog.messages
    with pytest.raises(SystemExit):
        plot("--results_dir", tree, "--formats", "pdf", "--original_names")
    assert "--original_names copies PNG figures, and --formats is pdf: add png" in capsys.readouterr().err


FOREIGN = {
    "list": b"[]", "cut": b'{"setting": 1, "mod', "lacks keys": b'{"eval_accuracy": 0.9}', "no UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000, "levels of text": b'{"levels": ["a"]}',
}  # fmt: skip


def test_foreign_files_are_told_in_a_line_each_and_the_rest_is_drawn(tmp_path, plot, caplog):
    tree = write_tree(tmp_path / "runs", dense(), run())
    for name, content in FOREIGN.items():
        (tree / name).mkdir()
        (tree / name / "all_results.json").write_bytes(content)
    (tree / "a folder" / "all_results.json").mkdir(parents=True)
    write_tree(tree / "wrong type", run(seed="41"))
    names = plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    assert names[0] == "setting1_data_adequacy_model-a.png"
    told = [message for message in caplog.messages if message.startswith("passed over: ")]
    assert len(told) == len(FOREIGN) + 1 and all("\n" not in message for message in told)
    assert all(any(f"/{name}/all_results.json " in message for message in told) for name in FOREIGN)
    assert any("its seed is '41'" in message for message in told)


def test_many_foreign_files_are_counted(tmp_path, plot, caplog):
    tree = write_tree(tmp_path / "runs", dense(), run())
    for number in range(30):
        (tree / f"x{number}").mkdir()
        (tree / f"x{number}" / "all_results.json").write_text("{}")
    plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    told = [message for message in caplog.messages if message.startswith("passed over: ")]
    assert len(told) == 11 and told[-1] == "passed over: 20 more such files"


def test_foreign_files_alone_end_the_program(tmp_path, plot):
    (tmp_path / "all_results.json").write_text("{}")
    with pytest.raises(SystemExit, match="no file there is a run's result"):
        plot("--results_dir", tmp_path, "--output_dir", tmp_path / "images")


def test_a_figure_folder_that_cannot_be_written_is_refused_at_once(tmp_path, plot, capsys, monkeypatch):
    tree = write_tree(tmp_path / "runs", dense())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as error:
            plot("--results_dir", tree, "--output_dir", folder)
        assert error.value.code == 2 and f"{tmp_path / 'file'} is a file, not a folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may write anywhere
    with pytest.raises(SystemExit):
        plot("--results_dir", tree, "--output_dir", tmp_path / "images")
    assert f"cannot be written, {tmp_path} is read-only" in capsys.readouterr().err


def test_wrong_arguments_are_refused(tmp_path, plot, capsys):
    (tmp_path / "empty").mkdir()
    run_folder.start_run(tmp_path / "started" / "one", {}, {})
    cases = {
        ("--results_dir", tmp_path / "nowhere"): f"--results_dir {tmp_path / 'nowhere'}: there is no such folder",
        ("--results_dir", tmp_path / "empty"): "holds no complete run (0 started, not complete)",
        ("--results_dir", tmp_path / "started"): "holds no complete run (1 started, not complete); looked for "
        "all_results.json in it and all folders below. Any script's --output_dir is such a folder; "
        "bash scripts/quickstart.sh makes one",
        ("--results_dir", tmp_path, "--resamples", "99"): "--resamples 99: must be 100 or more",
        (): "the following arguments are required: --results_dir",
        ("--results_dir", tmp_path, "--formats", "gif"): "invalid choice: 'gif'",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as error:
            plot(*arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plot("--results_dir", full_tree(tmp_path / "runs"), "--dpi", "0", "--formats")


def test_it_runs_from_its_own_folder_without_torch_or_a_display(tmp_path):
    write_tree(tmp_path / "runs", dense())
    program = (
        f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, "--results_dir", tmp_path / "runs", "--output_dir", tmp_path / "images"]
    done = subprocess.run(list(map(str, command)), cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, last_file, imported = done.stdout.splitlines()
    assert Path(last_file) == tmp_path / "images" / "report.html" and imported == "[]"
