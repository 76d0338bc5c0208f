"""scripts/quantization.sh and low_rank.sh: what they start, by a stand-in for python that writes down its arguments."""

import pytest

from llm_tasks import settings

TEMPLATE = "runs/compression_ratio/{setting}/{compression}/{strength}/{seed}"


def cells(arguments, capsys):
    """The commands that the script of setting 2 would run one by one."""
    assert arguments[0] == "llm_tasks/setting2_option_count.py"
    assert settings.run([*arguments[1:], *([] if "--list_cells" in arguments else ["--list_cells"])], 2, "") == 0
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
    assert second == ["scripts/plot_results.py", "--results_dir", "a b", "--output_dir", "a b/figures"]
    assert first[first.index("--output_dir") + 1].startswith("a b/{setting}/") and "/some/data" in first
    listed = cells(first, capsys)
    assert len(listed) == 2 * 3 and all("--settings 3" in line and "--max_items 9" in line for line in listed)


def test_one_setting_alone_has_no_folder_of_its_own(start):
    (arguments,) = start("setting2.sh", "--list_cells")
    assert arguments[arguments.index("--output_dir") + 1] == "runs/setting2/{compression}/{strength}/{seed}"
    assert not {"--settings", "--bits", "--rank"} & set(arguments)


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
            settings.run(arguments[1:], own, "")
        assert "--answer_mode is obeyed by setting 2, 4, 5, 6; asked for is setting 3" in capsys.readouterr().err
    else:
        assert settings.run(arguments[1:], own, "") == 0
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
    assert settings.run(arguments[1:], 3, "") == 0
    assert all("--max_items 5 " in line for line in capsys.readouterr().out.splitlines())


def test_setting_6_has_structured_sparsity(start, capsys):
    (arguments,) = start("setting6.sh", "--list_cells")
    assert settings.run(arguments[1:], 6, "") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * (9 + 7) and sum("--nm_ratio 7:8" in line for line in lines) == 3
