"""The sweeps: what they start, by a stand-in for python that writes down its arguments; which python; whose paths."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from llm_tasks.run import run
from llm_tasks.settings import SETTINGS

ROOT = Path(__file__).parents[2]
TEMPLATE = "runs/compression_ratio/{setting}/{compression}/{strength}/{seed}"


def cells(arguments, capsys):
    """The commands that the script of setting 2 would run one by one."""
    assert arguments[0] == "llm_tasks/setting2_option_count.py"
    assert run([*arguments[1:], *([] if "--list_cells" in arguments else ["--list_cells"])], "", SETTINGS, 2) == 0
    return capsys.readouterr().out.splitlines()


def test_quantization_compares_pruning_with_both_quantizations_in_both_settings(start, capsys):
    (arguments,) = start("quantization.sh", "--list_cells")
    listed = cells(arguments, capsys)
    # dense, nine sparsities, and nine numbers of bits by two methods; in two settings
    assert len(listed) == 2 * (1 + 9 + 2 * 9) and arguments[arguments.index("--output_dir") + 1] == TEMPLATE
    for words in ("--compression gptq --bits 3", "--compression rtn --bits 16", "--sparsity 0.9", "3/gptq/4bit/0"):
        assert any(words in line for line in listed)


def test_low_rank_shares_its_dense_run_with_quantization(start, capsys):
    (arguments,) = start("low_rank.sh", "--list_cells")
    listed = cells(arguments, capsys)
    assert len(listed) == 2 * (1 + 9) and arguments[arguments.index("--output_dir") + 1] == TEMPLATE
    assert any("--rank 4000" in line and "low_rank/rank4000/0" in line for line in listed)


def test_lists_can_be_changed_and_the_figures_are_drawn(start, capsys):
    first, second = start(
        "low_rank.sh", "--max_items", "9", RANKS="64 32", SETTINGS="3", SEEDS="0 1", OUT="a b", DATA_DIR="/some/data"
    )
    assert second == ["scripts/plot_results.py", "--results_dir", "/a b", "--output_dir", "/a b/figures"]
    assert first[first.index("--output_dir") + 1].startswith("/a b/{setting}/") and "/some/data" in first
    listed = cells(first, capsys)
    assert len(listed) == 2 * 3 and all("--settings 3" in line and "--max_items 9" in line for line in listed)


def test_one_setting_alone_has_no_folder_of_its_own(start):
    (arguments,) = start("setting2.sh", "--list_cells")
    assert arguments[arguments.index("--output_dir") + 1] == "runs/setting2/{compression}/{strength}/{seed}"
    assert not {"--settings", "--bits", "--rank"} & set(arguments)


def test_sensitivity_compresses_one_block_at_a_time_in_two_settings(start, capsys):
    (arguments,) = start("sensitivity.sh", "--list_cells", LAYERS="0 1 2 down_proj")
    listed = cells(arguments, capsys)
    assert len(listed) == 2 * (1 + 4)
    assert sum("--only_layers 2 " in line and "runs/sensitivity/" in line for line in listed) == 2
    assert any(line.endswith("runs/sensitivity/5/magnitude/down_proj/0.5/0") for line in listed)
    (*_, whole) = start("sensitivity.sh", "--list_cells")
    assert len(cells(whole, capsys)) == 2 * (1 + 32)


def test_evidence_measures_its_methods_in_every_stage(start):
    listed = start("evidence.sh", "--list_cells")
    scripts = ["setting5_human_gap", "setting2_option_count", "setting6_factoid_vs_mcq"]
    assert [arguments[0] for arguments in listed] == [f"llm_tasks/{name}.py" for name in scripts for _ in range(4)]
    strengths = {value(arguments, "--compression"): (value(arguments, "--sparsity"), value(arguments, "--bits"))
                 for arguments in listed}  # fmt: skip
    assert strengths == {"dense": ("0.14", None), "wanda": ("0.3", None), "sparsegpt": ("0.3", None),
                         "gptq": (None, "4")}  # fmt: skip
    *_, fetch, measure, plot = start("evidence.sh", STAGES="setting2", METHODS="", ITEMS="9", SPARSITIES="0.3 0.5")
    assert fetch[0] == "scripts/fetch_default_assets.py" and fetch[1:4] == ["--only", "data", "large_lm"]
    assert value(measure, "--max_items") == "9" and value(measure, "--dtype") == "float32"
    assert measure[measure.index("--compression") :] == [
        "--compression",
        "dense",
        "magnitude",
        "--sparsity",
        "0.3",
        "0.5",
    ]
    assert plot[:3] == ["scripts/plot_results.py", "--results_dir", "runs/evidence"]


def test_allocations_are_runs_of_their_own(start, capsys):
    (arguments,) = start("setting2.sh", "--list_cells", ALLOCATIONS="uniform owl", NM_RATIOS="", SPARSITIES="0.5",
                         COMPRESSIONS="dense wanda")  # fmt: skip
    listed = cells(arguments, capsys)
    assert [line.rpartition(" ")[2] for line in listed] == [
        f"runs/setting2/{name}/0" for name in ("dense/uniform/dense", "wanda/uniform/0.5", "wanda/owl/0.5")
    ]


def value(arguments, option):
    """The value of an option; None where it is not given."""
    return arguments[arguments.index(option) + 1] if option in arguments else None


@pytest.mark.parametrize(
    ("script", "variables", "mode"),
    [
        ("setting2.sh", {}, None),
        ("setting2.sh", {"ANSWER_MODE": "generate"}, "generate"),
        ("setting3.sh", {"ANSWER_MODE": "generate"}, None),  # its answers are written anyway
        ("setting3.sh", {"ANSWER_MODE": "cloze"}, "cloze"),  # which the script refuses
        ("setting4.sh", {"ANSWER_MODE": "generate"}, "generate"),
        ("setting5.sh", {"ANSWER_MODE": "letter"}, "letter"),
        ("setting6.sh", {"ANSWER_MODE": "generate"}, "generate"),
        ("quantization.sh", {"ANSWER_MODE": "generate"}, "generate"),  # settings 2 and 3
        ("low_rank.sh", {"ANSWER_MODE": "generate", "SETTINGS": "3"}, None),
    ],
)
def test_the_answer_mode_is_handed_on_where_it_is_obeyed(start, capsys, script, variables, mode):
    (arguments,) = start(script, "--list_cells", **variables)
    assert value(arguments, "--answer_mode") == mode
    own = int(script.removeprefix("setting")[0]) if script.startswith("setting") else 2
    if mode == "cloze":
        with pytest.raises(SystemExit):
            run(arguments[1:], "", SETTINGS, own)
        obeying = ", ".join(str(name) for name, setting in SETTINGS.items() if "answer_mode" in setting.obeys)
        assert f"--answer_mode is obeyed by setting {obeying}; asked for is setting 3" in capsys.readouterr().err
    else:
        assert run(arguments[1:], "", SETTINGS, own) == 0
        lines = capsys.readouterr().out.splitlines()
        told = {f"--answer_mode {mode}" in line for line in lines if "--settings 3" not in line}
        assert lines and told <= {mode is not None}


def test_setting_3_takes_a_bounded_sample_and_an_argument_goes_before_it(start, capsys):
    for script, variables, expected in (
        ("setting3.sh", {}, "1000"), ("setting3.sh", {"MAX_ITEMS": ""}, None), ("setting2.sh", {}, None),
        ("quantization.sh", {}, "1000"), ("setting5.sh", {"MAX_ITEMS": "70"}, "70"),
    ):  # fmt: skip
        assert value(start(script, "--list_cells", **variables)[-1], "--max_items") == expected
    arguments = start("setting3.sh", "--list_cells", "--max_items", "5")[-1]
    assert run(arguments[1:], "", SETTINGS, 3) == 0
    assert all("--max_items 5 " in line for line in capsys.readouterr().out.splitlines())


def test_setting_6_has_structured_sparsity(start, capsys):
    (arguments,) = start("setting6.sh", "--list_cells")
    assert run(arguments[1:], "", SETTINGS, 6) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * (9 + 7) and sum("--nm_ratio 7:8" in line for line in lines) == 3


def test_relative_paths_are_those_of_the_caller(start, tmp_path):
    mine = tmp_path / "my folder"
    for folder in ("model", "data", "qnli"):
        (mine / folder).mkdir(parents=True)
    (mine / "texts.jsonl").touch()
    first, second = start(
        "setting3.sh", "--calibration", "texts.jsonl", "--calibration_field", "qnli", "--revision", "a/b", folder=mine,
        MODEL="model", DATA_DIR="./data", OUT="new/runs",
    )  # fmt: skip
    after = dict(itertools.pairwise(first))
    assert after["--model_name_or_path"] == f"{mine}/model" and after["--data_dir"] == f"{mine}/data"
    assert after["--output_dir"] == f"{mine}/new/runs/{{compression}}/{{strength}}/{{seed}}"
    # what does not look like a path, or is not there, stays as it is
    assert after["--calibration"] == f"{mine}/texts.jsonl"
    assert after["--calibration_field"] == "qnli" and after["--revision"] == "a/b"
    assert second[1:3] == ["--results_dir", f"{mine}/new/runs"]


def test_what_a_path_option_takes_is_the_callers_if_it_is_there(start, tmp_path):
    """In one word with the option too; a task or a text may have the name of a folder."""
    mine = tmp_path / "my folder"
    for folder in ("model", "data", "piqa", "c4", "tokens"):
        (mine / folder).mkdir(parents=True)
    (mine / "share.json").touch()
    words, _ = start(
        "setting5.sh", "--data_dir", "data", "--model_name_or_path=model", "--tasks", "piqa", "hellaswag",
        "--calibration", "c4", "--calibration_field=tokens", "--allocation", "owl", "share.json", "--damping=.1",
        "--text", "",
        folder=mine,
    )  # fmt: skip
    assert words[-15:] == [
        "--data_dir", f"{mine}/data", f"--model_name_or_path={mine}/model", "--tasks", "piqa", "hellaswag",
        "--calibration", "c4", "--calibration_field=tokens", "--allocation", "owl", f"{mine}/share.json",
        "--damping=.1", "--text", "",
    ]  # fmt: skip


def test_defaults_are_those_of_the_project_wherever_it_is_called(start, tmp_path):
    first, second = start("human_gap.sh", folder=tmp_path, MCQ_TASKS="")
    after = dict(itertools.pairwise(first))
    assert after["--output_dir"].startswith("runs/human_gap/{task_name}") and second[2] == "runs/human_gap"
    assert after["--model_name_or_path"] == "roberta-large"  # of the hub: no folder is called so


@pytest.fixture
def choose(tmp_path):
    """Source sweep_common.sh in a clone whose .venv, like the active environment, may have the requirements."""
    clone, active = tmp_path / "clone", tmp_path / "conda"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/sweep_common.sh", clone / "scripts")

    def environment(folder, has_them):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").write_text(f"#!/bin/bash\nexit {0 if has_them else 1}\n")
        (folder / "bin/python").chmod(0o755)

    def run(active_has, venv_has, **variables):
        if active_has is not None:
            environment(active, active_has)
        if venv_has is not None:
            environment(clone / ".venv", venv_has)
        path = f"{active}/bin:/usr/bin:/bin"
        command = ["bash", "-c", "set -euo pipefail; source clone/scripts/sweep_common.sh; command -v python"]
        return subprocess.run(command, env={"PATH": path, **variables}, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_base_of_conda_is_passed_over_where_it_lacks_the_requirements(choose, tmp_path):
    done = choose(False, True, CONDA_PREFIX="/opt/conda", CONDA_DEFAULT_ENV="base")
    assert done.stdout == f"{tmp_path}/clone/.venv/bin/python\n"
    assert done.stderr == f"the environment /opt/conda lacks the requirements: {tmp_path}/clone/.venv is used\n"


def test_an_active_environment_with_the_requirements_comes_first(choose, tmp_path):
    done = choose(True, True, CONDA_PREFIX="/opt/conda")
    assert (done.stdout, done.stderr) == (f"{tmp_path}/conda/bin/python\n", "")


def test_without_an_active_environment_venv_is_taken(choose, tmp_path):
    assert choose(True, True).stdout == f"{tmp_path}/clone/.venv/bin/python\n"


@pytest.mark.parametrize(("active", "variables"), [(False, {"VIRTUAL_ENV": "/mine"}), (None, {})])
@pytest.mark.parametrize("venv", [False, None])
def test_one_line_says_that_no_python_has_the_requirements(choose, active, variables, venv):
    done = choose(active, venv, **variables)
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "bash scripts/run_tests.sh makes .venv" in done.stderr
