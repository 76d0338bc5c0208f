"""Broken checkpoints, for test_broken_inputs.py: five or more of each kind, for a language model and an encoder."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from broken import Assets, Broken
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
LLM, GLUE, SETTING = "llm_tasks.perplexity", "GLUE_tasks.Glue_prune_oneshot", "llm_tasks.setting5_human_gap"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 538090408\n"

Break = Callable[[Path], None]


def language_model(name: str, breaks: Break, *says: str, more: tuple[str, ...] = (), script: str = LLM) -> Broken:
    def make(folder: Path, assets: Assets) -> list[str]:
        options = ["--model_name_or_path", broken(folder, assets.decoder, breaks), *more]
        if script == LLM:
            return [*options, "--text", str(assets.text), "--seq_len", "8"]
        rows = [{"goal": "the film is", "sol1": "good", "sol2": "bad", "label": label} for label in (0, 1)]
        (folder / "piqa").mkdir()
        (folder / "piqa" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return [*options, "--tasks", "piqa", "--data_dir", str(folder)]

    return Broken(f"language model, {name}", script, make, says)


def encoder(name: str, breaks: Break, *says: str, more: tuple[str, ...] = ()) -> Broken:
    def make(folder: Path, assets: Assets) -> list[str]:
        train, validation = map(str, assets.sentences)
        return [
            "--model_name_or_path", broken(folder, assets.encoder, breaks), "--train_file", train, "--validation_file",
            validation, "--max_length", "16", "--max_train_steps", "1", "--mixed_precision", "no", *more,
        ]  # fmt: skip

    return Broken(f"encoder, {name}", GLUE, make, says)


def broken(folder: Path, sound: Path, breaks: Break) -> str:
    copy = folder / "checkpoint"
    shutil.copytree(sound, copy)
    breaks(copy)
    return str(copy)


def tensors(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor] | None]) -> Break:
    """Writes the weights changed, in place or to what is returned."""

    def breaks(folder: Path) -> None:
        found = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
        save_file(dict(change(found) or found), folder / WEIGHTS, metadata={"format": "pt"})

    return breaks


def lacks(*keys: str) -> Break:
    return tensors(lambda found: {key: value for key, value in found.items() if key not in keys})


def renamed(change: Callable[[str], str]) -> Break:
    return tensors(lambda found: {change(key): value for key, value in found.items()})


def has_too(added: dict[str, Tensor]) -> Break:
    return tensors(lambda found: found | added)


def config(file: str = CONFIG, **entries: object) -> Break:
    """Replaces entries of a JSON file; None removes one."""

    def breaks(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | entries
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return breaks


def without(*files: str) -> Break:
    return lambda folder: [(folder / file).unlink() for file in files]


def holds(file: str, text: str) -> Break:
    return lambda folder: (folder / file).write_text(text)


def cut(file: str, keep: float) -> Break:
    """Leaves the first part of a file."""

    def breaks(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * keep)])

    return breaks


def both(*breaks: Break) -> Break:
    return lambda folder: [one(folder) for one in breaks]


def poisoned(key: str, value: float) -> Break:
    return tensors(lambda found: found[key].view(-1)[:1].fill_(value) is None)


def index_of(*shards: str) -> Break:
    """An index that names shards, of which the weights become the first."""

    def breaks(folder: Path) -> None:
        keys = list(load_file(folder / WEIGHTS))
        places = {key: shards[number % len(shards)] for number, key in enumerate(keys)}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / WEIGHTS).rename(folder / shards[0])

    return breaks


class Hostile:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, ("it_ran",)


def as_bin(content: object | None = None) -> Break:
    """The weights, or something else, as torch.save writes it."""

    def breaks(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS) if content is None else content, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return breaks


def more_tokens(folder: Path) -> None:
    """Gives every word of the texts an id beyond the embedding."""
    content = json.loads((folder / TOKENIZER).read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number + (100 if number > 4 else 0) for word, number in vocabulary.items()}
    (folder / TOKENIZER).write_text(json.dumps(content))


def extra_layer(prefix: str, number: int) -> Break:
    """A copy of the first layer under another number."""

    def copied(found: dict[str, Tensor]) -> dict[str, Tensor]:
        first = {key: value.clone() for key, value in found.items() if f"{prefix}.0." in key}
        return found | {key.replace(f"{prefix}.0.", f"{prefix}.{number}."): value for key, value in first.items()}

    return tensors(copied)


DOWN = "model.layers.1.mlp.down_proj.weight"
DENSE = "encoder.layer.1.output.dense.weight"
QUERY = "model.layers.0.self_attn.q_proj"

MISSING = [
    language_model("a tensor left out", lacks(DOWN), "1 of 30 weights are missing in the checkpoint", DOWN),
    language_model("a tensor left out, in a setting", lacks(DOWN), DOWN, script=SETTING),
    language_model("behind _orig_mod", renamed("_orig_mod.{}".format), "_orig_mod.", "torch.compile"),
    language_model("behind module", renamed("module.{}".format), "module.", "DataParallel"),
    language_model("layers behind _checkpoint_wrapped_module",
                   renamed(lambda key: key.replace(".mlp.", ".mlp._checkpoint_wrapped_module.")),
                   "_checkpoint_wrapped_module", "activation checkpointing"),
    language_model("behind another name", renamed("student.{}".format), "begin with student."),
    language_model("a base model without its head", config(tie_word_embeddings=False), "lm_head.weight",
                   "tie_word_embeddings"),
    language_model("one layer too many in the config", config(num_hidden_layers=4), "config.json has 4 layers",
                   "the checkpoint 3"),
    language_model("one layer too few in the config", config(num_hidden_layers=2), "config.json has 2 layers",
                   "the checkpoint 3"),
    language_model("an adapter beside the weights",
                   renamed(lambda key: key.replace("q_proj.", "q_proj.base_layer.")), "adapter", "merge"),
    language_model("biases that the config denies", has_too({f"{QUERY}.bias": torch.ones(16)}),
                   f"{QUERY}.bias", "do not belong to"),
    language_model("another width", config(intermediate_size=32), "model.layers.0.mlp.down_proj.weight", "[16, 24]",
                   "[16, 32]"),
    language_model("another vocabulary", config(vocab_size=20), "model.embed_tokens.weight", "[17, 16]", "[20, 16]"),
    language_model("NaN", poisoned(DOWN, float("nan")), DOWN, "1 NaN or infinite weights"),
    language_model("infinite in float16", poisoned(DOWN, 1e6), DOWN, "infinite", "float16",
                   more=("--dtype", "float16")),
    encoder("a tensor left out", lacks(DENSE), f"bert.{DENSE}", "missing in the checkpoint"),
    encoder("behind _orig_mod", renamed("_orig_mod.{}".format), "_orig_mod.", "torch.compile"),
    encoder("behind module", renamed("module.{}".format), "module.", "DataParallel"),
    encoder("one layer too many in the config", config(num_hidden_layers=3), "config.json has 3 layers",
            "the checkpoint 2"),
    encoder("one layer too few in the config", extra_layer("encoder.layer", 2), "config.json has 2 layers",
            "the checkpoint 3"),
    encoder("another width", config(intermediate_size=40), "intermediate.dense.bias", "[48]", "[40]",
            more=("--ignore_mismatched_sizes",)),
    encoder("infinite", poisoned(DENSE, float("inf")), DENSE, "1 NaN or infinite weights"),
    encoder("half of its head",
            both(renamed("bert.{}".format), has_too({"classifier.weight": torch.ones(2, 32)})), "classifier.bias",
            "a part of its head"),
    encoder("a head for other labels",
            both(renamed("bert.{}".format),
                 has_too({"classifier.weight": torch.ones(5, 32), "classifier.bias": torch.ones(5)})),
            "classifier", "--ignore_mismatched_sizes"),
]  # fmt: skip

TOKENIZERS = [
    language_model("no tokenizer files", without(TOKENIZER, "tokenizer_config.json"), "no tokenizer.json"),
    language_model("a tokenizer's config alone", without(TOKENIZER), "no tokenizer.json"),
    language_model("a damaged tokenizer", cut(TOKENIZER, 0.5), "tokenizer.json is damaged"),
    language_model("a tokenizer that is a pointer", holds(TOKENIZER, POINTER), TOKENIZER, "git-lfs pointer"),
    language_model("a tokenizer larger than the embedding", more_tokens, "the texts hold token 1", "17 rows"),
    language_model("a vocabulary without merges",
                   both(without(TOKENIZER), config("tokenizer_config.json", tokenizer_class="GPT2Tokenizer"),
                        holds("vocab.json", json.dumps({"g": 0, "o": 1, "d": 2, "<unk>": 3}))), "vocab.json",
                   "merges.txt"),
    language_model("a damaged chat template", holds("chat_template.jinja", "{% if"), "--chat_template",
                   more=("--chat_template",), script=SETTING),
    language_model("a chat template that refuses",
                   holds("chat_template.jinja", "{{ raise_exception('no system message') }}"), "--chat_template",
                   "no system message", more=("--chat_template",), script=SETTING),
    language_model("a damaged tokenizer config", holds("tokenizer_config.json", "{"), "tokenizer_config.json",
                   "damaged"),
    encoder("no tokenizer files", without(TOKENIZER, "tokenizer_config.json"), "no tokenizer.json"),
    encoder("an empty tokenizer", holds(TOKENIZER, ""), "tokenizer.json is damaged"),
    encoder("a tokenizer larger than the embedding", more_tokens, "the texts hold token 1", "18 rows"),
]  # fmt: skip

FORMATS = [
    language_model("pickled weights", as_bin(), "a pickle (pytorch_model.bin)", "--weights bin"),
    language_model("pickled weights with code", as_bin({"x": Hostile()}), "pytorch_model.bin", "asks for code", "mkdir",
                   more=("--weights", "bin")),
    language_model("no pickled weights", lambda folder: None, "--weights bin reads pytorch_model.bin",
                   "model.safetensors", more=("--weights", "bin")),
    language_model("a cut pickle", both(as_bin(), cut("pytorch_model.bin", 0.7)), "pytorch_model.bin",
                   more=("--weights", "bin")),
    language_model("pickled weights, streamed", as_bin(), "--stream", "--weights bin",
                   more=("--weights", "bin", "--stream")),
    language_model("a pickle that lacks a tensor", both(lacks(DOWN), as_bin()), DOWN, more=("--weights", "bin")),
    language_model("an adapter's folder",
                   both(without(WEIGHTS, CONFIG),
                        holds("adapter_config.json", '{"base_model_name_or_path": "org/base"}')),
                   "adapter_config.json", "org/base", "merge"),
    language_model("a GGUF file alone", both(without(WEIGHTS), holds("q4.gguf", "GGUF")), "q4.gguf", "is not read"),
    language_model("another format", both(without(WEIGHTS), holds("tf_model.h5", "x")), "no weights", "tf_model.h5"),
    language_model("a variant alone", lambda folder: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"),
                   "no weights", "model.fp16.safetensors"),
    *(
        language_model(f"quantized by {method}", config(quantization_config={"quant_method": method}),
                       "quantization_config", method, "the dense model")
        for method in ("bitsandbytes", "gptq", "awq", "compressed-tensors", "fp8")
    ),
    language_model("integers without a word in the config",
                   tensors(lambda found: found.update({DOWN: found[DOWN].to(torch.int8)})), DOWN, "I8", "quantized"),
    language_model("packed integers without a word in the config",
                   renamed(lambda key: key.replace("down_proj.weight", "down_proj.qweight")), "qweight", "quantized"),
    encoder("pickled weights", as_bin(), "a pickle (pytorch_model.bin)", "--weights bin"),
    encoder("pickled weights with code", as_bin({"x": Hostile()}), "pytorch_model.bin", "asks for code",
            more=("--weights", "bin")),
    encoder("quantized by fp8", config(quantization_config={"quant_method": "fp8"}), "fp8", "the dense model"),
]  # fmt: skip

DAMAGED = [
    language_model("cut weights", cut(WEIGHTS, 0.7), WEIGHTS, "is cut short", "bytes"),
    language_model("empty weights", holds(WEIGHTS, ""), WEIGHTS, "0 bytes"),
    language_model("weights that are a pointer", holds(WEIGHTS, POINTER), WEIGHTS, "git-lfs pointer"),
    language_model("a damaged header", lambda folder: (folder / WEIGHTS).write_bytes(b"\x10" + bytes(7) + b"[" * 40),
                   WEIGHTS, "damaged header"),
    language_model("a shard that is missing", index_of("model-1.safetensors", "model-2.safetensors"),
                   "names model-2.safetensors", "not there"),
    language_model("a damaged index", both(index_of("model-1.safetensors"), cut(f"{WEIGHTS}.index.json", 0.5)),
                   "index.json is damaged"),
    language_model("an index of nothing", both(index_of("model-1.safetensors"), holds(f"{WEIGHTS}.index.json", "{}")),
                   "index.json has no weight_map"),
    language_model("a damaged generation config", holds("generation_config.json", '{"a": '),
                   "generation_config.json is damaged"),
    language_model("a link to nothing", lambda folder: [(folder / WEIGHTS).unlink(),
                                                        (folder / WEIGHTS).symlink_to("blobs/0a1b")],
                   WEIGHTS, "link to nothing"),
    encoder("cut weights", cut(WEIGHTS, 0.5), WEIGHTS, "is cut short", "bytes"),
    encoder("weights that are a pointer", holds(WEIGHTS, POINTER), WEIGHTS, "git-lfs pointer"),
    encoder("empty weights", holds(WEIGHTS, ""), WEIGHTS, "0 bytes"),
]  # fmt: skip

CONFIGS = [
    language_model("no config", without(CONFIG), "no config.json"),
    language_model("an empty config", holds(CONFIG, ""), "config.json is damaged"),
    language_model("a damaged config", cut(CONFIG, 0.5), "config.json is damaged"),
    language_model("a config that is a list", holds(CONFIG, "[1]"), "config.json holds a list"),
    language_model("no model_type", config(model_type=None), "names no model_type"),
    language_model("an unknown model_type", config(model_type="llama9"), "model_type 'llama9'"),
    language_model("a config that makes no model", config(num_attention_heads=0), "--model_name_or_path"),
    language_model("code of its own", config(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
                   "configuration_own.py", "--trust_remote_code"),
    language_model("a revision of a folder", lambda folder: None, "--revision v2", "a folder",
                   more=("--revision", "v2")),
    language_model("a device that is not there", lambda folder: None, "--device nosuch is not there", "cpu",
                   more=("--device", "nosuch")),
    language_model("a GPU that is not there", lambda folder: None, "--device cuda:99 is not there", "cpu",
                   more=("--device", "cuda:99")),
    language_model("a device without memory", lambda folder: None, "--device meta is not there",
                   more=("--device", "meta")),
    language_model("code of its own that needs a package",
                   both(config(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
                        holds("configuration_own.py", "import no_such_package")), "no_such_package",
                   more=("--trust_remote_code",)),
    language_model("code of its own that is not there",
                   config(model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
                   "configuration_own.py", more=("--trust_remote_code",)),
    language_model("an encoder-decoder", config(model_type="t5", d_model=16, num_layers=1), "t5",
                   "no decoder-only language model"),
    Broken("language model, a name too long", LLM,
           lambda folder, assets: ["--model_name_or_path", f"/{'x' * 300}", "--text", str(assets.text)],
           ("--model_name_or_path /xxx", "too long")),
    Broken("language model, no name", LLM,
           lambda folder, assets: ["--model_name_or_path", "", "--text", str(assets.text)],
           ("--model_name_or_path", "is empty")),
    Broken("language model, a file", LLM,
           lambda folder, assets: ["--model_name_or_path", str(assets.decoder / WEIGHTS), "--text", str(assets.text)],
           ("model.safetensors: this is a file", "folder")),
    Broken("language model, an encoder", LLM,
           lambda folder, assets: ["--model_name_or_path", str(assets.encoder), "--text", str(assets.text)],
           ("bert", "no decoder-only language model")),
    encoder("no model_type", config(model_type=None), "names no model_type"),
    encoder("a damaged config", cut(CONFIG, 0.5), "config.json is damaged"),
    encoder("a kind without such a head", config(model_type="mamba"),
            "no AutoModelForSequenceClassification for a mamba"),
    encoder("a revision of a folder", lambda folder: None, "--revision v2", more=("--revision", "v2")),
]  # fmt: skip

CASES: list[Broken] = [*MISSING, *TOKENIZERS, *FORMATS, *DAMAGED, *CONFIGS]
