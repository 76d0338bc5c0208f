"""Show the items whose answers change when a model is compressed, for a person to read.

    python scripts/show_flips.py --results_dir runs
    python scripts/show_flips.py --results_dir runs --setting 2 --compression wanda --strength 0.5 \\
        --level "4 options" --direction wrong_to_right --max_items 5

Prints of each item the question, the options with the probabilities that the dense and the compressed model give them,
what each said, and which is right. A run keeps the identities of its items, not their texts: the prompts are built
again from the run's own options and data, by the code that built them for the run, and shown only where data,
identities and right answers are those that the run recorded. Else a line says what differs, and identities, choices and
scores are shown alone. How many items flip is what the part "Flips and distances" of plot_results.py counts.
"""

import argparse
import functools
import itertools
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from analysis import flips, terminal
from analysis.flips import CHANGED, GAINED, LOST, Answers, answers_of, asked_the_same
from analysis.names import compression_name, markdown, model_names, set_title, strength_text, with_full_names
from analysis.outcomes import ItemReader
from analysis.rescored import with_metric
from analysis.table import DENSE_POINT, Row, is_level_run, point_order, runs_of_points, scope_of
from harness import options, records, run_folder
from harness.choices import LETTERS
from harness.models import load_tokenizer, quiet_libraries
from llm_tasks.levels import Level, Prompt, Setting
from llm_tasks.option_values import values_of
from llm_tasks.settings import SETTINGS, own_task

DIRECTIONS = {LOST: "right to wrong", GAINED: "wrong to right", CHANGED: "another answer"}
LONGEST_HEADER = 600  # letters of a document that are shown without --full
# Options that name files. They tell no two runs apart and are recorded, if at all, in the command.
PATHS = ("data_dir", "task_file", "factoid_file", "include_path")


class Sides(NamedTuple):
    """The items of one compressed run at one level that go in the direction asked for.

    Fields:
        row: the compressed run at the level.
        dense, compressed: the answers to these items.
        items: how many both runs have.
    """

    row: Row
    dense: Answers
    compressed: Answers
    items: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments; ends the program where a folder is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--results_dir", type=options.filled_path, nargs="+", required=True, metavar="DIR",
        help="folders below which the runs lie, at any depth")  # fmt: skip
    add("--setting", metavar="N", help="2 to 6, or own_task (default: all)")
    add("--model", metavar="NAME", help="as the runs or figures name it (default: all)")
    add("--compression", metavar="NAME", help="such as wanda (default: all)")
    add(
        "--strength",
        metavar="S",
        help="a sparsity, N:M, bits or rank; of two in a row both, 0.5+4 (default: all)",
    )
    add("--level", metavar="NAME", help='as figures name it, such as "4 options" (default: all)')
    add("--seed", type=options.number(int, 0, 2**32 - 1), help="of the compressed run (default: all)")
    add("--direction", choices=tuple(DIRECTIONS), default=LOST,
        help="by the item's score; changed: another option or text, right or wrong (default: %(default)s)")  # fmt: skip
    add("--max_items", type=options.positive, default=20, metavar="N",
        help="of each run and level, a fixed sample (default: %(default)s)")  # fmt: skip
    add("--metric", nargs="+", default=[], metavar="NAME",
        help="score by this metric instead of the runs' own where it was recorded, such as accuracy_norm")  # fmt: skip
    add("--full", action="store_true", help="whole prompts, with few-shot examples and all of a long document")
    held = ("data", "the file of an own task", "FreebaseQA's file", "the folder of lm-eval's task files")
    for name, what in zip(PATHS, held, strict=True):
        add(f"--{name}", type=options.filled_path,
            help=f"where {what} is now (default: where the run's command says)")  # fmt: skip
    args = parser.parse_args(argv)
    for folder in args.results_dir:
        if not folder.is_dir():
            parser.error(f"--results_dir {folder}: there is no such folder")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    quiet_libraries()
    asked = {name: getattr(args, name) for name in ("setting", "model", "compression", "strength", "level", "seed")}
    try:
        found, models = level_runs(args.results_dir, args.metric)
        wanted = chosen_runs(found, asked, models)
    except ValueError as error:
        sys.exit(f"show_flips.py: {error}")
    paths = {name: getattr(args, name) for name in PATHS}
    read = ItemReader()
    built = functools.cache(functools.partial(rebuilt_levels, paths=tuple(paths.items())))
    for row in wanted:
        where = f"{set_title(row['setting'], row['task'])}, {models[row['model']]}, {row['level']}"
        print(f"# {where}: {compressed_text(row)}\n")
        sides = flipped(row, found, read, args.direction)
        if isinstance(sides, str):
            print(f"Not compared: {sides}.\n")
            continue
        print("\n".join(told(sides, args.direction, args.max_items, built, args.full)), end="\n\n")


