from pathlib import Path

import pytest


def test_every_stage_is_timed_and_nothing_stays(load_script, tmp_path: Path, capsys: pytest.CaptureFixture):
    script = load_script("benchmarks/cells")
    found = script.measure(23, tmp_path / "tree")
    assert set(found) == {*script.STAGES, "memory"}
    assert all(clock > 0 for clock, _ in (found[stage] for stage in script.STAGES))
    assert len(list((tmp_path / "tree").rglob("all_results.json"))) == 23
    script.main(["--measure", "--counts", "3", "--dir", str(tmp_path)])
    assert '"skip": [' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_counts_are_positive(load_script, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        load_script("benchmarks/cells").parse_args(["--counts", "0"])
    assert "0 is outside [1, 1e+09]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("benchmarks/cells", ["--dir", ""]), ("fetch_default_assets", ["--dir", " "]), ("status", [""]),
     ("status", ["runs", ""])],
)  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(
    load_script, name: str, words: list[str], capsys: pytest.CaptureFixture
):
    script = load_script(name)
    with pytest.raises(SystemExit):
        (getattr(script, "parse_args", None) or script.make_parser().parse_args)(words)
    assert " is empty" in capsys.readouterr().err
