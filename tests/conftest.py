"""Tiny models and data that tests share; nothing here is downloaded."""

import contextlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ["good", "great", "fine", "bad", "awful", "poor", "the", "film", "is", "a", "story", "plot", "and", "so"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a CUDA device, tests marked gpu are skipped where another mark chose them; -m gpu runs and fails."""
    if "gpu" in config.option.markexpr:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def slow_cases(*cases: object) -> list:
    """Cases of a parametrized test that take long and tell little beside its others: `-m slow` runs them.

    A case of several values is a tuple.
    """
    return [pytest.param(*(case if type(case) is tuple else (case,)), marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import scripts/<name>.py, which is no package on purpose."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that models bring is kept in the test's folder, and imported from nowhere else."""
    folder = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    imported = [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]
    kept = {name: sys.modules.pop(name) for name in imported}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Run a script of the project with a stand-in for python; returns the arguments of every program that it starts."""
    (tmp_path / "bin").mkdir()
    python, calls = tmp_path / "bin" / "python", tmp_path / "calls"
    python.write_text(
        f'#!/bin/bash\n[[ "$1" != -c ]] || exit 0\nprintf "%s\\x1f" "$@" >>"{calls}"\nprintf "\\n" >>"{calls}"\n'
        '[[ " $* " != *" --list_cells "* ]] || echo python a.py --output_dir runs/a\n'
    )
    python.chmod(0o755)

    def run(name: str, *arguments: str, folder: str | Path = "/", **variables: str) -> list[list[str]]:
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "VIRTUAL_ENV": str(tmp_path), "HOME": str(tmp_path), **variables}
        subprocess.run(["bash", ROOT / "scripts" / name, *arguments], env=environment, cwd=folder, check=True)
        return [line.split("\x1f")[:-1] for line in calls.read_text().splitlines()]

    return run


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its state in the process: a test of a script starts without another's and leaves none."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device that is not the CPU: the stand-in of fake_accelerator.py, and with -m gpu a GPU."""
    from fake_accelerator import fake_accelerator

    with fake_accelerator() if request.param == "fake" else contextlib.nullcontext():
        yield request.param


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer BERT without a head, with a word-level tokenizer for WORDS."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("tiny_encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentence_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training (90 rows) and validation file (37 rows): label 1 where a sentence holds a good word."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    folder.mkdir()
    draw = random.Random(0)
    paths = folder / "train.jsonl", folder / "validation.jsonl"
    for path, count in zip(paths, (90, 37), strict=True):
        rows = []
        for number in range(count):
            label = number % 2
            filler = draw.choices(WORDS[6:], k=draw.randint(1, 9))
            opinion = draw.choice(WORDS[:3] if label else WORDS[3:6])
            rows.append({"sentence": " ".join([*filler, opinion]), "label": label})
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return paths


def decoder_configs() -> dict[str, "PretrainedConfig"]:  # noqa: F821 - transformers is imported when it is needed
    """A tiny config of every architecture whose blocks differ in what they are called with or made of."""
    from transformers import (
        BloomConfig,
        FalconConfig,
        Gemma2Config,
        Gemma3TextConfig,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
        MistralConfig,
        MixtralConfig,
        OPTConfig,
        Phi3Config,
        Qwen2Config,
        Qwen3Config,
    )

    size = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 64}  # fmt: skip
    grouped = {**size, "num_key_value_heads": 1}
    headed = {**grouped, "head_dim": 8}
    old = {"vocab_size": 40, "n_layer": 3, "n_head": 2}
    return {
        "llama": LlamaConfig(**grouped),
        "mistral": MistralConfig(**grouped, sliding_window=5),
        "qwen2": Qwen2Config(**grouped, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        "qwen3": Qwen3Config(**headed),
        "gemma2": Gemma2Config(**headed, sliding_window=5, query_pre_attn_scalar=8),
        "gemma3": Gemma3TextConfig(**headed, sliding_window=5, query_pre_attn_scalar=8, sliding_window_pattern=2),
        "phi3": Phi3Config(**grouped, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "opt": OPTConfig(**{**size, "ffn_dim": 24, "word_embed_proj_dim": 16}),
        "gpt_neox": GPTNeoXConfig(**size),
        "gpt2": GPT2Config(**old, n_embd=16, n_positions=64),
        "bloom": BloomConfig(**old, hidden_size=16),
        "falcon": FalconConfig(**size, num_kv_heads=1, alibi=False),
        "mixtral": MixtralConfig(**grouped, num_local_experts=3, num_experts_per_tok=2),
    }


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random three-block Llama with tied embeddings and a word-level tokenizer for WORDS."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tiny_decoder")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 documents of WORDS, 3 to 40 words each."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 40)))} for _ in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path