def level_runs(folders: list[Path], metric: list[str]) -> tuple[list[Row], dict[str, str]]:
    """The rows of runs of settings 2 to 6 and of own tasks, and the names of models in figures of these folders.

    Raises:
        ValueError: there are none, none has the metric, or some must not be compared (run_folder.check_runs).
    """
    passed_over: list[str] = []
    found = run_folder.read_runs(*folders, passed_over=passed_over)
    rows = list(filter(is_level_run, found))
    for line in run_folder.passed_over_lines(passed_over):
        print(f"show_flips.py: {line}", file=sys.stderr)
    if not rows:
        looked = ", ".join(map(str, folders))
        raise ValueError(f"--results_dir {looked}: holds no complete run of settings 2 to 6 or of a task of your own")
    run_folder.check_runs(rows)
    return with_metric(with_full_names(rows), metric), model_names({row["model"] for row in found})


def chosen_runs(rows: list[Row], asked: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    """The compressed runs that have the values asked for, where these are not None.

    Args:
        models: their names in figures, by which they may be asked for too.
    Raises:
        ValueError: none has; names the values that there are.
    """
    left = [{**row, "magnitude_scope": scope_of(row)} for row in rows if row["strength_kind"] is not None]
    for name, value in asked.items():
        forms = [lambda own: own, *([models.get] if name == "model" else [])]
        kept = [row for row in left if value is None or any(is_named(form(row[name]), value) for form in forms)]
        if not kept:
            there = ", ".join(dict.fromkeys(str(row[name]) for row in left)) or "none that is compressed"
            raise ValueError(f"--{name} {value}: there is {there}")
        left = kept
    return sorted(left, key=lambda row: (str(row["setting"]), row["model"], row["task"], row["level_index"],
                                         point_order(row), row["seed"]))  # fmt: skip


def is_named(value: object, text: object) -> bool:
    """Whether a value is what a text names; 0.50 names a sparsity of 0.5."""
    try:
        return str(value) == str(text) or float(value) == float(text)
    except ValueError:
        return False


def compressed_text(row: Row) -> str:
    return f"{compression_name(row)}, {strength_text(row)}, seed {row['seed']}"


def flipped(row: Row, rows: list[Row], read: ItemReader, direction: str) -> Sides | str:
    """The items of a compressed run that go in a direction beside its dense run, or why there is no telling.

    The dense run is that of the same seed, or without one the first that was asked the same.
    """
    same = [one for one in rows if all(one[name] == row[name] for name in ("setting", "model", "task"))]
    dense = sorted(runs_of_points(same).get(DENSE_POINT, {}).get(row["level"], []), key=lambda one: one["seed"])
    if not dense:
        return "there is no dense run of this level"
    compressed = answers_of(row, read)
    for one in [one for one in dense if one["seed"] == row["seed"]] or dense:
        reference = answers_of(one, read)
        if compressed is None or reference is None:
            return "a run kept no outcomes per item"
        items = np.intersect1d(compressed.items, reference.items)
        beside, own = reference.at(items), compressed.at(items)
        if asked_the_same(beside, own):
            break
    else:
        return "no dense run was asked the same questions"
    if direction == CHANGED and (beside.said is None or own.said is None):
        return "the answers are not recorded"
    change = own.scores.astype(float) - beside.scores
    goes = {LOST: change < 0, GAINED: change > 0}[direction] if direction != CHANGED else beside.said != own.said
    return Sides(row, beside.at(items[goes]), own.at(items[goes]), len(items))


def told(sides: Sides, direction: str, most: int, built: Any, full: bool) -> Iterator[str]:
    """The lines on one run and level; items in the order of their identities, which is that of no file.

    Args:
        built: rebuilt_levels of a run's folder.
    """
    count = len(sides.dense.items)
    shown = f"; {most} of them" if count > most else ""
    yield f"{DIRECTIONS[direction].capitalize()}: {count} of {sides.items} items{shown}."
    prompts: dict[str, Prompt] = {}
    if count:
        try:
            prompts = checked_prompts(sides.row, built(sides.row["folder"]))
        except ValueError as error:
            yield f"Without texts: {' '.join(str(error).split())}"
    for index in range(min(count, most)):
        item = str(sides.dense.items[index])
        yield from ["", f"## {index + 1}. Item {item} ({sides.dense.groups[index]})", ""]
        prompt = prompts.get(item)
        if prompt is not None:
            yield from (f"    {line}" for line in prompt_lines(prompt, full))
            yield ""
        yield from answer_lines(sides, index, prompt)


def prompt_lines(prompt: Prompt, full: bool) -> list[str]:
    """The prompt; without `full`, no few-shot examples, and a long document without its middle."""
    header = prompt.header
    if not full and len(header) > LONGEST_HEADER:
        half = LONGEST_HEADER // 2
        header = f"{header[:half]} […] {header[-half:]}"
    shots = "".join(prompt.shots) if full else ""
    return f"{header}{shots}{prompt.question}".splitlines()


def answer_lines(sides: Sides, index: int, prompt: Prompt | None) -> list[str]:
    """What both models said of one item, with the scores of the options where they are recorded."""
    row, both = sides.row, (sides.dense, sides.compressed)
    said = [None if own.said is None else own.said[index] for own in both]
    scores = [f"{float(own.scores[index]):g}" for own in both]
    names = ["dense", compression_name(row)]
    if sides.dense.gold is None:
        right = [f"accepted: {', '.join(prompt.answers)}"] if prompt is not None and prompt.answers else []
        return [*(f"{name}: {text!s} ({row['metric']} {score})"
                  for name, text, score in zip(names, map(written, said), scores, strict=True)), *right]  # fmt: skip
    gold, count = int(sides.dense.gold[index]), int(sides.dense.counts[index])
    options = option_names(prompt, count)
    lines = [
        *(f"{name}: {chosen_text(choice, options)} ({row['metric']} {score})"
          for name, choice, score in zip(names, said, scores, strict=True)),
        f"right: {options[gold]}",
    ]  # fmt: skip
    if any(own.option_scores is None for own in both) or both[0].scores_are != both[1].scores_are:
        return lines
    kept = [own.option_scores[index, :count] for own in both]
    shares = [scipy.special.softmax(own) for own in kept]
    distance = float(flips.divergence(kept[0][None], kept[1][None])[0])
    body = [
        [options[place], *(f"{own[place]:.3f} ({100 * share[place]:.1f} %)"
                           for own, share in zip(kept, shares, strict=True))]
        for place in range(count)
    ]  # fmt: skip
    head = ["option", *(f"{name}, {sides.dense.scores_are}" for name in names)]
    return [*lines, f"KL: {distance:.4f} nats", "", *markdown(head, body)]


def written(said: str | None) -> str:
    return "not recorded" if said is None else repr(str(said))


def option_names(prompt: Prompt | None, count: int) -> list[str]:
    """How options are called: by the text that continues the prompt, or without prompts by letters."""
    return list(LETTERS[:count]) if prompt is None else [option.strip() for option in prompt.options]


def chosen_text(said: int | None, options: list[str]) -> str:
    if said is None:
        return "not recorded"
    return options[said] if said >= 0 else "no option"


def checked_prompts(row: Row, levels: Mapping[str, Level]) -> dict[str, Prompt]:
    """By item, the prompts of a run's level, if they are those that it was asked.

    Raises:
        ValueError: a level, an item, a right answer or a fact of the level is not what the run recorded.
    """
    level = levels.get(row["level"])
    if level is None:
        raise ValueError(f"the levels built again are {', '.join(levels)}")
    answers = answers_of(row, ItemReader())
    prompts = {prompt.item: prompt for prompt in level.prompts}
    lacking = sum(str(item) not in prompts for item in answers.items)
    if lacking:
        raise ValueError(f"{lacking} of {len(answers.items)} items are not among those built again")
    if answers.gold is not None:
        pairs = zip(answers.items.tolist(), answers.gold.tolist(), answers.counts.tolist(), strict=True)
        other = sum((prompts[item].gold, len(prompts[item].options)) != (gold, count) for item, gold, count in pairs)
        if other:
            raise ValueError(f"of {other} items the options built again are others")
    recorded = row.get("facts", {})
    for name, value in level.facts.items():
        if name in recorded and recorded[name] != value:
            raise ValueError(f"{name.replace('_', ' ')} of the level built again is {value:g}, not {recorded[name]:g}")
    return prompts


def rebuilt_levels(folder: str, paths: tuple[tuple[str, Path | None], ...]) -> dict[str, Level]:
    """By name, the levels that a run was asked, built again from what its args.json records.

    Args:
        paths: by option, where files are now; None: where the run's command says.
    Raises:
        ValueError: they cannot be built, or the data are others.
    """
    arguments, command = recorded(Path(folder))
    result = json.loads((Path(folder) / run_folder.RESULT_FILE).read_bytes())
    setting = own_task.SETTING if result["setting"] == own_task.SETTING.name else SETTINGS[result["setting"]]
    values = recorded_values(setting, arguments, command, dict(paths))
    changed = records.content_differences("data", setting.content(values), arguments)
    if changed:
        raise ValueError(f"the data are not the run's ({'; '.join(changed)})")
    tokenizer = functools.cache(functools.partial(load_tokenizer, arguments["model_name_or_path"],
                                                  arguments.get("trust_remote_code", False),
                                                  arguments.get("revision")))  # fmt: skip

    def late(*texts: Any, **how: Any) -> Any:  # few settings ask a tokenizer, and the model may be gone
        return tokenizer()(*texts, **how)

    levels = setting.build(setting.load(values), values, result["seed"], late)
    return {level.name: level for level in levels}


def recorded(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a run, and the words of the command that made it.

    Raises:
        ValueError: args.json is missing or damaged.
    """
    arguments = run_folder.recorded_arguments(folder)
    if arguments is None:
        raise ValueError(f"{folder / run_folder.ARGUMENTS_FILE} is missing")
    environment = json.loads((folder / run_folder.ARGUMENTS_FILE).read_bytes()).get("environment") or {}
    return arguments, shlex.split(environment.get("command") or "")


def recorded_values(
    setting: Setting, arguments: Mapping[str, Any], command: list[str], paths: Mapping[str, Path | None]
) -> Any:
    """The options that a setting's functions read, as the run was given them."""
    given = {name: declaration["default"] for name, declaration in setting.options.items()}
    given |= {"data_dir": None, "max_items": None, "answer_mode": None, "overflow": "drop_shots", "typed": {}}
    given |= {name: value for name, value in arguments.items() if name in given and value is not None}
    for name in set(PATHS) & set(given):
        path = paths[name] or given[name] or commanded(command, f"--{name}")
        given[name] = Path(path) if path else None
    if "task_file" in given and given["task_file"] is None and not given["lm_eval_tasks"]:
        raise ValueError("args.json does not say where the task's file is; give --task_file")
    return values_of(setting, given)


def commanded(command: list[str], name: str) -> str | None:
    """The value of an option among the words of a command."""
    for word, following in itertools.zip_longest(command, command[1:]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


if __name__ == "__main__":
    terminal.run(main)
