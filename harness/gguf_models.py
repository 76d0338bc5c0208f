"""Language models out of GGUF files, as folders that transformers loads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

# Token type of a GGUF file: padding of the vocabulary, which no text becomes.
UNUSED_TOKEN = 5


def model_of_gguf(gguf: Path, dtype: str) -> Any:
    """The causal language model of a GGUF file, its weights dequantised and cast to `dtype`."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
    )


def unused_tokens(gguf: Path) -> set[str]:
    """The tokens with which a GGUF file pads its vocabulary."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    return {token for token, kind in zip(tokens, types, strict=True) if kind == UNUSED_TOKEN}


def write_qwen2(gguf: Path, folder: Path) -> None:
    """Write the folder of a Qwen2 language model with a tied embedding, in bfloat16, as these models were published.

    Such a GGUF file holds the embedding twice: in few bits, and as the output layer in more. The one in more becomes
    both, as the published model has one.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer

    model = model_of_gguf(gguf, "bfloat16")
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = True
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # as published: a chat ends at <|im_end|>, a text at <|endoftext|>
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    # from GGUF, transformers does not take over Qwen2's NFC normalisation, and keeps the vocabulary's padding
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    save_language_model(model, tokenizer, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary, unused = content["model"]["vocab"], unused_tokens(gguf)
    content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if token not in unused}
    Tokenizer.from_str(json.dumps(content)).save(str(path))


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write `folder` as `from_pretrained` reads it: safetensors, config, tokenizer, chat template."""
    from safetensors import SafetensorError

    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):  # safetensors keeps no more of an OSError
            raise OSError(int(code[1]), str(error)) from error
        raise
    tokenizer.save_pretrained(folder)
    # safetensors writes a file that only its owner can read; others share the assets
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
