"""Which fine-tuned models are joined by a line: the runs whose models were saved, and the pairs that they make."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from GLUE_tasks.transfers import Pruning, Strength
from harness import records, run_folder

DENSE, SPARSE = "dense_transfer", "sparse_transfer"
KINDS = ("dense-sparse", "dense-pruned", "dense-dense")
# What a pair's name calls its ends, by their transfer.
WORD = {DENSE: "dense", "dense_transfer_freezing": "frozen", SPARSE: "sparse", "sparse_to_dense": "regrown"}
HEAD = "ForSequenceClassification"  # how the architectures end that this can load
SETTING = "interpolation"
# The arguments of a run that decide which training rows it saw.
SAMPLE = ("validation_split_percentage", "seed", "subset", "max_train_samples")


class SavedModel(NamedTuple):
    """A complete run of Glue_prune_oneshot.py that left its model.

    Fields:
        folder: the run's.
        arguments: what its args.json records.
        identity: what of it tells the run from others (run_folder.recorded_identity).
        result: its row of run_folder.read_runs.
    """

    folder: Path
    arguments: dict[str, Any]
    identity: dict[str, Any]
    result: dict[str, Any]

    @property
    def files(self) -> Path:
        """The folder that from_pretrained takes."""
        return self.folder / "model"


class Pair(NamedTuple):
    """The two ends of a line.

    Fields:
        kind: one of KINDS, or other words of WORD where the models were given one by one.
        end: None where the end is the start's own copy, pruned by magnitude and not trained on.
        pruned: how much of that copy is pruned, else None.
    """

    kind: str
    start: SavedModel
    end: SavedModel | None
    pruned: Strength | None = None

    @property
    def sparser(self) -> SavedModel | None:
        """The end that is compressed; None where neither is, or where it is the pruned copy."""
        ends = [end for end in (self.end, self.start) if end is not None and end.result["strength_kind"] is not None]
        return ends[0] if ends else None


def saved_model(folder: Path) -> SavedModel:
    """The model that a run left, from the run's folder or the model's below it.

    Raises:
        ValueError: no such folder, no complete run of Glue_prune_oneshot.py there, or one without its model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    run = folder.parent if folder.name == "model" and run_folder.is_complete(folder.parent) else folder
    rows = [row for row in run_folder.read_runs(run) if Path(row["folder"]) == run]
    if not rows or not _is_fine_tuned(rows[0]):
        raise ValueError(f"{run} holds no complete run of Glue_prune_oneshot.py, whose args.json says what it learned")
    if not _is_saved(run):
        raise ValueError(f"{run} has no model/*.safetensors: the run was made without --save_model")
    if not _has_head(run):
        raise ValueError(f"{run}/model is no {HEAD}; other heads have other losses")
    return _read(run, rows[0])


def saved_models(results_dir: Path, tasks: Sequence[str] = ()) -> list[SavedModel]:
    """Every model that the GLUE runs below a folder left.

    Args:
        tasks: those to take; all by default.
    Raises:
        ValueError: no such folder, no saved model of these tasks, or runs that must not be compared.
    """
    if not results_dir.is_dir():
        raise ValueError(f"--results_dir {results_dir}: no such folder")
    rows = [row for row in run_folder.read_runs(results_dir) if _is_fine_tuned(row)]
    folders = {row["folder"]: Path(row["folder"]) for row in rows}
    saved = [row for row in rows if _is_saved(folders[row["folder"]]) and _has_head(folders[row["folder"]])]
    if not saved:
        raise ValueError(
            f"--results_dir {results_dir}: none of its {len(folders)} runs of Glue_prune_oneshot.py left a model; "
            "make them with --save_model"
        )
    wanted = [row for row in saved if not tasks or row["task"] in tasks]
    if missing := set(tasks) - {row["task"] for row in wanted}:
        there = ", ".join(sorted({row["task"] for row in saved}))
        raise ValueError(f"--task_name {' '.join(sorted(missing))}: no saved model of that task; there are {there}")
    run_folder.check_runs(wanted)
    return [_read(folders[row["folder"]], row) for row in wanted]


