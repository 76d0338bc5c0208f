"""Checkpoints of a training run: each is written whole or not at all, and only the same run resumes from it."""

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from harness import leases, records, run_folder
from harness.errors import first_line

logger = logging.getLogger(__name__)

PARTIAL = "checkpoint.partial"  # the folder of one that is being written
PROGRESS_FILE = "progress.json"  # written last: a checkpoint without it is not whole


def origin(identity: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """What a checkpoint records of its run, in JSON's types: the identity, and the precision as accelerate names it."""
    return json.loads(json.dumps({"identity": identity, "precision": precision}))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Fields:
        folder: the run's folder; each checkpoint is its subfolder checkpoint-<step>.
        origin: what `origin` returned of the run.
        named: the checkpoint of --resume_from_checkpoint, in `folder` or elsewhere; it is never deleted.
        notes: what the caller measured so far, in JSON's types; saved with every checkpoint, and restored from it.
    """

    folder: Path
    origin: Mapping[str, Any]
    named: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def resume(self, accelerator: Accelerator, scheduler: LRScheduler, num_steps: int) -> tuple[int, float]:
        """Restore the named checkpoint, else the newest undamaged one.

        Args:
            num_steps: optimizer steps of the whole training, for the log.
        Returns:
            Optimizer steps done, and the sum of their losses in this process; (0, 0.0) without a checkpoint.
        """
        checkpoint = self.named or newest(self.folder)
        if checkpoint is None:
            return 0, 0.0
        accelerator.load_state(str(checkpoint))
        progress = json.loads((checkpoint / PROGRESS_FILE).read_text())
        scheduler.load_state_dict(progress["scheduler"])
        self.notes.update(progress.get("notes", {}))
        logger.info("resumed from %s at step %d of %d", checkpoint, progress["step"], num_steps)
        return progress["step"], progress["loss_sums"][accelerator.process_index]

    def save(self, accelerator: Accelerator, scheduler: LRScheduler, step: int, loss_sum: Tensor | float) -> None:
        """Store model, optimizer and random states as checkpoint-<step>, then delete the older checkpoints.

        Raises:
            LostRunError: another process took the run over while this one was stopped.
        """
        partial, final = self.folder / PARTIAL, self.folder / f"checkpoint-{step}"
        if accelerator.is_main_process:
            leases.check(self.folder)
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        losses = accelerator.gather(torch.tensor([float(loss_sum)], device=accelerator.device))
        if accelerator.is_main_process:
            files = {path.name: path.stat().st_size for path in partial.iterdir()}
            progress = {"step": step, "loss_sums": losses.tolist(), "scheduler": scheduler.state_dict(), "files": files}
            (partial / PROGRESS_FILE).write_text(json.dumps({**progress, **self.origin, "notes": self.notes}))
            if final.exists() and not self._is_named(final):
                shutil.rmtree(final)  # a damaged one, which resume skipped
            partial.rename(final)
            self.delete(but=final)
        accelerator.wait_for_everyone()

    def delete(self, but: Path | None = None) -> None:
        """Delete the checkpoints in the folder, except the named one and `but`."""
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)  # of a process that was killed
        for checkpoint in finished(self.folder):
            if checkpoint != but and not self._is_named(checkpoint):
                shutil.rmtree(checkpoint)

    def delete_others(self) -> None:
        """Delete and log the checkpoints in the folder that belong to another run; the named one stays."""
        for checkpoint in finished(self.folder):
            if self._is_named(checkpoint) or not _is_readable(checkpoint):
                continue
            try:
                changed = differences(checkpoint, self.origin)
            except ValueError as error:
                changed = [str(error)]
            if changed:
                logger.warning("%s belongs to another run and is deleted: %s", checkpoint, "; ".join(changed))
                shutil.rmtree(checkpoint)

    def check_named(self) -> None:
        """Refuse a named checkpoint that is damaged or belongs to another run.

        Raises:
            ValueError: names the option and the folder, and says what is damaged or how the runs differ.
        """
        if self.named is None:
            return
        option = f"--resume_from_checkpoint {self.named}"
        if wrong := damage(self.named):
            raise ValueError(f"{option}: the checkpoint is damaged: {wrong}")
        try:
            changed = differences(self.named, self.origin)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error
        if changed:
            raise ValueError(f"{option} belongs to another run: {'; '.join(changed)}")

    def _is_named(self, checkpoint: Path) -> bool:
        return self.named is not None and checkpoint.resolve() == self.named.resolve()


def finished(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to the end, oldest first; others of such names are logged."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isascii() and step.isdigit() and (path / PROGRESS_FILE).is_file():
            steps[path] = int(step)
        else:
            logger.warning("%s is skipped: it is no checkpoint of this project", path)
    return sorted(steps, key=steps.__getitem__)


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in a folder; damaged ones are logged and skipped."""
    for checkpoint in reversed(finished(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        logger.warning("%s is damaged and skipped: %s", checkpoint, wrong)
    return None


def differences(checkpoint: Path, wanted: Mapping[str, Any]) -> list[str]:
    """How a checkpoint's run differs from another, one text per argument: "seed: 1 here, 2 there".

    A checkpoint of an earlier version does not record its run; then the args.json beside it is read.

    Args:
        wanted: what `origin` returned of the other run ("here").
    Raises:
        ValueError: neither file says which run the checkpoint belongs to.
    """
    recorded = _progress(checkpoint)
    if "identity" not in recorded:
        arguments = run_folder.recorded_arguments(checkpoint.parent)
        if arguments is None:
            raise ValueError(f"{checkpoint} does not say which run it belongs to, and there is no args.json beside it")
        content = json.loads((checkpoint.parent / run_folder.ARGUMENTS_FILE).read_text())
        recorded = {"identity": arguments, "precision": content["environment"].get("precision")}
    changed = records.differences(wanted["identity"], recorded["identity"])
    if recorded["precision"] != wanted["precision"]:
        changed.append(f"precision: {wanted['precision']!r} here, {recorded['precision']!r} there")
    return changed


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are whole."""
    try:
        progress = _progress(checkpoint)
        for name, size in progress.get("files", {}).items():
            if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size != size:
                return f"{name} is missing or cut off"
        with safe_open(checkpoint / "model.safetensors", "pt") as stored:
            stored.keys()
        # accelerate resumes without the random states that it cannot read
        states = (f"random_states_{process}.pkl" for process in range(len(progress["loss_sums"])))
        for name in ("optimizer.bin", *states):
            with zipfile.ZipFile(checkpoint / name) as stored:
                if stored.testzip() is not None:
                    return f"{name} is damaged"
    except (OSError, SafetensorError, zipfile.BadZipFile) as error:
        return first_line(error)
    except ValueError as error:
        return str(error)
    return None


def _progress(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / PROGRESS_FILE
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict) or not {"step", "loss_sums", "scheduler"} <= content.keys():
        raise ValueError(f"{path.name} lacks step, loss_sums or scheduler")
    return content


def _is_readable(checkpoint: Path) -> bool:
    try:
        return bool(_progress(checkpoint))
    except ValueError:
        return False
