"""--group_by: the commands of groups compute the cells of the list, each once, with training and without."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import WORDS

from GLUE_tasks import Glue_prune_oneshot
from harness import commands, run_folder
from llm_tasks import perplexity, setting5_human_gap

Main = Callable[[list[str]], int]
NOWHERE = ["--model_name_or_path", "no where/$(x)"]  # a list needs no model
GLUE = [
    *NOWHERE, "--task_name", "sst2", "RTE", "--sparse_method", "dense_transfer", "sparse_transfer", "sparse_to_dense",
    "--sparsity", "0.5", "0.123456789", "--nm_ratio", "4:8", "--seed", "7", "8", "--validation_split_percentage", "10",
    "33.3333333", "--noembed", "--output_dir", "runs/{task_name}/{transfer}/{strength}/{fraction}/{seed}",
]  # fmt: skip
LLM = [
    *NOWHERE, "--settings", "2", "5", "--compression", "dense", "magnitude", "wanda", "gptq", "low_rank", "--sparsity",
    "0.5", "0.123456789", "--nm_ratio", "4:8", "--bits", "4", "3", "--rank", "8", "--seed", "7", "8",
    "--output_dir", "runs/{setting}/{compression}/{strength}/{seed}",
]  # fmt: skip
PERPLEXITY = [
    *NOWHERE, "--compression", "dense", "magnitude", "gptq", "--sparsity", "0.5", "--bits", "4", "3", "--group_size",
    "-1", "--seed", "7", "8", "--export", "gptqmodel", "--output_dir", "runs/{compression}/{strength}/{seed}",
]  # fmt: skip


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., list[str]]:
    """A function that gives the lines a script prints."""
    monkeypatch.setattr(sys, "argv", ["x.py"])

    def run(main: Main, *words: str) -> list[str]:
        capsys.readouterr()
        assert main([*words, "--list_cells"]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_what_is_complete_is_left_out_of_the_groups(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*NOWHERE, "--task_name", "sst2", "--sparse_method", "dense_transfer", "sparse_transfer",
             "--sparsity", "0.5", "--seed", "7", "8", "--output_dir", "runs/{transfer}/{seed}"]  # fmt: skip
    for name in ("dense_transfer/7", "dense_transfer/8", "sparse_transfer/7"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / run_folder.RESULT_FILE).write_text("{}")
    (line,) = listed(Glue_prune_oneshot.main, *words, "--group_by", "model")
    assert "--sparse_method sparse_transfer " in line and "--seed 8 " in line
    assert len(listed(Glue_prune_oneshot.main, *words)) == 4  # the list of single cells is whole
    (everything,) = listed(Glue_prune_oneshot.main, *words, "--overwrite", "--group_by", "model")
    assert "--seed 7 8 " in everything
    (tmp_path / "runs/sparse_transfer/8").mkdir()
    (tmp_path / "runs/sparse_transfer/8" / run_folder.RESULT_FILE).write_text("{}")
    assert listed(Glue_prune_oneshot.main, *words, "--group_by", "model") == []


@pytest.mark.parametrize(
    ("main", "options", "names", "count"),
    [
        (Glue_prune_oneshot.main, GLUE, "model", 1),
        (Glue_prune_oneshot.main, GLUE, "model,task_name", 2),
        (Glue_prune_oneshot.main, GLUE, "compression,seed", 4),
        (Glue_prune_oneshot.main, GLUE, "strength", 4),
        (Glue_prune_oneshot.main, GLUE, "task_name,transfer,strength,fraction,seed", 2 * 2 * 2 * 7),
        (setting5_human_gap.main, LLM, "model,compression", 5),
        (setting5_human_gap.main, LLM, "compression,setting", 10),
        # the second seed makes a difference to all of setting 2, but in setting 5 to calibrated methods alone
        (setting5_human_gap.main, LLM, "seed", 3),
        (setting5_human_gap.main, LLM, "model", 1),
        (perplexity.main, PERPLEXITY, "model", 1),
        (perplexity.main, PERPLEXITY, "strength", 4),
    ],
)
def test_groups_are_the_cells_of_the_list(main: Main, options: list[str], names: str, count: int, listed):
    """What the commands of groups list for themselves is the list, in the very words, if in another order."""
    single = listed(main, *options)
    grouped = listed(main, *options, "--group_by", names)
    assert len(grouped) == count
    of_groups = [line for group in grouped for line in listed(main, *commands.words(group)[2:])]
    assert sorted(map(commands.run_folder, of_groups)) == sorted(map(commands.run_folder, single))
    assert sorted(sorted(commands.words(line)) for line in of_groups) == sorted(
        sorted(commands.words(line)) for line in single
    )


def test_group_by_alone_and_unknown_names_are_refused(capsys: pytest.CaptureFixture):
    for main, options in ((Glue_prune_oneshot.main, GLUE), (perplexity.main, PERPLEXITY)):
        for more, message in (
            (["--group_by", "model"], "--group_by groups what --list_cells prints; give both"),
            (
                ["--list_cells", "--group_by", "colour"],
                "--group_by colour: cells have no such property; allowed: model, ",
            ),
            (["--list_cells", "--group_by", "model,"], "'model,': allowed are names separated by commas"),
        ):
            with pytest.raises(SystemExit) as stopped:
                main([*options, *more])
            assert stopped.value.code == 2 and message in capsys.readouterr().err


def sweep_options(model: Path, data_dir: Path, tmp_path: Path) -> list[str]:
    rows = [{"goal": " ".join(WORDS[n : n + 3]), "sol1": "good", "sol2": "bad", "label": n % 2} for n in range(8)]
    (data_dir / "piqa").mkdir(parents=True)
    (data_dir / "piqa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "--model_name_or_path", str(model), "--data_dir", str(data_dir), "--tasks", "piqa", "--precision", "no",
        "--compression", "dense", "magnitude", "--sparsity", "0.3", "0.6", "--nm_ratio", "1:2",
        "--output_dir", str(tmp_path / "runs/{compression}/{strength}"),
    ]  # fmt: skip


@pytest.mark.slow
def test_grouped_commands_make_the_sweeps_runs(
    tiny_encoder, sentence_files, tiny_decoder, tmp_path: Path, listed, capsys
):
    """After them the sweep itself finds every run complete, made with the arguments that it would give."""
    train, validation = map(str, sentence_files)
    glue = ["--model_name_or_path", str(tiny_encoder), "--train_file", train, "--validation_file", validation,
            "--max_length", "16", "--max_train_steps", "2", "--mixed_precision", "no", "--noembed", "--sparse_method",
            "dense_transfer", "sparse_transfer", "--sparsity", "0.5", "--nm_ratio", "4:8",
            "--output_dir", str(tmp_path / "glue/{transfer}/{strength}")]  # fmt: skip
    llm = sweep_options(tiny_decoder, tmp_path / "data", tmp_path)
    for main, options, names, cells in (
        (Glue_prune_oneshot.main, glue, "transfer", 3), (setting5_human_gap.main, llm, "compression", 4),
    ):  # fmt: skip
        groups = listed(main, *options, "--group_by", f"model,{names}")
        assert len(groups) == 2
        for line in groups:
            assert main(commands.words(line)[2:]) == 0
        folders = [commands.run_folder(line) for line in listed(main, *options)]
        made = {folder: (folder / run_folder.RESULT_FILE).stat().st_mtime_ns for folder in folders}
        assert len(made) == cells
        assert main(options) == 0
        assert {folder: (folder / run_folder.RESULT_FILE).stat().st_mtime_ns for folder in folders} == made
