"""Memory and seconds of --stream on models of 7 billion weights and more, of which a few blocks tell all others.

    python scripts/benchmark.py streaming                       # all parts
    python scripts/benchmark.py streaming compression --shapes 7B --blocks 3 --methods wanda
    python scripts/benchmark.py streaming scoring --scored_blocks 10 20

Random Llamas of published shapes are written to disk block by block, then llm_tasks' scripts run on them in a process
each. "compression" compresses some blocks, "growth" shows seconds over blocks and calibration tokens, "scoring" asks
the dense model questions. Peaks are of anonymous memory (RssAnon), sampled: what is mapped from files is given back
when it is needed elsewhere. Beside them stand the prediction (llm_tasks/resources.py) and what the interpreter, its
libraries and compiled kernels take, measured by the same command on a tiny model. The models are removed afterwards.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from harness.options import positive
from llm_tasks.resources import Memory, memory_needed, walk_costs
from measuring import ROOT, growth_exponent, make_parser, print_table, run_watched, side_environment
from pruning.layers import decoder_blocks

PARTS = ("compression", "growth", "scoring")
STRENGTHS = {
    "magnitude": "--sparsity=0.5",
    "wanda": "--sparsity=0.5",
    "sparsegpt": "--sparsity=0.5",
    "gptq": "--bits=4",
}
TOKENS_PER_BATCH = 2048  # the scripts' default on a CPU
TINY = "tiny"  # takes nothing beside the libraries: it knows few words
MOST = 1.2  # times what is predicted: a peak above is marked


class Shape(NamedTuple):
    """Sizes of a Llama's block."""

    hidden: int
    intermediate: int
    heads: int
    key_heads: int


SHAPES = {
    TINY: Shape(64, 128, 2, 2),
    "7B": Shape(4096, 11008, 32, 32),
    "13B": Shape(5120, 13824, 40, 40),
    "70B": Shape(8192, 28672, 64, 8),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)} (default all)")
    add("--shapes", nargs="+", choices=tuple(SHAPES), default=["7B", "13B"], help="compressed (default 7B 13B)")
    add("--blocks", nargs="+", type=positive, default=[3, 2], help="of each shape (default 3 2)")
    add("--methods", nargs="+", choices=tuple(STRENGTHS), default=["wanda", "sparsegpt"],
        help="compared in memory (default wanda sparsegpt); growth takes the first")  # fmt: skip
    add("--nsamples", type=positive, default=8, help="calibration windows (default 8)")
    add("--calibration_length", type=positive, default=512, help="tokens per window (default 512)")
    add("--scored_blocks", type=positive, nargs=2, default=[10, 20],
        help="scoring: blocks of the first shape (default 10 20, of which 20 of 7B are 8 GB)")  # fmt: skip
    add("--questions", type=positive, nargs=2, default=[8, 16], help="scoring: how many (default 8 16)")
    add("--vocabulary", type=positive, default=32000, help="tokens of the models (default 32000, as Llama)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights")
    add("--threads", type=positive, default=1, help="of each process (default 1)")
    add("--dir", type=Path, help="folder with room for the models, 9 GB by default (default: the system's for such)")
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"{part} is not one of {', '.join(PARTS)}")
    if len(args.blocks) != len(args.shapes):
        parser.error(f"--blocks has {len(args.blocks)} numbers for {len(args.shapes)} --shapes")
    return args


class Measured(NamedTuple):
    """What a process took: seconds of all its work but loading, CPU seconds, and its peak of anonymous bytes."""

    seconds: float
    cpu_seconds: float
    peak: int


