"""Which fine-tuned models are joined by a line: the saved models of runs, and the pairs of them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSequenceClassification

from GLUE_tasks.pretrained import PretrainedSource
from GLUE_tasks.transfers import Pruning, Strength, nm_arithmetic
from harness import records, run_folder

DENSE, SPARSE = "dense_transfer", "sparse_transfer"
KINDS = ("dense-sparse", "dense-pruned", "dense-dense")
# Name of an end in a pair's name, by transfer.
WORD = {DENSE: "dense", "dense_transfer_freezing": "frozen", SPARSE: "sparse", "sparse_to_dense": "regrown"}
HEAD = "ForSequenceClassification"  # architectures that can be loaded end so
SETTING = "interpolation"
# The arguments of a run that determine its training rows.
SAMPLE = ("validation_split_percentage", "seed", "subset", "max_train_samples")


class SavedModel(NamedTuple):
    """A complete run of Glue_prune_oneshot.py that saved its model.

    Fields:
        folder: the run's folder.
        arguments: run_folder.recorded_arguments.
        identity: run_folder.recorded_identity.
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
        kind: one of KINDS, or two other words of WORD for models given by --start and --end.
        end: None if the end is a copy of the start, pruned by magnitude and not trained further.
        pruned: strength of that copy, else None.
    """

    kind: str
    start: SavedModel
    end: SavedModel | None
    pruned: Strength | None = None

    @property
    def sparser(self) -> SavedModel | None:
        """The compressed end, if it is a saved model; else None."""
        ends = [end for end in (self.end, self.start) if end is not None and end.result["strength_kind"] is not None]
        return ends[0] if ends else None


def saved_model(folder: Path) -> SavedModel:
    """The saved model of a run, given the run's folder or its model/.

    Raises:
        ValueError: no such folder, no complete run of Glue_prune_oneshot.py there, or one without a saved model.
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
    """The saved models of all GLUE runs below a folder.

    Args:
        tasks: those to take; empty is all.
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
    """Whether a run is of a fine-tuning script: it has a transfer."""
    return row.get("transfer") is not None


def _is_saved(run: Path) -> bool:
    """Whether a run left its model; one beside a run that saved none was left by a run before it."""
    files = (run / "model" / "config.json").is_file() and any((run / "model").glob("*.safetensors"))
    return files and bool((run_folder.recorded_arguments(run) or {}).get("save_model"))


def _has_head(run: Path) -> bool:
    architectures = json.loads((run / "model" / "config.json").read_text()).get("architectures") or [""]
    return architectures[0].endswith(HEAD)


def named_pair(start: SavedModel, end: SavedModel) -> Pair:
    """The pair of two models, named after their transfers."""
    return Pair("-".join(WORD[model.result["transfer"]] for model in (start, end)), start, end)


def pruned_pair(start: SavedModel, strength: Strength) -> Pair:
    """A model and its copy, pruned in one shot and not trained further."""
    return Pair(f"{WORD[start.result['transfer']]}-pruned", start, None, strength)


def pairs_of(models: Sequence[SavedModel], kinds: Sequence[str], strengths: Sequence[Strength] = ()) -> list[Pair]:
    """All pairs of the given kinds, each of models with the same pretrained model, task and share of data.

    "dense-sparse": dense and sparse transfer of one seed, so with the same initial head and order of rows.
    "dense-pruned": dense transfer's model and its copy, pruned in one shot and not trained further.
    "dense-dense": dense transfer of one seed and of the next, which differ in head and order of rows; the control.

    Args:
        kinds: some of KINDS.
        strengths: for dense-pruned; by default those of the models of sparse transfer.
    Raises:
        ValueError: a task has no pair of one of the kinds (names what is missing).
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
    """Refuse, without loading weights, two models that must not be joined by a line.

    Raises:
        ValueError: they differ in task, data, shapes (names the parameter), pretrained model or --max_length.
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
        ValueError: a file is no safetensors or is damaged.
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
    """Refuse two models whose parameters differ in name or shape.

    Raises:
        ValueError: names the first such parameter.
    """
    for name in [*start, *end]:
        if name not in start or name not in end:
            has, lacks = ("start", "end") if name in start else ("end", "start")
            raise ValueError(f"the {has} has a parameter {name}, which the {lacks} lacks: there is no line between")
        if tuple(start[name]) != tuple(end[name]):
            raise ValueError(
                f"the parameter {name} is {list(start[name])} at the start and {list(end[name])} at the end: models of "
                "different shapes or heads have no line between them"
            )


def pruning_of(pair: Pair) -> Pruning:
    """The pruning that makes a line's end from its start; weights are ranked as by the options of the start's run."""
    recorded = pair.start.arguments  # older runs may lack an option
    return Pruning(
        (pair.pruned,), recorded.get("magnitude_scope", "global"), not recorded.get("noembed", False),
        recorded.get("prune_new_head", False),
    )  # fmt: skip


def pruning_options(pair: Pair) -> dict[str, bool] | None:
    """The options of the start's run that select the weights to prune; None for two saved models."""
    return pair.pruned and {name: pair.start.arguments.get(name, False) for name in ("noembed", "prune_new_head")}


def method_arithmetic(pair: Pair, trust_remote_code: bool = False) -> int | None:
    """Number of the arithmetic that pruned the line's compressed end; None where none is recorded of it."""
    if pair.pruned is None:
        return pair.sparser and pair.sparser.identity.get("method_arithmetic")
    if pair.pruned.nm_ratio is None:
        return None
    source = PretrainedSource(str(pair.start.files), trust_remote_code=trust_remote_code)
    return nm_arithmetic(source.without_weights(None, AutoModelForSequenceClassification))


def describe(pair: Pair) -> dict[str, Any]:
    """The line's coordinates in all_results.json; the strength is that of its compressed end."""
    start = pair.start.result
    names = ("compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "compression_recipe")
    compressed = {name: (pair.sparser or pair.start).result[name] for name in names}
    if pair.pruned is not None:
        compressed = {
            "compression": "magnitude",
            **pair.pruned.facts(pair.start.arguments["magnitude_scope"]),
            "compression_recipe": records.recipe(pruning_options(pair)),
        }
    return {
        "setting": SETTING,
        **{name: start[name] for name in ("model", "task", "data_fraction", "method")},
        "pair": pair.kind,
        **compressed,
        "seed": start["seed"],
        "end_seed": (pair.end or pair.start).result["seed"],
    }