def _read(run: Path, row: dict[str, Any]) -> SavedModel:
    return SavedModel(run, run_folder.recorded_arguments(run), run_folder.recorded_identity(run), row)


def _is_fine_tuned(row: dict[str, Any]) -> bool:
    """Whether a run has a transfer, as those of all fine-tuning scripts."""
    return row.get("transfer") is not None


def _is_saved(run: Path) -> bool:
    return (run / "model" / "config.json").is_file() and any((run / "model").glob("*.safetensors"))


def _has_head(run: Path) -> bool:
    architectures = json.loads((run / "model" / "config.json").read_text()).get("architectures") or [""]
    return architectures[0].endswith(HEAD)


def named_pair(start: SavedModel, end: SavedModel) -> Pair:
    """The pair of two given models, named after their transfers."""
    return Pair("-".join(WORD[model.result["transfer"]] for model in (start, end)), start, end)


def pruned_pair(start: SavedModel, strength: Strength) -> Pair:
    """A given model and its own copy, pruned in one shot and not trained on."""
    return Pair(f"{WORD[start.result['transfer']]}-pruned", start, None, strength)


def pairs_of(models: Sequence[SavedModel], kinds: Sequence[str], strengths: Sequence[Strength] = ()) -> list[Pair]:
    """All pairs of the given kinds among models of one pretrained model, task and share of data.

    "dense-sparse" joins what the dense and the sparse transfer made of one seed: the same head at first, the same order
    of rows. "dense-pruned" joins the dense transfer's model with its own copy, pruned in one shot and not trained on.
    "dense-dense" is the control: each seed of the dense transfer with the next, another head and order of rows.

    Args:
        kinds: some of KINDS.
        strengths: of dense-pruned; by default those of the sparse transfers there.
    Raises:
        ValueError: a task has no pair of one of the kinds; says what is lacking.
    """
    groups: dict[tuple, list[SavedModel]] = {}
    for model in models:
        groups.setdefault(tuple(model.result[name] for name in ("model", "task", "data_fraction")), []).append(model)
    makers = {"dense-sparse": _dense_sparse, "dense-pruned": _dense_pruned, "dense-dense": _dense_dense}
    pairs = []
    for (_, task, fraction), members in groups.items():
        dense = {model.result["seed"]: model for model in members if model.result["transfer"] == DENSE}
        sparse = [model for model in members if model.result["transfer"] == SPARSE]
        if not dense:
            raise ValueError(f"{task}, {fraction:g} of the data: no saved model of dense_transfer, where lines start")
        for kind in kinds:
            try:
                pairs += makers[kind](dense, sparse, strengths)
            except ValueError as error:
                raise ValueError(f"--pairs {kind}: {task}, {fraction:g} of the data: {error}") from error
    return pairs


def _dense_sparse(dense: dict[int, SavedModel], sparse: list[SavedModel], strengths: Sequence[Strength]) -> list[Pair]:
    if not sparse:
        raise ValueError("no saved model of sparse_transfer")
    if lacking := sorted({model.result["seed"] for model in sparse} - dense.keys()):
        raise ValueError(f"no saved model of dense_transfer with --seed {' '.join(map(str, lacking))}, as sparse has")
    return [Pair("dense-sparse", dense[model.result["seed"]], model) for model in sparse]


def _dense_pruned(dense: dict[int, SavedModel], sparse: list[SavedModel], strengths: Sequence[Strength]) -> list[Pair]:
    chosen = strengths or dict.fromkeys(_strength(model) for model in sparse)
    if not chosen:
        raise ValueError("no sparse_transfer whose strengths could be taken; give --sparsity or --nm_ratio")
    return [pruned_pair(model, strength) for model in dense.values() for strength in chosen]


def _strength(model: SavedModel) -> Strength:
    kind, strength = model.result["strength_kind"], model.result["strength"]
    return Strength(nm_ratio=strength) if kind == "nm" else Strength(sparsity=strength)


