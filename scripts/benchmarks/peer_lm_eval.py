"""The peer's side of `benchmark.py evaluation`: lm-evaluation-harness scores rows of its own multiple-choice tasks,
timed, in an environment of its own.

    python -m venv lm_eval_peer && lm_eval_peer/bin/pip install "torch==2.13.0" "lm-eval[hf]"
    cd scripts/benchmarks
    …/lm_eval_peer/bin/python peer_lm_eval.py --model DIR --task mmlu --data_dir DIR --items FILE.json --output …

against_lm_eval.py starts this file with that interpreter; no package of this project is imported here.

The tasks are the peer's: its installed task files, with nothing changed but where the rows come from and, for mmlu,
--num_fewshot. The rows are read from <data_dir>/<task>/<split>.jsonl or .jsonl.gz, with the hub's field names. --items
chooses rows, so that another program can score the same ones.

The result is JSON:

    rows                sorted by `row`, the index in the file; each row has `group` (MMLU subject), `gold`,
                        `log_likelihoods` (one of each choice), `acc`, `acc_norm` (the peer's mmlu has none) and
                        `requests_sha256` (request_digest)
    means               of acc and acc_norm over all rows
    seconds             by stage: import, load (model and tokenizer), build (the peer's tasks and requests), tokenize,
                        forward, finish (the peer's metrics and report); score = tokenize + forward; total
    cpu_seconds         the same in CPU time of all threads
    loaded_bytes, scoring_peak_bytes (from load to finish), peak_bytes     of this process
    device_peak_bytes   of a GPU; 0 without one
    requests, cut_requests (too long for the model, cut on the left), max_length, settings, versions
"""

import argparse
import gzip
import hashlib
import json
import os
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from process_memory import peak_bytes, reset_peak, resident_bytes

OWN_TASKS = {  # where the peer's package describes a task, and the split that it evaluates
    "piqa": ("piqa/piqa.yaml", "validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test"),
    "mmlu": ("mmlu/default/mmlu_{subject}.yaml", "test"),
}
MOST_SHOTS = 5  # rows of a subject in MMLU's dev split
METRICS = ("acc", "acc_norm")


class PeerTask(NamedTuple):
    """A task as the peer will run it.

    Fields:
        name: what its task file calls it.
        group: what its rows have in common, such as an MMLU subject; None where nothing.
        rows: index in the data file of each of its rows, in their order.
        text: its task file.
    """

    name: str
    group: str | None
    rows: list[int]
    text: str


