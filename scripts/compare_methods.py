"""Every method at equal bytes, beside each other by drop, flips, KL and Junk DNA score: the benchmark of a new method.

    python scripts/compare_methods.py --model_name_or_path ~/.cache/junk_dna/models/SmolLM2-135M-Instruct \\
        --dtype bfloat16 --data_dir ~/.cache/junk_dna/data --settings 2 5 --max_items 60 --answer_mode cloze \\
        --length_normalized --calibration ~/.cache/junk_dna/data/boolq/validation.jsonl.gz \\
        --calibration_field passage --nsamples 32 --calibration_length 512 --output_dir runs/compared

For each method of llm_tasks/methods.py, and for pairs that prune and then quantize, it takes the strengths at which the
compressed weights, with indices, scales and factors, have the share of the dense bytes that --targets says: counted
from the model's shapes. It measures them all beside the dense model, and draws the tree: the comparison is
methods_compared_<model>.png, its CSV and the table in summary.md. A method that is added to METHODS takes part by that
alone.

All options but those below are those of llm_tasks/setting2_option_count.py (its --help lists them), strengths excepted.
With --list_cells the commands of all runs are printed, one a line, for xargs or a job array; with --dry_run every
group of runs says what it needs.
"""

import argparse
import functools
import itertools
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.sizes import bytes_fraction
from harness.cells import Cell, output_folders, start_logging, unwritable
from harness.commands import command_line, command_lines, groups, print_lines, words
from harness.options import checked, filled, number
from llm_tasks import option_values, options, plan
from llm_tasks.compressed_model import skeleton
from llm_tasks.compressions import PairStrength, check_compression, method_of, parts, strength_values
from llm_tasks.methods import CHECKPOINT, DENSE, METHODS, STRENGTHS, Strength
from llm_tasks.options import Asked
from llm_tasks.settings import SETTINGS
from pruning.layers import decoder_weights
from pruning.low_rank import parameter_ratio

logger = logging.getLogger("compare_methods")

ROOT = Path(__file__).resolve().parents[1]
MEASURE = ROOT / "llm_tasks" / "setting2_option_count.py"
PAIRS = ("sparsegpt+gptq", "wanda+rtn")  # compared by default, besides all METHODS
NEAR = 0.03  # farthest that the bytes of a strength may be from a target, as a share of the dense bytes
AS_NEAR = 0.003  # pairs of strengths whose bytes differ by less are equally near
SPARSITIES = [round(0.01 * hundredth, 2) for hundredth in range(1, 100)]
GROUPS = (4, 8, 16)  # M of the N:M that are tried, for methods that take nothing else

Measured = Strength | PairStrength
Shapes = Mapping[str, tuple[int, int]]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--compression", nargs="+", type=checked(check_compression), metavar="NAME",
        help=f"methods and pairs to compare (default: all methods, {', '.join(PAIRS)})")  # fmt: skip
    add("--targets", nargs="+", type=number(float, 0.02, 0.99), default=[0.75, 0.5, 0.25], metavar="SHARE",
        help="bytes of the compressed weights over those of dense 16-bit ones, 0.02 to 0.99; three give slopes and the "
        "Junk DNA score (default 0.75 0.5 0.25)")  # fmt: skip
    add("--pair_bits", nargs="+", type=number(int, 2, 16), default=list(range(2, 17)), metavar="B",
        help="bits that a pair may have, 2 to 16; of those that come as near, pruning and quantization save alike "
        "(default all)")  # fmt: skip
    add("--output_dir", type=filled, required=True, metavar="DIR",
        help="folder of all runs, DIR/<setting>/<compression>/<strength>/<seed>, and of DIR/figures")  # fmt: skip
    add("--list_cells", action="store_true", help="print one single-run command per line and stop")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the words that are the measuring script's, which are checked as options."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if args.list_cells and "--dry_run" in rest:
        parser.error("argument --dry_run: not allowed with argument --list_cells")
    measuring(rest, args.output_dir)
    return args, rest


