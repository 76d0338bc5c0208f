"""Task files that run lm-evaluation-harness's own tasks on local copies of their data, without a hub.

    python scripts/benchmark.py local_tasks --data_dir DIR [DIR …] --items 300 --output_dir lm_eval_local
    python llm_tasks/own_task.py --lm_eval_tasks piqa nq_open --include_path lm_eval_local …

Each written file includes the installed task file of its name and replaces only where the rows come from. Rows are read
from <data_dir>/<dataset>/[<config>/]<split>.jsonl[.gz], with the hub's field names; with --items a fixed sample. Three
tasks read what is not their own data, since that is in no package: lambada_openai and c4 take sentences of
New York Times editorials (VADER's), wikitext the articles of WikiText-2's test split. Needs lm_eval
(requirements-lm-eval.txt).
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]
SENTENCE = range(30, 81)  # characters of a sentence that is scored, or whose last word is to be guessed
ARTICLE = re.compile(r"^ = [^=].*[^=] = $", re.MULTILINE)  # the heading of an article of WikiText


class Local(NamedTuple):
    """Where a task's rows are, and what its own file calls their split.

    Fields:
        template: the installed task file.
        file: of the rows, below a --data_dir.
        split: under which the task evaluates them.
        rows: makes the task's rows of the file's.
    """

    template: str
    file: str
    split: str
    rows: Callable[[Rows], Rows] = list


def boolq_rows(rows: Rows) -> Rows:
    return [{**row, "label": int(row["answer"])} for row in rows]


def web_rows(rows: Rows) -> Rows:
    return [{"url": "", **row} for row in rows]


def sentences(rows: Rows) -> list[str]:
    """Short sentences, each once, without what stands behind their last word."""
    texts = dict.fromkeys(row["sentence"].strip().rstrip(".?!\"')") for row in rows)
    return [text for text in texts if len(text) in SENTENCE and " " in text]


def last_words(rows: Rows) -> Rows:
    return [{"text": text} for text in sentences(rows)]


def pages(rows: Rows) -> Rows:
    return [{"page": row["text"], "text": row["text"]} for row in rows]


def sentence_pages(rows: Rows) -> Rows:
    return pages([{"text": text} for text in sentences(rows)])


TASKS = {
    "hellaswag": Local("hellaswag/hellaswag.yaml", "hellaswag/validation", "validation"),
    "piqa": Local("piqa/piqa.yaml", "piqa/validation", "validation"),
    "winogrande": Local("winogrande/default.yaml", "winogrande/validation", "validation"),
    "boolq": Local("super_glue/boolq/default.yaml", "boolq/validation", "validation", boolq_rows),
    "openbookqa": Local("openbookqa/openbookqa.yaml", "openbookqa/test", "test"),
    "commonsense_qa": Local("commonsense_qa/default.yaml", "commonsense_qa/validation", "validation"),
    "sst2": Local("glue/sst2/default.yaml", "glue/sst2/validation", "validation"),
    "rte": Local("glue/rte/default.yaml", "glue/rte/validation", "validation"),
    "nq_open": Local("nq_open/nq_open.yaml", "nq_open/validation", "validation"),
    "triviaqa": Local("triviaqa/default.yaml", "trivia_qa/rc.wikipedia.nocontext/validation", "validation"),
    "webqs": Local("webqs/webqs.yaml", "web_questions/test", "test", web_rows),
    "lambada_openai": Local("lambada/lambada_openai.yaml", "rated_sentences/nyt_editorials/train", "test", last_words),
    "c4": Local("c4/c4.yaml", "rated_sentences/nyt_editorials/train", "validation", sentence_pages),
    "wikitext": Local("wikitext/wikitext.yaml", "text/wikitext-2-raw.test", "test", pages),
}
MMLU, MMLU_GROUP = "mmlu/default/mmlu_{}.yaml", "mmlu_local"


def installed_tasks() -> Path:
    """lm-eval's folder of task files.

    Raises:
        ModuleNotFoundError: lm-eval is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lm-eval is not installed: python -m pip install -r requirements-lm-eval.txt")
    return Path(spec.origin).parent / "tasks"