def _dense_dense(dense: dict[int, SavedModel], sparse: list[SavedModel], strengths: Sequence[Strength]) -> list[Pair]:
    if len(dense) < 2:
        raise ValueError(
            f"dense_transfer was saved with --seed {next(iter(dense))} alone; train another seed, or leave dense-dense "
            "out of --pairs"
        )
    return [Pair("dense-dense", dense[one], dense[two]) for one, two in itertools.pairwise(sorted(dense))]


def check_pair(pair: Pair) -> None:
    """Refuse, from files that take no time to read, two models between which a line means nothing.

    Raises:
        ValueError: other tasks, data, shapes (names the parameter), pretrained models or lengths.
    """
    if pair.end is None:
        return
    here, there = pair.start.arguments, pair.end.arguments
    both = f"{pair.start.folder} and {pair.end.folder}"
    if here["task_name"] != there["task_name"]:
        raise ValueError(f"{both} were fine-tuned on different tasks: {here['task_name']} and {there['task_name']}")
    if changed := records.content_differences("data", pair.start.identity, pair.end.identity):
        raise ValueError(f"{both} were fine-tuned on different data: {'; '.join(changed)}")
    try:
        check_same_tensors(*(stored_shapes(end.files) for end in (pair.start, pair.end)))
    except ValueError as error:
        raise ValueError(f"{both}: {error}") from error
    if changed := records.content_differences("model", pair.start.identity, pair.end.identity):
        names = f"{here['model_name_or_path']} and {there['model_name_or_path']}"
        raise ValueError(f"{both} were fine-tuned from different pretrained models: {names} ({'; '.join(changed)})")
    for name, what in (("label_order", "the order of the head's classes"), ("text_columns", "--text_columns")):
        if here.get(name) != there.get(name):
            raise ValueError(f"{both} differ in {what}: {here.get(name)} and {there.get(name)}")
    if here["max_length"] != there["max_length"]:
        raise ValueError(f"{both} differ in --max_length: {here['max_length']} and {there['max_length']}")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a saved model, from the headers of its files alone.

    Raises:
        ValueError: a file is no safetensors, or cut off.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as stored:
                names = stored.keys()
                shapes.update({name: tuple(stored.get_slice(name).get_shape()) for name in names})
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    return shapes


def check_same_tensors(start: Mapping[str, tuple[int, ...]], end: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse two models between which there is no line.

    Raises:
        ValueError: names the first parameter that only one of them has or that has another shape.
    """
    for name in [*start, *end]:
        if name not in start or name not in end:
            owner, other = ("start", "end") if name in start else ("end", "start")
            raise ValueError(f"the {owner} has a parameter {name}, which the {other} lacks: there is no line between")
        if tuple(start[name]) != tuple(end[name]):
            raise ValueError(
                f"the parameter {name} is {list(start[name])} at the start and {list(end[name])} at the end: models of "
                "different shapes or heads have no line between them"
            )


def pruning_of(pair: Pair) -> Pruning:
    """How a line's start is pruned to make its end: as the start's own run ranks weights."""
    recorded = pair.start.arguments  # of a run that may be older than an option
    return Pruning(
        (pair.pruned,), recorded.get("magnitude_scope", "global"), not recorded.get("noembed", False),
        recorded.get("prune_new_head", False),
    )  # fmt: skip


def describe(pair: Pair) -> dict[str, Any]:
    """The line's coordinates as results and figures name them; the strength is that of its compressed end."""
    start = pair.start.result
    names = ("compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "compression_recipe")
    compressed = {name: (pair.sparser or pair.start).result[name] for name in names}
    if pair.pruned is not None:
        options = {name: pair.start.arguments[name] for name in ("noembed", "prune_new_head")}
        compressed = {
            "compression": "magnitude",
            **pair.pruned.facts(pair.start.arguments["magnitude_scope"]),
            "compression_recipe": records.recipe(options),
        }
    return {
        "setting": SETTING,
        **{name: start[name] for name in ("model", "task", "data_fraction", "method")},
        "pair": pair.kind,
        **compressed,
        "seed": start["seed"],
        "end_seed": (pair.end or pair.start).result["seed"],
    }
