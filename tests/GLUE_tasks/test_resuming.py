"""Checkpoints that a training goes on from: of the same run alone, whole, and never deleted where they were named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from conftest import slow_cases

from GLUE_tasks import Glue_prune_oneshot
from harness import run_folder, training

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
OPTIONS = {"--max_length": "16", "--per_device_train_batch_size": "8", "--learning_rate": "1e-3",
           "--max_train_steps": "7",
           "--mixed_precision": "no", "--checkpointing_steps": "2", "--sparse_method": "sparse_transfer",
           "--sparsity": "0.3", "--seed": "7"}  # fmt: skip


@pytest.fixture
def command(tiny_encoder: Path, sentence_files: tuple[Path, Path]) -> Callable[..., list[str]]:
    """A run of 7 steps in a folder, with some options changed."""

    def make(folder: Path, **changed: str | None) -> list[str]:
        named = {"--model_name_or_path": str(tiny_encoder), "--train_file": str(sentence_files[0]),
                 "--validation_file": str(sentence_files[1]), **OPTIONS, "--output_dir": str(folder),
                 **{f"--{name}": value for name, value in changed.items()}}  # fmt: skip
        return [word for pair in named.items() if pair[1] is not None for word in pair]

    return make


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the script; with `steps`, the run dies in the step after these."""
    original = training.train_step

    def run(argv: list[str], steps: int | None = None) -> int:
        done = []

        def step(*args, **options):
            done.append(1)
            if steps is not None and len(done) > steps:
                raise RuntimeError("the machine fails")
            return original(*args, **options)

        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(training, "train_step", step)
        code = Glue_prune_oneshot.main(argv)
        monkeypatch.setattr(training, "train_step", original)
        run.steps = len(done)
        return code

    return run


def outcome(folder: Path) -> tuple[float, list]:
    (row,) = run_folder.read_runs(folder)
    return row["train_loss"], run_folder.read_items(folder)["prediction"].tolist()


@pytest.fixture
def whole(command, start, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(command(folder)) == 0
    return outcome(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint*"))


@pytest.mark.slow
def test_stray_and_damaged_folders_are_said_and_passed_over(command, start, whole, tmp_path: Path, caplog):
    folder = tmp_path / "run"
    assert start(command(folder), steps=5) == 1 and names(folder) == ["checkpoint-4"]
    (folder / "checkpoint-abc").mkdir()
    (folder / "checkpoint-²").mkdir()
    for number, name in enumerate(
        ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"), start=8
    ):
        broken = folder / f"checkpoint-{number}"
        shutil.copytree(folder / "checkpoint-4", broken)
        (broken / name).write_bytes((broken / name).read_bytes()[:-20])
    assert start(command(folder)) == 0 and start.steps == 3
    assert outcome(folder) == whole
    for name in ("checkpoint-abc is skipped: it is no checkpoint",
                 "checkpoint-8 is damaged and skipped: model.safetensors",
                 "checkpoint-11 is damaged and skipped: progress.json"):  # fmt: skip
        assert name in caplog.text
    assert names(folder) == ["checkpoint-abc", "checkpoint-²"]  # not ours


@pytest.mark.slow
def test_without_a_whole_checkpoint_the_run_starts_anew(command, start, whole, tmp_path: Path):
    folder = tmp_path / "run"
    assert start(command(folder), steps=5) == 1
    (folder / "checkpoint-4/optimizer.bin").write_bytes(b"")
    assert start(command(folder)) == 0 and start.steps == 7
    assert outcome(folder) == whole and names(folder) == []


@pytest.mark.parametrize("where", ["elsewhere", *slow_cases("in its own folder")])
def test_a_named_checkpoint_is_gone_on_from_and_kept(where: str, command, start, whole, tmp_path: Path):
    assert start(command(tmp_path / "run"), steps=5) == 1
    named = tmp_path / "run/checkpoint-4"
    content = {path.name: path.read_bytes() for path in named.iterdir()}
    folder = tmp_path / ("other" if where == "elsewhere" else "run")
    assert start(command(folder, resume_from_checkpoint=str(named))) == 0 and start.steps == 3
    assert outcome(folder) == whole
    assert {path.name: path.read_bytes() for path in named.iterdir()} == content


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": "8"}, "seed: 8 here, 7 there"),
        ({"sparsity": "0.5"}, "sparsity: 0.5 here, 0.3 there"),
        ({"sparse_method": "sparse_to_dense"}, "transfer: 'sparse_to_dense' here, 'sparse_transfer' there"),
        ({"per_device_train_batch_size": "4"}, "per_device_train_batch_size: 4 here, 8 there"),
        ({"learning_rate": "2e-3"}, "learning_rate: 0.002 here, 0.001 there"),
        ({"max_train_steps": "9"}, "max_train_steps: 9 here, 7 there"),
        ({"mixed_precision": "bf16"}, "precision: 'bf16' here, 'no' there"),
        ({"train_file": "other.jsonl"}, "data_content_sha256: "),
    ],
)
def test_a_named_checkpoint_of_another_run_is_refused(
    changed: dict, says: str, command, start, tmp_path: Path, sentence_files, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(sentence_files[0], "other.jsonl")
    with Path("other.jsonl").open("a") as file:
        file.write('{"sentence": "a good film", "label": 1}\n')
    assert start(command(tmp_path / "run"), steps=3) == 1
    named = tmp_path / "run/checkpoint-2"
    for folder in ("run", "new"):
        with pytest.raises(SystemExit):
            start(command(tmp_path / folder, resume_from_checkpoint=str(named), **changed))
        said = capsys.readouterr().err
        assert f"--resume_from_checkpoint {named} belongs to another run: " in said and says in said
        assert named.is_dir() and not run_folder.is_complete(tmp_path / folder)


@pytest.mark.slow
def test_a_checkpoint_without_its_run_is_taken_by_the_args_beside_it(command, start, whole, tmp_path: Path, capsys):
    """As earlier versions wrote them."""
    assert start(command(tmp_path / "run"), steps=5) == 1
    named = tmp_path / "run/checkpoint-4"
    progress = json.loads((named / "progress.json").read_text())
    for name in ("identity", "precision", "files"):
        del progress[name]
    (named / "progress.json").write_text(json.dumps(progress))
    with pytest.raises(SystemExit):
        start(command(tmp_path / "other", resume_from_checkpoint=str(named), seed="8"))
    assert "belongs to another run: seed: 8 here, 7 there" in capsys.readouterr().err
    moved = tmp_path / "moved/checkpoint-4"
    shutil.copytree(named, moved)
    with pytest.raises(SystemExit):
        start(command(tmp_path / "other", resume_from_checkpoint=str(moved)))
    assert "does not say which run it belongs to, and there is no args.json beside it" in capsys.readouterr().err
    assert start(command(tmp_path / "run")) == 0 and start.steps == 3
    assert outcome(tmp_path / "run") == whole


def test_another_run_in_the_folder_starts_anew_and_says_so(command, start, tmp_path: Path, caplog):
    folder = tmp_path / "run"
    assert start(command(folder), steps=5) == 1
    assert start(command(folder, seed="8")) == 0 and start.steps == 7
    assert "checkpoint-4 belongs to another run and is deleted: seed: 8 here, 7 there" in caplog.text
