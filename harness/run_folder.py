"""The run folder: what a run writes into it, and how a tree of run folders is read back as one table.

A run owns one folder. Its files appear in this order:

    .owner              the process that computes the run, while it does (harness/leases.py)
    args.json           at the start: all arguments, and the environment: command, commit, versions, machine
    failure.json        why the last attempt failed; removed when the next one starts
    items.npz           at the end: the outcome of every evaluated item
    all_results.json    last, by atomic rename: its presence means that the run is complete
"""

import contextlib
import datetime
import errno
import functools
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from harness import leases, records, saved_models
from harness.errors import describe_error
from harness.folders import folders_with

ARGUMENTS_FILE = "args.json"
RESULT_FILE = "all_results.json"
ITEMS_FILE = "items.npz"
FAILURE_FILE = "failure.json"

FAILURE_KEYS = ("error", "time", "host")  # in every failure.json
RUN_KEYS = (
    "setting", "model", "compression", "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "seed", "seconds", "peak_memory_bytes", "recipe", "levels",
)  # fmt: skip
# Types of the keys that tables compute with and sort by; read_runs checks them.
RUN_TYPES = {
    "setting": (int, str), "model": (str,), "compression": (str,), "strength_kind": (str, type(None)),
    "requested_sparsity": (int, float, type(None)), "seed": (int,),
}  # fmt: skip
SHOWN_FILES = 10  # most skipped files that passed_over_lines names
LEVEL_KEYS = ("level", "difficulty", "metric", "score", "chance", "stderr", "num_examples")
# Keys in which the runs of one sweep differ; a run lacks those that its setting does not have.
COORDINATES = (
    "setting", "model", "task", "mixture", "shots", "data_fraction", "transfer", "pair", "compression",
    "magnitude_scope", "strength_kind", "strength", "layers", "allocation", "end_seed", "seed",
)  # fmt: skip
# By kind of recipe, what else runs of one setting, model and task share where it must be the same. An allocation is
# compared among runs that are averaged: a file that names every weight holds for one strength alone.
COMPARED_AMONG = {
    "recipe": (), "compression_recipe": (), "method_recipe": ("compression", "strength_kind"), "layers": ("layers",),
    "allocation": ("compression", "layers", "allocation", "strength"),
}  # fmt: skip
# Environment variables of a batch system: the job, and the GPUs that it was given.
JOB_VARIABLES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "CUDA_VISIBLE_DEVICES")
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "numpy", "scipy")


