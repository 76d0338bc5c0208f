"""Which checkpoint a training may go on from: a whole one, of the very same run."""

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from GLUE_tasks import finetune
from harness import records, run_folder

logger = logging.getLogger(__name__)


def origin(identity: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """What a checkpoint says of the run that it is of: its identity, and the precision that it computes in."""
    return json.loads(json.dumps({"identity": identity, "precision": precision}))


def differences(checkpoint: Path, wanted: Mapping[str, Any]) -> list[str]:
    """In what a checkpoint's run differs from another: "seed: 1 here, 2 there".

    A checkpoint that an earlier version wrote says nothing of its run; then the args.json beside it counts.

    Args:
        wanted: what origin returned.
    Raises:
        ValueError: neither says which run it is.
    """
    found = _progress(checkpoint)
    if "identity" not in found:
        recorded = run_folder.recorded_arguments(checkpoint.parent)
        if recorded is None:
            raise ValueError(f"{checkpoint} does not say which run it is of, and no args.json stands beside it")
        precision = json.loads((checkpoint.parent / run_folder.ARGUMENTS_FILE).read_text())["environment"].get(
            "precision"
        )
        found = {"identity": recorded, "precision": precision}
    changed = records.differences(wanted["identity"], found["identity"])
    if found["precision"] != wanted["precision"]:
        changed.append(f"precision: {wanted['precision']!r} here, {found['precision']!r} there")
    return changed


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if it is whole."""
    try:
        found = _progress(checkpoint)
        for name, size in found.get("files", {}).items():
            if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size != size:
                return f"{name} is missing or cut off"
        with safe_open(checkpoint / "model.safetensors", "pt") as stored:
            stored.keys()
        # accelerate goes on without random states that it cannot read
        states = (f"random_states_{process}.pkl" for process in range(len(found["loss_sums"])))
        for name in ("optimizer.bin", *states):
            with zipfile.ZipFile(checkpoint / name) as stored:
                if stored.testzip() is not None:
                    return f"{name} is damaged"
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        return str(error).splitlines()[0]
    except ValueError as error:
        return str(error)
    return None


def _progress(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / finetune.PROGRESS_FILE
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"step", "loss_sums", "scheduler"} <= found.keys():
        raise ValueError(f"{path.name} lacks step, loss_sums or scheduler")
    return found


def _is_readable(checkpoint: Path) -> bool:
    try:
        return bool(_progress(checkpoint))
    except ValueError:
        return False


def check_named(checkpoint: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a checkpoint given by --resume_from_checkpoint that is damaged, or of another run.

    Raises:
        ValueError: names the folder, and what is wrong with it or differs.
    """
    option = f"--resume_from_checkpoint {checkpoint}"
    if wrong := damage(checkpoint):
        raise ValueError(f"{option}: the checkpoint is damaged: {wrong}")
    try:
        changed = differences(checkpoint, wanted)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    if changed:
        raise ValueError(f"{option} is of another run: {'; '.join(changed)}")


def drop_others(folder: Path, wanted: Mapping[str, Any], named: Path | None) -> None:
    """Delete the checkpoints in a run's folder that are of another run; never the one that the user named."""
    for checkpoint in finetune.checkpoints(folder):
        if is_same(checkpoint, named) or not _is_readable(checkpoint):
            continue
        try:
            changed = differences(checkpoint, wanted)
        except ValueError as error:
            changed = [str(error)]
        if changed:
            logger.warning("%s is of another run and deleted: %s", checkpoint, "; ".join(changed))
            shutil.rmtree(checkpoint)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; damaged ones are said and passed over."""
    for checkpoint in reversed(finetune.checkpoints(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("%s is damaged and passed over: %s", checkpoint, wrong)
    return None


def is_same(checkpoint: Path, named: Path | None) -> bool:
    return named is not None and checkpoint.resolve() == named.resolve()
