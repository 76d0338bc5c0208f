"""The peer's side of `benchmark.py compression`: llmcompressor compresses one model, timed, in its own environment.

    python -m venv peers && peers/bin/pip install llmcompressor
    python scripts/benchmark.py compression --peer_python peers/bin/python …

against_llmcompressor.py starts this file with that interpreter; no package of this project is imported here. The model
is loaded into host memory, as the peer's guides have it; where there is a GPU, the peer brings layer after layer there.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from process_memory import peak_bytes, reset_peak, resident_bytes

BLOCKS = [r"re:.*layers\.\d+$"]  # pruning treats the linear layers inside these modules


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder of a decoder language model")
    add("--windows", type=Path, required=True, help="safetensors file: tokens, (windows, tokens per window)")
    add("--method", choices=("wanda", "sparsegpt", "gptq"), required=True)
    add("--dtype", choices=("float32", "bfloat16"), required=True)
    add("--sparsity", type=float, required=True, help="wanda, sparsegpt: fraction to prune")
    add("--bits", type=int, required=True, help="gptq: bits per weight")
    add("--group_size", type=int, required=True, help="gptq: inputs that share a scale")
    add("--windows_per_batch", type=int, required=True, help="windows computed at once")
    add("--save_model", type=Path, help="write the compressed model here, weights dense")
    add("--result", type=Path, required=True, help="write seconds and bytes here, as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype, use_safetensors=True)
    windows = load_file(args.windows)["tokens"].tolist()
    rows = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(row) for row in windows]})
    modifier = make_modifier(args.method, args.sparsity, args.bits, args.group_size)
    loading_peak, loaded_bytes = peak_bytes(), resident_bytes()
    reset_peak()
    started, cpu_started = time.perf_counter(), time.process_time()
    oneshot(
        model=model, processor=tokenizer, dataset=rows, recipe=[modifier], num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]), batch_size=args.windows_per_batch,
        shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    compressing_peak = peak_bytes()
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loaded_bytes": loaded_bytes,
        "compressing_peak_bytes": compressing_peak,
        "peak_bytes": max(loading_peak, compressing_peak),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "versions": {name: version(name) for name in ("llmcompressor", "torch", "transformers")},
    }
    if args.save_model:
        save_dense(model, args.save_model)
        tokenizer.save_pretrained(args.save_model)
    args.result.write_text(json.dumps(result))


def make_modifier(method: str, sparsity: float, bits: int, group_size: int) -> Modifier:
    """The peer's recipe for one method; what is not named here is its default.

    GPTQ: symmetric groups of consecutive inputs, scales from the dense weight, inputs visited in the weight's order.
    """
    if method == "wanda":
        return WandaPruningModifier(sparsity=sparsity, targets=BLOCKS)
    if method == "sparsegpt":
        return SparseGPTModifier(sparsity=sparsity, block_size=128, dampening_frac=0.01, targets=BLOCKS)
    grid = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group_size)
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    return GPTQModifier(
        config_groups={"group_0": scheme}, ignore=["lm_head"], block_size=128, dampening_frac=0.01, actorder=None
    )


def save_dense(model: torch.nn.Module, folder: Path) -> None:
    """A folder that from_pretrained loads without the peer's library."""
    model.save_pretrained(folder, save_compressed=False)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