class Marks:
    """When each stage of this process ended, by the wall clock and in CPU time of all threads."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.times = [(time.perf_counter(), time.process_time())]

    def end(self, stage: str) -> None:
        self.names.append(stage)
        self.times.append((time.perf_counter(), time.process_time()))

    def spent(self, clock: int) -> dict[str, float]:
        """Seconds of each stage on clock 0 (wall) or 1 (CPU)."""
        pairs = zip(self.times, self.times[1:], strict=False)
        stages = {name: end[clock] - start[clock] for name, (start, end) in zip(self.names, pairs, strict=True)}
        score = stages["tokenize"] + stages["forward"]
        return {**stages, "score": score, "total": self.times[-1][clock] - self.times[0][clock]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a decoder language model with its tokenizer")
    add("--task", choices=tuple(OWN_TASKS), required=True)
    add("--data_dir", type=Path, required=True, help="folder of <task>/<split>.jsonl or .jsonl.gz")
    add("--num_fewshot", type=int, help=f"mmlu: worked examples, 0 to {MOST_SHOTS} (default {MOST_SHOTS})")
    add("--items", type=Path, help="JSON list of the rows to score, counted from 0 (default: all)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")
    add("--batch_size", type=positive, default=8, help="sequences computed at once (default 8)")
    add("--threads", type=positive, default=1, help="of the CPU (default 1)")
    add("--output", type=Path, required=True, help="write the result here, as JSON")
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.num_fewshot is not None and args.task != "mmlu":
        parser.error(f"--num_fewshot is for --task mmlu, not {args.task}")
    if args.num_fewshot is not None and not 0 <= args.num_fewshot <= MOST_SHOTS:
        parser.error(f"--num_fewshot {args.num_fewshot} is outside 0 to {MOST_SHOTS}")
    if not (args.model / "config.json").is_file():
        parser.error(f"--model {args.model}: no folder with a config.json")
    if args.items is not None and not args.items.is_file():
        parser.error(f"--items {args.items}: no such file")
    if not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: its folder does not exist")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shots = MOST_SHOTS if args.num_fewshot is None else args.num_fewshot
        tasks = own_tasks(args.task, args.data_dir, args.items, shots, installed_tasks(), folder)
        for task in tasks:
            (folder / f"{task.name}.yaml").write_text(task.text, encoding="utf-8")
        measured = evaluate(args.model, tasks, args.dtype, args.device, args.batch_size, args.threads, folder)
    settings = {name: value for name, value in vars(args).items() if value is not None}
    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers", "datasets")}
    result = {"settings": settings, "versions": versions, **measured}
    args.output.write_text(json.dumps(result, default=str), encoding="utf-8")
    print(f"{len(result['rows'])} rows, {result['means']}: {args.output}")


def own_tasks(
    task: str, data_dir: Path, items: Path | None, shots: int, installed: Path, folder: Path
) -> list[PeerTask]:
    """The chosen rows of a data set under the peer's own task files; MMLU is one task per subject among the rows.

    Args:
        task: one of OWN_TASKS.
        data_dir: <task>/<split>.jsonl or .jsonl.gz are below it.
        items: file with the rows to take, or None.
        shots: worked examples of mmlu, from its dev split.
        installed: the peer's folder of task files.
        folder: the chosen rows are written here.
    Raises:
        ValueError: a file is missing or damaged, or lacks a subject.
    """
    template, split = OWN_TASKS[task]
    rows = read_rows(data_file(data_dir, task, split))
    chosen = select_rows(len(rows), items)
    if task != "mmlu":
        data = folder / f"{split}.parquet"
        write_rows(data, [rows[index] for index in chosen])
        return [PeerTask(task, None, chosen, own_text(task, installed / template, {split: data}, 0, folder))]
    dev = read_rows(data_file(data_dir, task, "dev"))
    examples = by_subject(dev, list(range(len(dev))))
    tasks = []
    for subject, of_subject in by_subject(rows, chosen).items():
        shown = [dev[index] for index in examples.get(subject, [])]
        if len(shown) < max(shots, 1):
            raise ValueError(f"--num_fewshot {shots}: mmlu's dev split has {len(shown)} rows of {subject}")
        files = {name: folder / f"{subject}_{name}.parquet" for name in ("dev", split)}
        file = installed / template.format(subject=subject)
        text = own_text(f"mmlu_{subject}", file, files, shots, folder)
        write_rows(files["dev"], shown)
        write_rows(files[split], [rows[index] for index in of_subject])
        tasks.append(PeerTask(f"mmlu_{subject}", subject, of_subject, text))
    return tasks


def by_subject(rows: list[dict[str, Any]], chosen: list[int]) -> dict[str, list[int]]:
    """The chosen rows' indices under their MMLU subjects."""
    groups: dict[str, list[int]] = {}
    for index in chosen:
        if "subject" not in rows[index]:
            raise ValueError(f"mmlu: line {index + 1} lacks the field 'subject'; it has {', '.join(rows[index])}")
        groups.setdefault(rows[index]["subject"], []).append(index)
    return groups


def own_text(name: str, template: Path, files: dict[str, Path], shots: int, cache: Path) -> str:
    """Task file that includes one of the peer's and replaces where its rows come from.

    Args:
        name: what the task is called.
        template: the peer's task file.
        files: the data file of each split that is there: the evaluated one, and dev where the task has examples.
        shots: worked examples.
        cache: folder for what `datasets` writes.
    Raises:
        ValueError: the peer has no such task file.
    """
    if not template.is_file():
        raise ValueError(f"the installed lm-eval has no task file {template}")
    splits = {f"{split}_split": split if split in files else None for split in ("training", "validation", "test")}
    data_files = {split: str(path) for split, path in files.items()}
    return json.dumps(
        {
            "include": str(template),
            "task": name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": data_files, "cache_dir": str(cache)},
            **splits,
            "num_fewshot": shots,
        },
        ensure_ascii=False,
    )