class DifferentRunError(ValueError):
    """The folder holds a complete run that was made with other arguments."""


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` holds either all of it or what it held before, even after a crash.

    Raises:
        ValueError: a number is NaN or infinite; nothing is written.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} is not written: {error}") from error
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either all of it or what it held before, even after a crash."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    """Sync the folder, so that renames survive a power cut; file systems without that are left as they are."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def start_run(folder: Path, arguments: dict[str, Any], environment: dict[str, Any]) -> None:
    """Write args.json of a run that starts; files of an earlier run are removed, all_results.json first, models last.

    Args:
        arguments: the run's identity.
        environment: what describe_environment returned.
    Raises:
        LostRunError: another process holds the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leases.check(folder)
    names = RESULT_FILE, ITEMS_FILE, FAILURE_FILE
    partial = [path.name for name in (ARGUMENTS_FILE, *names) for path in folder.glob(f"{name}.*.partial")]
    for name in (*names, *partial):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(ValueError):  # of an args.json that does not tell what its run wrote
        if earlier := _recorded(folder):
            saved_models.remove_others(folder, arguments, environment, earlier)
    write_json(folder / ARGUMENTS_FILE, {"arguments": arguments, "environment": environment})


def write_run(folder: Path, result: dict[str, Any], items: dict[str, np.ndarray]) -> None:
    """Complete a run: write items.npz, then all_results.json.

    Args:
        folder: the run's folder, in which start_run was called.
        result: RUN_KEYS, a dict of LEVEL_KEYS for each level in `levels`, and anything else that the run measured.
        items: arrays by name; the first axis is the item.
    Raises:
        ValueError: a key is missing, there is no level, or a number of `result` is NaN or infinite; no
            all_results.json is written.
        LostRunError: another process took the run over.
    """
    missing = _missing_keys(result)
    if missing:
        raise ValueError(f"result of {folder} lacks {', '.join(missing)}")
    stored = io.BytesIO()
    np.savez_compressed(stored, allow_pickle=False, **items)
    leases.check(folder)
    replace_file(folder / ITEMS_FILE, stored.getvalue())
    write_json(folder / RESULT_FILE, result)


def write_failure(folder: Path, error: BaseException) -> None:
    """Write failure.json: why the attempt to compute the run failed."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    failure = {"error": describe_error(error), "time": now, "host": platform.node(), "pid": os.getpid()}
    failure["traceback"] = "".join(traceback.format_exception(error))
    write_json(folder / FAILURE_FILE, failure)


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Why the last attempt failed: error, time, host, pid, traceback; None if it did not fail."""
    try:
        failure = json.loads((folder / FAILURE_FILE).read_bytes())
        return {**failure, **{name: failure[name] for name in FAILURE_KEYS}}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {**dict.fromkeys(FAILURE_KEYS, "unknown"), "error": f"{FAILURE_FILE} cannot be read"}


def _missing_keys(result: dict[str, Any]) -> list[str]:
    missing = [key for key in RUN_KEYS if not (result.get(key) if key == "levels" else key in result)]
    levels = result.get("levels") or []
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        return [*missing, "levels"]
    return missing + [f"levels[].{key}" for key in LEVEL_KEYS if any(key not in level for level in levels)]


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a complete run."""
    return (folder / RESULT_FILE).is_file()


def recorded_arguments(folder: Path) -> dict[str, Any] | None:
    """The arguments that the run in `folder` was started with, None if none was started there.

    Raises:
        ValueError: the file is cut off or is not what start_run writes (names it).
    """
    record = _recorded(folder)
    return record and record[0]


def recorded_identity(folder: Path) -> dict[str, Any] | None:
    """The identity of the run in `folder`, in today's form (records.normal); None if none was started there.

    Raises:
        ValueError: as recorded_arguments.
    """
    record = _recorded(folder)
    return record and records.normal(*record)


def _recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Arguments and environment in args.json; None without the file."""
    path = folder / ARGUMENTS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        return content["arguments"], content.get("environment") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was cut off, or not written by this project: {error}") from error


def check_same_run(folder: Path, arguments: dict[str, Any]) -> None:
    """Refuse a folder that holds a complete run with other arguments (records.differences).

    Raises:
        DifferentRunError: names every argument that differs.
    """
    if not is_complete(folder):
        return
    changed = records.differences(arguments, recorded_identity(folder) or {})
    if changed:
        raise DifferentRunError(
            f"--output_dir {folder} holds a run with other arguments ({'; '.join(changed)}); "
            "choose another folder, or replace it with --overwrite"
        )


def read_runs(*results_dirs: Path, passed_over: list[str] | None = None) -> list[dict[str, Any]]:
    """Table of the complete runs below the given folders: one row for each run and level, sorted by folder.

    A run that is below two of the folders is read once.

    Args:
        passed_over: a list that gets a sentence for each file that is no result of this project; such files are then
            skipped. None makes them an error.
    Returns:
        Rows with the run's keys but `levels`, the level's keys, `folder`, and `level_index`, the index of the level
        among the run's.
    Raises:
        ValueError: a file is no result of this project, is cut off, or holds NaN or infinity (names the file).
    """
    shared: dict[str, str] = {}
    rows = []
    for folder in folders_with([RESULT_FILE], *results_dirs):
        try:
            run = _shared_texts(_read_result(folder / RESULT_FILE), shared)
        except FileNotFoundError:  # the run was started again in the meantime
            continue
        except ValueError as error:
            if passed_over is None:
                raise
            passed_over.append(str(error))
            continue
        levels = run.pop("levels")
        name = str(folder)
        for index, level in enumerate(levels):
            rows.append({**run, **_shared_texts(level, shared), "level_index": index, "folder": name})
    return rows


def passed_over_lines(passed_over: list[str]) -> list[str]:
    """Lines for the log about files that read_runs skipped: the first SHOWN_FILES, and how many more there are."""
    rest = len(passed_over) - SHOWN_FILES
    lines = [f"passed over: {sentence}" for sentence in passed_over[:SHOWN_FILES]]
    return [*lines, f"passed over: {rest} more such files"] if rest > 0 else lines


def _shared_texts(entries: dict[str, Any], shared: dict[str, str]) -> dict[str, Any]:
    """The dict with equal texts replaced by one object, to save memory: 100,000 runs repeat few keys and names."""
    return {
        shared.setdefault(name, name): shared.setdefault(value, value) if isinstance(value, str) else value
        for name, value in entries.items()
    }


def unfinished_runs(*results_dirs: Path) -> list[Path]:
    """Folders below the given ones with a run that was started and is not complete: it is running, or it failed."""
    return [folder for folder in folders_with([ARGUMENTS_FILE], *results_dirs) if not is_complete(folder)]


def _read_result(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_bytes(), parse_constant=_refuse_constant, parse_float=_finite_float)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    missing = _missing_keys(run) if isinstance(run, dict) else RUN_KEYS
    if missing:
        raise ValueError(f"{path} was not written by this project: it lacks {', '.join(missing)}")
    for name, kinds in RUN_TYPES.items():
        if not _is_of(run[name], kinds):
            raise ValueError(f"{path} was not written by this project: its {name} is {run[name]!r}")
    for level in run["levels"]:
        if not _is_of(level["score"], (int, float)):
            raise ValueError(f"{path}: the score of level {level['level']} is {level['score']!r}, not a number")
    return run


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"it holds {text}, which is infinite")
    return value


def coordinates(row: dict[str, Any]) -> dict[str, Any]:
    """A run's value of each of COORDINATES, None for those that it does not have.

    magnitude_scope is None except for unstructured sparsity: dense runs rank nothing, N:M ranks within a group.
    """
    values = dict(zip(COORDINATES, map(row.get, COORDINATES), strict=True))
    if row["strength_kind"] != "sparsity":
        values["magnitude_scope"] = None
    return values


def check_runs(rows: Iterable[dict[str, Any]]) -> None:
    """Refuse a table whose runs must not be averaged or compared.

    Runs of one setting, model and task must have the same `recipe`. `compression_recipe` (the calibration text, whether
    the embedding is pruned) is compared among the runs that have one, `method_recipe` (group size, arithmetic) among
    those of one compression and, in fine-tuning, kind of strength. Runs whose layers or allocation have one label must
    have been given the same. Where hashes differ, the args.json files decide.

    Args:
        rows: what read_runs returned.
    Raises:
        ValueError: two folders hold the same run, or runs of one setting, model and task were made with different
            recipes or in different precision; names two folders and the arguments in which they differ.
    """
    holders: dict[tuple, str] = {}
    recipes: dict[tuple, dict[tuple, list[str]]] = {}
    checked = set()
    for row in rows:
        folder = row["folder"]
        if folder in checked:  # another level of the same run
            continue
        checked.add(folder)
        position = coordinates(row)
        holder = holders.setdefault(tuple(position.values()), folder)
        if holder != folder:
            raise ValueError(
                f"the same run ({_named(position)}) is there twice, keep one: {_compared(holder, [folder])}"
            )
        if position["data_fraction"] is None:  # no fine-tuning
            position["strength_kind"] = None
        for key, names in COMPARED_AMONG.items():
            if (found := _recipe_hash(key, row)) is not None or key == "method_recipe":
                group = (key, *(position[name] for name in ("setting", "model", "task", *names)))
                form = (found, *(_precision(row) if key == "recipe" else ()))
                recipes.setdefault(group, {}).setdefault(form, []).append(folder)
    for (key, *group), folders in recipes.items():
        for (form, one), (other_form, other) in itertools.combinations(folders.items(), 2):
            if _same_recipe(key, one[0], other[0], form[0] == other_form[0]):
                continue
            shared = dict(zip(("setting", "model", "task", *COMPARED_AMONG[key]), group, strict=True))
            shared.pop("strength_kind", None)
            raise ValueError(f"runs of {_named(shared)} were made with different recipes: {_compared(one[0], other)}")


def _recipe_hash(key: str, row: dict[str, Any]) -> str | None:
    """The hash of a run's recipe; of what a label stands for, which no result holds, from its args.json."""
    if key not in COORDINATES:
        return row.get(key)
    identity = None if row.get(key) is None else recorded_identity(Path(row["folder"]))
    return identity and records.recipe(records.part_of(identity, key))


def _precision(row: dict[str, Any]) -> tuple[str | None, ...]:
    """The precision and dtype that a run computed in, from its result, else from its args.json."""
    if "precision" not in row:
        return records.precision((_recorded(Path(row["folder"])) or ({}, {}))[1])
    return row["precision"], row.get("dtype")


def _same_recipe(key: str, folder: str, other: str, same_hash: bool) -> bool:
    """Whether two runs have one recipe by their args.json; False where these do not explain unequal hashes."""
    recorded = [_recorded(Path(name)) for name in (folder, other)]
    if None in recorded:
        return False
    kept = [[records.part_of(arguments, part) for part in ("recipe", key)] for arguments, _ in recorded]
    if kept[0] == kept[1] and not same_hash:
        return False
    return not records.differences(*(records.part_of(records.normal(*record), key) for record in recorded))


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _compared(folder: str, others: list[str]) -> str:
    """How a run differs from the most similar of others, in which the fewest other differences hide the cause."""
    here = recorded_identity(Path(folder)) or {}
    changes = {other: records.differences(here, recorded_identity(Path(other)) or {}) for other in others}
    other = min(changes, key=lambda name: len(changes[name]))
    changed = "; ".join(changes[other]) or "nothing that args.json records"
    return f"{folder} (here) and {other} (there) differ in {changed}"


def read_items(folder: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of items.npz by name, read-only; no pickle is read.

    Args:
        names: those to read, as far as they are there; None reads all.
    Returns:
        Equal arrays of the last few runs, such as the items' names, are one object.
    Raises:
        ValueError: the file is damaged or was not written by write_run (names it).
    """
    path = Path(folder) / ITEMS_FILE
    wanted = None if names is None else {f"{name}.npy" for name in names}
    try:
        with zipfile.ZipFile(path) as stored:
            members = [member for member in stored.namelist() if wanted is None or member in wanted]
            return {member.removesuffix(".npy"): _array(stored.read(member)) for member in members}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


@functools.lru_cache(maxsize=32)
def _array(content: bytes) -> np.ndarray:
    """The array of an .npy file. Equal content of the last few runs gives one object, which saves memory."""
    array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError("it holds NaN")
    array.flags.writeable = False
    return array


def describe_environment(device: str, **facts: Any) -> dict[str, Any]:
    """The `environment` of args.json: command, time, commit, dirty flag, versions, machine, and `facts`.

    Args:
        device: torch's name of the device.
        facts: further entries.
    """
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": platform.node(),
        "job": {name: os.environ[name] for name in JOB_VARIABLES if name in os.environ},
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "device": device,
        **facts,
    }


@functools.cache
def _git(*arguments: str) -> str | None:
    """What git says of this project's checkout, asked once: the process keeps the code that it started with.

    None outside a checkout, or without git.
    """
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
