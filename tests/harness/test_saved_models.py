"""A run that takes another's place removes the models that the other wrote, and nothing else."""

from pathlib import Path

import pytest

from harness import run_folder

ONE, OTHER = {"learning_rate": 1e-3}, {"learning_rate": 1e-5}


def left(folder: Path, *records: tuple[dict, dict]) -> list[str]:
    """The folders in a run's folder after runs of these arguments and environments were started there in turn."""
    for name in ("model", "gptqmodel"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").touch()
    for arguments, environment in records:
        run_folder.start_run(folder, arguments, environment)
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("arguments", "environment", "kept"),
    [
        ({"save_model": True}, {}, ["gptqmodel"]),
        ({"train_text": "c4"}, {}, ["gptqmodel"]),  # recover.py, which always saves
        ({}, {"stream": True}, ["gptqmodel"]),
        ({"export": "gptqmodel"}, {}, ["model"]),
        ({"save_model": True, "export": "gptqmodel"}, {}, []),
        ({"save_model": False}, {"stream": False}, ["gptqmodel", "model"]),  # the user's: no run wrote them
    ],
)
def test_models_of_another_run_are_removed(tmp_path: Path, arguments: dict, environment: dict, kept: list[str]):
    assert left(tmp_path, ({**ONE, **arguments}, environment), (OTHER, {})) == kept


def test_a_half_written_model_of_another_run_is_removed(tmp_path: Path):
    (tmp_path / "model.partial").mkdir()
    assert left(tmp_path, ({**ONE, "save_model": True}, {}), (OTHER, {})) == ["gptqmodel"]


def test_what_no_run_is_known_to_have_written_stays(tmp_path: Path):
    assert left(tmp_path, (ONE, {})) == ["gptqmodel", "model"]
    (tmp_path / run_folder.ARGUMENTS_FILE).write_text('{"arguments": {"save_mo')
    run_folder.start_run(tmp_path, OTHER, {})
    assert (tmp_path / "model").is_dir()


def test_the_same_run_goes_on_with_its_model(tmp_path: Path):
    saved = {**ONE, "save_model": True}
    assert left(tmp_path, (saved, {}), (saved, {})) == ["gptqmodel", "model"]


def test_a_streamed_model_goes_when_its_run_is_repeated_in_memory(tmp_path: Path):
    """Else no record tells a later run of other options that it was written."""
    assert left(tmp_path, (ONE, {"stream": True}), (ONE, {"stream": True})) == ["gptqmodel", "model"]
    run_folder.start_run(tmp_path, ONE, {"stream": False})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("option", ["model_name_or_path", "checkpoint"])
def test_a_model_that_the_run_reads_stays(tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    read = {"model_name_or_path": "model", "checkpoint": "model/model.safetensors"}[option]  # of one cell
    assert left(tmp_path, ({**ONE, "save_model": True}, {}), ({**ONE, option: read}, {})) == ["gptqmodel", "model"]