def measuring(rest: Sequence[str], output_dir: str) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the measuring script, and its words without compressions and strengths."""
    parser = options.make_parser(__doc__, SETTINGS, 2)
    for word in rest:
        name = word.partition("=")[0]
        if name in [f"--{kind}" for kind in STRENGTHS]:
            parser.error(f"{name}: the strengths are those whose bytes are nearest to --targets")
        if name in ("--only_layers", "--skip_layers"):
            parser.error(f"{name}: bytes are counted, and methods compared, of the whole model")
        if name == "--group_by":
            parser.error("--group_by: the commands are grouped by compression; --list_cells prints one for each run")
    where = [] if any(word.partition("=")[0] == "--settings" for word in rest) else ["--settings", "2"]
    found = [*rest, *where, "--output_dir", output_dir]
    parser.parse_args(found)
    return parser, found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the methods that the command line asks for; returns the exit status."""
    start_logging()
    parser = make_parser()
    args, rest = parse_args(argv)
    try:
        asked, cells = wanted(args, rest)
        template = os.path.join(
            args.output_dir.replace("{", "{{").replace("}", "}}"), "{setting}/{compression}/{strength}/{seed}"
        )
        folders = output_folders(template, cells)
        if not args.list_cells:
            options.check_together(asked.given)
            if reason := unwritable(Path(args.output_dir)):
                raise ValueError(f"--output_dir {args.output_dir}: {reason}")
    except ValueError as error:
        parser.error(str(error))
    script, of_cells = os.path.relpath(MEASURE), functools.partial(plan.cell_options, asked)
    if args.list_cells:
        print_lines(command_lines(script, folders, template, of_cells, None, lambda some: some))
        return 0
    together = groups(cells, ["compression"], functools.partial(plan.computed_together, asked))
    dry_run = {"dry_run": asked.given["dry_run"]}
    lines = [command_line(script, of_cells(some) | dry_run, template) for some in together]
    failed = [line for line in lines if not run(line)]
    if asked.given["dry_run"] or failed == lines:
        return 1 if failed else 0
    plot = command_line(
        os.path.relpath(ROOT / "scripts/plot_results.py"), {"results_dir": args.output_dir},
        os.path.join(args.output_dir, "figures"),
    )  # fmt: skip
    drawn = run(plot)
    for line in failed:
        logger.error("failed: %s", line)
    return 0 if drawn and not failed else 1


def run(line: str) -> bool:
    """Run a command line of this project with this python; whether it succeeded."""
    logger.info(line)
    return subprocess.run([sys.executable, *words(line)[1:]], check=False).returncode == 0


def wanted(args: argparse.Namespace, rest: Sequence[str]) -> tuple[Asked, list[Cell]]:
    """What the measuring script is asked for, and its cells: each method at its strengths of the target sizes.

    Raises:
        ValueError: names the option and what is allowed.
    """
    parser, base = measuring(rest, args.output_dir)
    given = vars(parser.parse_args(base))
    compressions = args.compression or [*METHODS, *PAIRS]
    if CHECKPOINT in compressions:
        raise ValueError(
            f"--compression {CHECKPOINT}: its bytes cannot be chosen; allowed: {', '.join(METHODS)}, pairs"
        )
    found = equal_bytes(given, [name for name in dict.fromkeys(compressions) if name != DENSE], args.targets,
                        args.pair_bits)  # fmt: skip
    named = ["--compression", DENSE, *found]
    for kind in STRENGTHS:
        values = {cell[kind] for own in found.values() for cell in map(strength_values, own)} - {None}
        named += [f"--{kind}", *map(str, sorted(values))] if values else []
    asked = options.parse(parser, [*base, *named], SETTINGS, 2)
    labels = {(name, strength.label) for name, own in found.items() for strength in own} | {(DENSE, DENSE)}
    cells = plan.all_cells(asked.given, asked.settings.values())
    return asked, [cell for cell in cells if (cell["compression"], cell["strength"]) in labels]