def installed_tasks() -> Path:
    """The peer's folder of task files.

    Raises:
        ModuleNotFoundError: this interpreter has no lm-eval.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('this interpreter has no lm-eval: pip install "lm-eval[hf]" into its environment')
    return Path(spec.origin).parent / "tasks"


def data_file(data_dir: Path, task: str, split: str) -> Path:
    stem = data_dir.resolve() / task / f"{split}.jsonl"
    for path in (stem, stem.with_name(f"{stem.name}.gz")):
        if path.is_file():
            return path
    raise ValueError(f"--data_dir {data_dir}: neither {task}/{split}.jsonl nor {task}/{split}.jsonl.gz is there")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a jsonl or jsonl.gz file; ValueError names a line that is none."""
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: not a JSON object")
            rows.append(row)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A parquet file, which keeps the types; from JSON, `datasets` takes texts that look like dates for dates."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def select_rows(count: int, items: Path | None) -> list[int]:
    """The rows to score, in the order of `items`.

    Args:
        count: rows in the data file.
        items: file with a JSON list of row indices, or None for all rows.
    Raises:
        ValueError: items is no list of distinct rows below count, or nothing is left to score.
    """
    try:
        chosen = list(range(count)) if items is None else json.loads(items.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--items {items}: {error}") from error
    if not isinstance(chosen, list) or any(type(index) is not int for index in chosen):
        raise ValueError(f"--items {items}: not a JSON list of whole numbers")
    outside = [index for index in chosen if not 0 <= index < count]
    if outside:
        raise ValueError(f"--items {items}: row {outside[0]} is not among the {count} rows, counted from 0")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--items {items}: a row occurs twice")
    if not chosen:
        raise ValueError("no row to score")
    return chosen


def evaluate(
    model: Path, tasks: list[PeerTask], dtype: str, device: str, batch_size: int, threads: int, folder: Path
) -> dict[str, Any]:
    """Scores by lm-eval, and what they took; `folder` holds the task files.

    Returns:
        The result that this file's docstring describes, without settings and versions.
    """
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    marks = Marks()
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(threads)
    marks.end("import")
    lm = HFLM(pretrained=str(model), dtype=dtype, device=device, batch_size=batch_size)
    for parameter in lm.model.parameters():
        parameter.sum()  # weights of the file's own dtype are mapped, and count from when they are first read
    marks.end("load")
    loading_peak, loaded_bytes = peak_bytes(), resident_bytes()
    reset_peak()
    lengths = watch_requests(lm, marks)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = [task.name for task in tasks]
    outcome = simple_evaluate(model=lm, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
    marks.end("finish")
    scoring_peak = peak_bytes()
    rows = [row for task in tasks for row in task_rows(task, outcome["samples"][task.name])]
    return {
        "means": means(rows),
        "seconds": marks.spent(0),
        "cpu_seconds": marks.spent(1),
        "loaded_bytes": loaded_bytes,
        "scoring_peak_bytes": scoring_peak,
        "peak_bytes": max(loading_peak, scoring_peak),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "requests": len(lengths),
        "cut_requests": sum(length > lm.max_length + 1 for length in lengths),
        "max_length": lm.max_length,
        "rows": sorted(rows, key=lambda row: row["row"]),
    }


def watch_requests(lm: Any, marks: Marks) -> list[int]:
    """Mark where building, tokenising and computing the requests end.

    Args:
        lm: the peer's model; two of its methods are replaced by ones that do the same and take the time.
        marks: gets build, tokenize and forward when the peer asks for log-likelihoods, which it does once.
    Returns:
        A list that will then hold each request's tokens, context and continuation together.
    """
    lengths: list[int] = []
    loglikelihood, compute = lm.loglikelihood, lm._loglikelihood_tokens

    def timed_loglikelihood(requests: list[Any], *rest: Any, **named: Any) -> Any:
        marks.end("build")
        result = loglikelihood(requests, *rest, **named)
        marks.end("forward")
        return result

    def timed_compute(requests: list[Any], *rest: Any, **named: Any) -> Any:
        marks.end("tokenize")
        lengths.extend(len(context) + len(continuation) for _, context, continuation in requests)
        return compute(requests, *rest, **named)

    lm.loglikelihood, lm._loglikelihood_tokens = timed_loglikelihood, timed_compute
    return lengths


def task_rows(task: PeerTask, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peer's result of each row of a task.

    Args:
        task: the task.
        samples: the peer's log of its rows; doc_id counts the task's rows.
    """
    return [
        {
            "row": task.rows[sample["doc_id"]],
            "group": task.group,
            "gold": int(sample["target"]),
            "log_likelihoods": [float(response[0]) for response in sample["filtered_resps"]],
            **{name: float(sample[name]) for name in METRICS if name in sample["metrics"]},
            "requests_sha256": request_digest(sample["arguments"]),
        }
        for sample in samples
    ]


def request_digest(requests: list[tuple[str, str]]) -> str:
    """sha256 of a row's (context, continuation) pairs as JSON; equal where the texts that were scored are equal."""
    return hashlib.sha256(json.dumps([list(pair) for pair in requests]).encode()).hexdigest()


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the rows of each metric that they have."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in METRICS if name in rows[0]}


if __name__ == "__main__":
    main()