class Models:
    """Writes random models, texts and questions to a folder, and runs scripts on them."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args, self.dtype = folder, args, getattr(torch, args.dtype)
        self.words = [f"w{number}" for number in range(args.vocabulary - 2)]
        draw = random.Random(0)
        tokens = 4 * args.nsamples * args.calibration_length
        (folder / "text.txt").write_text(" ".join(draw.choices(self.words, k=tokens)))
        self._environment = {**side_environment(args.threads, True), "XDG_CACHE_HOME": str(folder / "cache")}

    def config(self, shape: str, blocks: int) -> LlamaConfig:
        sizes = SHAPES[shape]
        return LlamaConfig(
            vocab_size=self.vocabulary(shape), hidden_size=sizes.hidden, intermediate_size=sizes.intermediate,
            num_hidden_layers=blocks, num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_heads,
            max_position_embeddings=4096, dtype=self.dtype,
        )  # fmt: skip

    def vocabulary(self, shape: str) -> int:
        return min(128, self.args.vocabulary) if shape == TINY else self.args.vocabulary

    def structure(self, shape: str, blocks: int) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config(shape, blocks))

    @contextmanager
    def written(self, shape: str, blocks: int) -> Iterator[Path]:
        """Inside, the folder of a random model, written a block at a time."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder, model = Path(name), self.structure(shape, blocks)
            prefix, parts = decoder_blocks(model)
            write_shards(folder, model, [f"{prefix}.{index}." for index in range(len(parts))], self.dtype)
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
            self._tokenizer(self.vocabulary(shape)).save_pretrained(folder)
            yield folder

    def _tokenizer(self, vocabulary: int) -> PreTrainedTokenizerFast:
        known = {word: number for number, word in enumerate([*self.words[: vocabulary - 2], "<unk>", "</s>"])}
        tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")

    def compress(self, model: Path, method: str, windows: int) -> Measured:
        """Compress the model with perplexity.py and measure it on two windows."""
        text, length = str(self.folder / "text.txt"), str(self.args.calibration_length)
        return self._run(
            "perplexity", model, "--compression", method, STRENGTHS[method], "--calibration", text, "--nsamples",
            str(windows), "--calibration_length", length, "--text", text, "--seq_len", length, "--max_windows", "2",
        )  # fmt: skip

    def score(self, model: Path, questions: int) -> Measured:
        """Ask the dense model short questions with own_task.py."""
        draw, task = random.Random(0), self.folder / "questions.jsonl"
        asked = [
            {
                "question": " ".join(draw.choices(self.words, k=60)),
                "choices": draw.choices(self.words, k=4),
                "answer": 0,
            }
            for _ in range(questions)
        ]
        task.write_text("".join(json.dumps(line) + "\n" for line in asked))
        return self._run("own_task", model, "--task_file", str(task), "--answer_mode", "cloze")

    def _run(self, script: str, model: Path, *words: str) -> Measured:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            out = Path(name)
            peak, cpu_seconds = run_watched(
                [sys.executable, str(ROOT / "llm_tasks" / f"{script}.py"), "--model_name_or_path", str(model),
                 "--stream", "--device", "cpu", *words, "--output_dir", str(out / "run")],
                self._environment, out,
            )  # fmt: skip
            seconds = json.loads((out / "run" / "all_results.json").read_text())["seconds"]
            return Measured(seconds, cpu_seconds, peak)

    def predicted(self, shape: str, blocks: int, method: str, windows: int) -> Memory:
        """What a job is said to need; "dense" for questions, else for a compression and its perplexity."""
        model, dtype = self.structure(shape, blocks), self.dtype
        costs = walk_costs(model, [method], (windows, self.args.calibration_length), dtype, TOKENS_PER_BATCH)
        return memory_needed(
            model, dtype, "files", False, costs.values(), TOKENS_PER_BATCH, whole_logits=method != "dense"
        )


def write_shards(folder: Path, model: PreTrainedModel, prefixes: list[str], dtype: torch.dtype) -> None:
    """Write random weights: a shard for every block, one for what is outside of them, and their index."""
    names = {name: weight.shape for name, weight in model.named_parameters()}
    groups = [[name for name in names if name.startswith(prefix)] for prefix in prefixes]
    groups.append([name for name in names if not name.startswith(tuple(prefixes))])
    draw, weight_map, drawn = torch.Generator().manual_seed(0), {}, {}
    for number, group in enumerate(groups):
        shard = f"model-{number:05}.safetensors"
        tensors = {}
        for name in group:
            key = name.partition(".layers.")[2].partition(".")[2] or name  # all blocks have the same weights
            if key not in drawn:
                shape = names[name]
                fresh = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw).mul_(0.02)
                drawn[key] = fresh.to(dtype)
            tensors[name] = drawn[key]
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f}"


