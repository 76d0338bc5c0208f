"""The models that runs write into their folders: a run that takes another's place removes those of the other."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import records


def written_by(arguments: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """The names of the folders that a run of this record writes models to, inside its own."""
    saved = arguments.get("save_model") or "train_text" in arguments or environment.get("stream")
    return [name for name, written in (("model", saved), ("gptqmodel", arguments.get("export"))) if written]


def remove_others(
    folder: Path, arguments: Mapping[str, Any], environment: Mapping[str, Any],
    earlier: tuple[dict[str, Any], dict[str, Any]],
) -> None:  # fmt: skip
    """Remove the models in the folder of a run that starts which the run before it wrote.

    What the same run writes again stays, since --stream goes on where it was stopped. So does what the run itself
    reads.

    Args:
        arguments, environment: of the run that starts; its identity, and whether it streams.
        earlier: arguments and environment of the run that was started in the folder before.
    """
    same = not records.differences(arguments, records.normal(*earlier))
    again = written_by(arguments, environment) if same else []
    read = [arguments.get("model_name_or_path"), arguments.get("checkpoint")]
    for name in set(written_by(*earlier)) - set(again):
        model = folder / name
        shutil.rmtree(folder / f"{name}.partial", ignore_errors=True)  # of a process that was killed
        if model.is_dir() and not any(Path(path).resolve().is_relative_to(model.resolve()) for path in read if path):
            shutil.rmtree(model)
