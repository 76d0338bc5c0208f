"""Every broken input is refused in one line that names it, with an exit code, without a traceback or a result."""

import importlib
from pathlib import Path

import broken_checkpoints
import broken_data
import broken_options
import pytest
from broken import Assets, Broken

from harness import run_folder

CASES = [*broken_checkpoints.CASES, *broken_data.CASES, *broken_options.CASES]


@pytest.fixture(scope="session")
def assets(tiny_encoder: Path, tiny_decoder: Path, sentence_files: tuple[Path, Path], text_file: Path) -> Assets:
    return Assets(tiny_encoder, tiny_decoder, sentence_files, text_file)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.script.rpartition('.')[2]}: {case.name}")
def test_it_is_refused_in_one_line(
    case: Broken, assets: Assets, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None, own_modules: None,
) -> None:  # fmt: skip
    (tmp_path / "input").mkdir()
    monkeypatch.chdir(tmp_path)
    options = case.make(tmp_path / "input", assets)
    out = [] if "--output_dir" in options else ["--output_dir", str(tmp_path / "run")]
    try:
        code = importlib.import_module(case.script).main([*options, *out])
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err + caplog.text
    lines = [line for line in said.splitlines() if all(part in line for part in case.says)]
    assert code not in (0, None), said
    assert lines, said
    assert "Traceback" not in said and not any(record.exc_info for record in caplog.records)
    assert not list(tmp_path.rglob(run_folder.RESULT_FILE))


def test_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