def print_compression(all_models: Models, args: argparse.Namespace) -> None:
    """A row for each shape and method: the prediction and the peak beside what the libraries take."""
    rows = []
    with all_models.written(TINY, 1) as tiny:
        libraries = {method: all_models.compress(tiny, method, args.nsamples).peak for method in args.methods}
    for shape, blocks in zip(args.shapes, args.blocks, strict=True):
        with all_models.written(shape, blocks) as model:
            for method in args.methods:
                found = all_models.compress(model, method, args.nsamples)
                memory = all_models.predicted(shape, blocks, method, args.nsamples)
                name = f"{blocks} blocks of {shape}, {method}"
                rows.append(told([name, *compared(found, memory, libraries[method])]))
    print_table(["compressed", *COMPARED], rows)


COMPARED = ["predicted MB", "of it one block", "peak beside libraries", "peak / predicted", "libraries", "whole peak",
            "seconds", "CPU seconds, with loading"]  # fmt: skip


def told(row: list[str]) -> list[str]:
    """Print a row as soon as it is measured; the table follows."""
    print("  ".join(row), flush=True)
    return row


def compared(found: Measured, memory: Memory, libraries: int) -> list[str]:
    """The cells under COMPARED."""
    needed, beside = sum(memory.host.values()), found.peak - libraries
    above = " ABOVE" if beside > MOST * needed else ""
    block = memory.host["blocks that are computed"]
    return [megabytes(needed), megabytes(block), megabytes(beside), f"{beside / needed:.2f}{above}",
            megabytes(libraries), megabytes(found.peak), f"{found.seconds:.0f}",
            f"{found.cpu_seconds:.0f}"]  # fmt: skip


def print_growth(all_models: Models, args: argparse.Namespace) -> None:
    """Seconds of the first method over twice the blocks and twice the windows, on the first shape."""
    shape, blocks, windows, method = args.shapes[0], args.blocks[0], args.nsamples, args.methods[0]
    with all_models.written(shape, blocks) as model:
        few, longer = (all_models.compress(model, method, count) for count in (windows, 2 * windows))
    with all_models.written(shape, 2 * blocks) as model:
        deeper = all_models.compress(model, method, windows)
    rows = []
    for name, more in (
        (f"{blocks} blocks, then {2 * blocks}", deeper),
        (f"{windows} windows, then {2 * windows}", longer),
    ):
        exponent = growth_exponent([1, 2], [few.seconds, more.seconds])
        peaks = megabytes(few.peak), megabytes(more.peak)
        rows.append([name, f"{few.seconds:.1f}", f"{more.seconds:.1f}", f"{exponent:.2f}", *peaks])
    print_table([f"{method} on {shape}", "seconds", "of twice", "seconds grow as size ^", "peak MB", "of twice"], rows)


def print_scoring(all_models: Models, args: argparse.Namespace) -> None:
    """A row for each number of blocks and questions: the prediction, the peak and seconds of the dense model."""
    shape, rows = args.shapes[0], []
    with all_models.written(TINY, 1) as tiny:
        libraries = all_models.score(tiny, args.questions[0]).peak
    for blocks in args.scored_blocks:
        memory = all_models.predicted(shape, blocks, "dense", 1)
        with all_models.written(shape, blocks) as model:
            size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
            for questions in args.questions:
                found = all_models.score(model, questions)
                name = f"{questions} questions, {size / 1e9:.1f} GB"
                rows.append(told([name, *compared(found, memory, libraries)]))
    print_table(["scored", *COMPARED], rows)


def main(argv: list[str] | None = None) -> None:
    """Print a table for each part."""
    args = parse_args(argv)
    printers = {"compression": print_compression, "growth": print_growth, "scoring": print_scoring}
    print(
        f"{args.dtype}, {args.threads} threads, {args.nsamples} windows of {args.calibration_length} tokens", flush=True
    )
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        all_models = Models(Path(name), args)
        for part in dict.fromkeys(args.parts):
            started = time.monotonic()
            printers[part](all_models, args)
            print(f"({part}: {time.monotonic() - started:.0f} s in all)", flush=True)


if __name__ == "__main__":
    main()
