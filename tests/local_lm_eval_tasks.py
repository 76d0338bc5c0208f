"""Small tasks of lm-evaluation-harness in local files, one of each kind, and a tiny model that reads any text."""

import json
import random
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("red", "blue", "sky", "sea", "sun", "tree", "stone", "bird", "fish", "wind", "rain", "snow")
SPLIT = {"test_split": "test"}
MEAN = {"aggregation": "mean", "higher_is_better": True}
RIGHT = {"metric": "exact_match", **MEAN}
TAKE_FIRST = {"function": "take_first"}
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "gold",
        "doc_to_choice": "choices", "fewshot_split": "train",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
    },
    "letters": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nAnswer:",
        "doc_to_target": "{{['A', 'B'][gold % 2]}}", "doc_to_choice": ["A", "B"], "fewshot_split": "train",
        "num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}, "metric_list": [{"metric": "acc", **MEAN}],
    },
    "last_word": {
        "output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": " {{word}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                        {"metric": "acc", **MEAN}],
    },
    "answers": {
        "output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{word}}",
        "fewshot_split": "train", "num_fewshot": 1,
        "generation_kwargs": {"until": ["\n", "Q:"], "do_sample": False, "max_gen_toks": 12},
        "filter_list": [
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": "([a-z])"}, TAKE_FIRST]},
            {"name": "whole", "filter": [{"function": "remove_whitespace"}, TAKE_FIRST]},
        ],
        "metric_list": [{**RIGHT, "ignore_case": True}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "spellings": {
        "output_type": "multiple_choice", "doc_to_text": "Word: {{question}}", "doc_to_target": "{{[0, 1]}}",
        "doc_to_choice": "choices", "metric_list": [RIGHT],
    },
}  # fmt: skip


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions of a few words with choices; some texts longer than the tiny model takes."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        choices = draw.sample(WORDS, 3)
        gold = draw.randrange(3)
        found.append({
            "question": " ".join(draw.choices(WORDS, k=draw.randint(2, 9))), "choices": choices, "gold": gold,
            "word": choices[gold], "text": " ".join(draw.choices(WORDS, k=5 + 12 * (number % 5))),
        })  # fmt: skip
    return found


def write_rows(path: Path, some: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in some))


def write_task(folder: Path, name: str, task: dict[str, Any], data: dict[str, Path]) -> None:
    """A task file that reads json files; YAML reads JSON, with "!function utils.name" as the function of utils.py."""
    files = {split: str(path) for split, path in data.items()}
    place = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, **SPLIT}
    text = json.dumps({"task": name, **place, **task})
    (folder / f"{name}.yaml").write_text(re.sub(r'"(!function [\w.]+)"', r"\1", text))


def write_tasks(folder: Path, count: int = 8) -> Path:
    """The folder with all TASKS, and groups: "both" weights its tasks by size, "alike" does not."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"test": folder / "test.jsonl", "train": folder / "train.jsonl"}
    write_rows(data["test"], rows(count, 0))
    write_rows(data["train"], rows(6, 1))
    for name, task in TASKS.items():
        write_task(folder, name, task, data)
    write_rows(folder / "few.jsonl", rows(5, 2))
    write_task(folder, "choices_few", TASKS["choices"], {**data, "test": folder / "few.jsonl"})
    for name, weighted in (("both", True), ("alike", False)):
        metrics = [{"metric": "acc", "weight_by_size": weighted}]
        group = {"group": name, "task": ["choices", "choices_few"], "aggregate_metric_list": metrics}
        (folder / f"{name}.yaml").write_text(json.dumps(group))
    return folder


def write_model(folder: Path) -> Path:
    """A random two-block Llama that takes 96 tokens, one for each byte of a text, and its tokenizer."""
    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=96, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    return folder