def read_rows(data_dirs: list[Path], file: str) -> Rows:
    """The rows of a file in the first folder that has it; the articles of a text file of WikiText.

    Raises:
        ValueError: none has it.
    """
    for folder in data_dirs:
        for ending in (".jsonl", ".jsonl.gz", ".txt.gz"):
            path = folder / f"{file}{ending}"
            if path.is_file():
                with (gzip.open if ending.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
                    text = lines.read()
                return [{"text": own} for own in articles(text)] if "txt" in ending else list(json_rows(text))
    raise ValueError(f"--data_dir {' '.join(map(str, data_dirs))}: none has {file}.jsonl or {file}.jsonl.gz")


def json_rows(text: str) -> Iterator[dict[str, Any]]:
    return map(json.loads, filter(None, text.split("\n")))


def articles(text: str) -> list[str]:
    """The articles of WikiText, each from its heading on."""
    starts = [match.start() for match in ARTICLE.finditer(text)]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def sampled(rows: Rows, items: int | None) -> Rows:
    """So many of the rows, in their order; the same ones in every run."""
    if items is None or items >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(0).sample(range(len(rows)), items))]


def write_task(folder: Path, name: str, template: str, splits: dict[str, Rows], evaluated: str, **more: Any) -> None:
    """A task file that includes lm-eval's, and its rows beside it, a file for each split."""
    files = {}
    for split, rows in splits.items():
        path = folder / "data" / f"{name}_{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_rows(path, rows)
        files[split] = str(path.resolve())
    held = {f"{split}_split": split if split == evaluated else None for split in ("training", "validation", "test")}
    task = {
        "include": str(installed_tasks() / template), "task": name, "dataset_path": "parquet", "dataset_name": None,
        "dataset_kwargs": {"data_files": files}, **held, **more,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")


def _write_rows(path: Path, rows: Rows) -> None:
    """As parquet, which keeps the types; from JSON, `datasets` takes texts that look like dates for dates."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_mmlu(folder: Path, rows: Rows, examples: Rows, items: int | None, shots: int) -> None:
    """A task for each subject of the rows, with examples, and their group, weighted by size as lm-eval's mmlu."""
    names = []
    chosen = sampled(rows, items)
    for subject in dict.fromkeys(row["subject"] for row in chosen):
        splits = {
            "test": [row for row in chosen if row["subject"] == subject],
            "dev": [row for row in examples if row["subject"] == subject],
        }
        names.append(f"mmlu_{subject}")
        write_task(folder, names[-1], MMLU.format(subject), splits, "test", num_fewshot=shots, tag=None)
    group = {"group": MMLU_GROUP, "task": names, "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (folder / f"{MMLU_GROUP}.yaml").write_text(json.dumps(group), encoding="utf-8")


def write_local(folder: Path, names: list[str], data_dirs: list[Path], items: int | None, shots: int) -> None:
    """The task files of these names, and their rows.

    Raises:
        ValueError: data are missing.
    """
    for name in names:
        if name == MMLU_GROUP:
            write_mmlu(folder, read_rows(data_dirs, "mmlu/test"), read_rows(data_dirs, "mmlu/dev"), items, shots)
        else:
            local = TASKS[name]
            rows = sampled(local.rows(read_rows(data_dirs, local.file)), items)
            write_task(folder, name, local.template, {local.split: rows}, local.split, tag=None)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data_dir", type=Path, nargs="+", required=True, help="folders of data sets; the first that has one counts")
    add("--tasks", nargs="+", choices=(*TASKS, MMLU_GROUP), metavar="NAME",
        help=f"of {', '.join((*TASKS, MMLU_GROUP))} (default all)")  # fmt: skip
    add("--items", type=int, help="rows of each task, a fixed sample (default all)")
    add("--num_shots", type=int, default=5, choices=range(6), metavar="K",
        help="of mmlu_local: examples before each question (default 5)")  # fmt: skip
    add("--output_dir", type=Path, required=True, help="of the task files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    names = args.tasks or [*TASKS, MMLU_GROUP]
    try:
        write_local(args.output_dir, names, args.data_dir, args.items, args.num_shots)
    except ValueError as error:
        raise SystemExit(f"local_tasks: {error}") from error
    print(f"{len(names)} tasks: --include_path {args.output_dir}")


if __name__ == "__main__":
    main()