def equal_bytes(
    given: Mapping[str, Any], compressions: Sequence[str], targets: Sequence[float], pair_bits: Sequence[int]
) -> dict[str, list[Measured]]:
    """By compression, for each target the strength whose bytes are nearest; logs which targets have none.

    Raises:
        ValueError: the bytes of some strengths cannot be counted, or no compression comes near a target.
    """
    if given["group_size"] == -1:
        raise ValueError("--group_size -1: bytes are counted for groups, a scale per row is not; allowed: 1 or more")
    model = skeleton(option_values.model_source(given))
    shapes = {name: tuple(weight.matrix.shape) for name, weight in decoder_weights(model).items()}
    counted = {"group_size": given["group_size"], "symmetric": given["symmetric"]}
    found = {}
    for name in compressions:
        sizes = {strength: size_of(strength, shapes, counted) for strength in candidates(name, shapes, pair_bits)}
        if not sizes:
            logger.warning("%s: the bytes of --%s cannot be counted", name, method_of(name).strengths[0])
            continue
        chosen = [nearest(sizes, target) for target in targets]
        for target, strength in zip(targets, chosen, strict=True):
            if strength is None:
                logger.warning("%s: no strength has %.3g of the bytes, within %g", name, target, NEAR)
            else:
                logger.info("%s %s: %.3f of the bytes, for %g", name, strength.label, sizes[strength], target)
        if own := list(dict.fromkeys(strength for strength in chosen if strength is not None)):
            found[name] = own
    if not found:
        raise ValueError(f"--targets {' '.join(map(str, targets))}: no strength comes within {NEAR} of one")
    return found


def candidates(compression: str, shapes: Shapes, pair_bits: Sequence[int]) -> Iterator[Measured]:
    """The strengths at which a compression could be measured, in whole percents, bits, ranks."""
    of_parts = [kind_values(METHODS[name].strengths, shapes) for name in parts([compression])]
    if len(of_parts) == 1:
        yield from of_parts[0]
        return
    pruning, quantizing = (list(own) for own in of_parts)
    quantizing = [strength for strength in quantizing if strength.value in pair_bits]
    yield from (PairStrength(*both) for both in itertools.product(pruning, quantizing))


def kind_values(kinds: Sequence[str], shapes: Shapes) -> Iterator[Strength]:
    """The strengths of the first kind of STRENGTHS that a method takes and whose bytes can be counted; may be none."""
    known: dict[str, Callable[[], Iterable[Any]]] = {
        "sparsity": lambda: SPARSITIES,
        "nm_ratio": lambda: [
            f"{kept}:{group}" for group in GROUPS for kept in range(1, group)
            if all(inputs % group == 0 for _, inputs in shapes.values())
        ],
        "bits": lambda: range(2, 17),
        "rank": lambda: range(1, max(map(min, shapes.values()))),
    }  # fmt: skip
    kind = next((kind for kind in known if kind in kinds), None)
    yield from (Strength(kind, value) for value in (known[kind]() if kind else ()))


def size_of(strength: Measured, shapes: Shapes, counted: Mapping[str, Any]) -> float:
    """Bytes of all weights at a strength over those of the dense ones, by the rules of analysis.sizes."""
    row = {
        "strength_kind": strength.kind.replace("nm_ratio", "nm"), "strength": strength.value,
        "requested_sparsity": strength.requested_sparsity,
    }  # fmt: skip
    if strength.kind == "rank":
        total = sum(map(math.prod, shapes.values()))
        kept = sum(min(1.0, parameter_ratio(shape, strength.value)) * math.prod(shape) for shape in shapes.values())
        row["parameter_ratio"] = kept / total
    return bytes_fraction(row, counted)


def nearest(sizes: Mapping[Measured, float], target: float) -> Measured | None:
    """The strength whose size is nearest to the target; of pairs that come as near, the one whose parts save alike."""
    best: dict[Any, tuple[float, Measured]] = {}  # of pairs, for each number of bits
    for strength, size in sizes.items():
        bits = strength.quantization.value if isinstance(strength, PairStrength) else None
        found = abs(size - target), strength
        best[bits] = min(best.get(bits, found), found, key=lambda one: one[0])
    least = min((distance for distance, _ in best.values()), default=math.inf)
    if least > NEAR:
        return None
    near = [strength for distance, strength in best.values() if distance <= least + AS_NEAR]
    return min(near, key=imbalance) if len(near) > 1 else near[0]


def imbalance(strength: PairStrength) -> float:
    """0 where pruning keeps as large a share of the weights as quantization keeps of their bits."""
    return abs(math.log((1 - strength.requested_sparsity) * 16 / strength.quantization.value))


if __name__ == "__main__":
    sys.exit(main())
