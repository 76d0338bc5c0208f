"""Compress a model by another tool, in an environment of its own: what `--compression checkpoint` is tried on.

    python -m venv peers && peers/bin/pip install llmcompressor
    peers/bin/python scripts/benchmarks/peer_checkpoints.py --maker llmcompressor --what nm \
        --model_name_or_path MODEL_FOLDER --windows windows.safetensors --output_dir made/llmcompressor-2of4

The makers, each as its own guide has it: llmcompressor prunes (nm: Wanda, 2 of 4 kept) or quantizes (w4a16: GPTQ);
gptqmodel quantizes (gptq, awq); gguf writes llama.cpp's format (q8_0, q4_0) of a Llama. Calibrated on the same windows
as ours: `--write_windows FILE` writes those, in this project's environment. Nothing else here imports this project.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

WHAT = {"llmcompressor": ("nm", "w4a16"), "gptqmodel": ("gptq", "awq"), "gguf": ("q8_0", "q4_0")}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder of a decoder language model")
    add("--write_windows", type=Path, metavar="FILE", help="write calibration windows there and do nothing else")
    add("--calibration", help="with --write_windows: text, as llm_tasks' scripts take it")
    add("--calibration_field", default="text", help="with --write_windows: column that holds the text")
    add("--nsamples", type=int, default=32, help="with --write_windows (default 32)")
    add("--calibration_length", type=int, default=512, help="with --write_windows (default 512)")
    add("--seed", type=int, default=0, help="with --write_windows (default 0)")
    add("--maker", choices=tuple(WHAT), help="the tool")
    add("--what", help="llmcompressor: nm, w4a16; gptqmodel: gptq, awq; gguf: q8_0, q4_0")
    add("--windows", type=Path, help="safetensors file: tokens, (windows, tokens per window)")
    add("--group_size", type=int, default=64, help="w4a16, gptq, awq: inputs that share a scale (default 64)")
    add("--output_dir", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    if args.write_windows is None:
        if args.maker is None or args.what not in WHAT[args.maker]:
            parser.error(f"--maker {args.maker} --what {args.what}: allowed is {WHAT}")
        if args.output_dir is None or (args.windows is None and args.maker != "gguf"):
            parser.error(f"--maker {args.maker} needs --output_dir, and --windows where it is calibrated")
    elif not args.calibration:
        parser.error("--write_windows needs --calibration")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.write_windows:
        write_windows(args)
    elif args.maker == "llmcompressor":
        by_llmcompressor(args.model_name_or_path, args.what, windows_of(args.windows), args.group_size, args.output_dir)
    elif args.maker == "gptqmodel":
        by_gptqmodel(args.model_name_or_path, args.what, windows_of(args.windows), args.group_size, args.output_dir)
    else:
        write_gguf(Path(args.model_name_or_path), args.what, args.output_dir)


def write_windows(args: argparse.Namespace) -> None:
    """The windows that a run of ours with these options is calibrated on."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from pruning.calibration import calibration_tokens

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokens = calibration_tokens(
        tokenizer, args.calibration, args.nsamples, args.calibration_length, args.seed,
        text_field=args.calibration_field,
    )  # fmt: skip
    save_file({"tokens": tokens.contiguous()}, args.write_windows)


def windows_of(file: Path) -> list[list[int]]:
    from safetensors.torch import load_file

    return load_file(file)["tokens"].tolist()


def by_llmcompressor(name: str, what: str, windows: list[list[int]], group_size: int, folder: Path) -> None:
    """Saved as llmcompressor saves: 2:4 with its zeros in dense tensors, W4A16 as packed compressed-tensors."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import WandaPruningModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    rows = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(row) for row in windows]})
    if what == "nm":
        modifier = WandaPruningModifier(sparsity=0.5, mask_structure="2:4", targets=[r"re:.*layers\.\d+$"])
    else:
        grid = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group_size)
        scheme = QuantizationScheme(targets=["Linear"], weights=grid)
        modifier = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"], actorder=None)
    oneshot(
        model=model, processor=tokenizer, dataset=rows, recipe=[modifier], num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]), batch_size=4, shuffle_calibration_samples=False,
    )  # fmt: skip
    model.save_pretrained(folder, save_compressed=True)
    tokenizer.save_pretrained(folder)


def by_gptqmodel(name: str, what: str, windows: list[list[int]], group_size: int, folder: Path) -> None:
    """Saved as gptqmodel saves: GPTQ symmetric in its first format, AWQ with zero points in the format "gemm"."""
    # By itself gptqmodel 7.6 takes half of the cores, and stops where that is 1.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization.config import AWQConfig, GPTQConfig

    if what == "gptq":
        config, packed_by = GPTQConfig(bits=4, group_size=group_size, sym=True, desc_act=False), BACKEND.GPTQ_TORCH
    else:  # by itself it packs by a kernel that a CPU does not have
        config, packed_by = AWQConfig(bits=4, group_size=group_size, sym=False), BACKEND.AWQ_TORCH
    model = GPTQModel.load(name, config, device="cpu")
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows]
    model.quantize(rows, batch_size=4, backend=packed_by)
    model.save(str(folder))


# A Llama's tensors: transformers' name, GGUF's.
TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}  # fmt: skip


def write_gguf(source: Path, what: str, folder: Path) -> None:
    """A Llama with its matrices in one type of llama.cpp's; norms and what no block of 32 fits stay in float32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    kind = gguf.GGMLQuantizationType[what.upper()]
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / f"model-{what}.gguf", "llama")
    _write_settings(writer, config, gguf)
    _write_tokens(writer, config, tokenizer)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for key, tensor in load_file(source / "model.safetensors").items():
        name = gguf_name(key)
        values = tensor.astype(np.float32)
        if (stem := name.split(".")[-2]) in heads:
            values = permuted(values, heads[stem])
        if values.ndim == 2 and values.shape[-1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()


def gguf_name(key: str) -> str:
    """GGUF's name of a Llama's tensor."""
    if key in OUTER:
        return OUTER[key]
    _, _, index, rest = key.split(".", 3)
    return f"blk.{index}.{TENSORS[rest.removesuffix('.weight')]}.weight"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows in llama.cpp's order: of each head the halves that rotate together side by side."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _write_settings(writer: object, config: dict, gguf: object) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokens(writer: object, config: dict, tokenizer: dict) -> None:
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    tokens |= added
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([tokens[index] for index in sorted(tokens)])
    writer.add_token_types([3 if index in added else 1 for index in sorted(tokens)])  # control, normal
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


if __name__ == "__main__":
    main()
