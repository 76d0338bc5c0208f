"""Tiny models and data that tests share; nothing here is downloaded."""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
WORDS = ["good", "great", "fine", "bad", "awful", "poor", "the", "film", "is", "a", "story", "plot", "and", "so"]


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import scripts/<name>.py, which is no package on purpose."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


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
