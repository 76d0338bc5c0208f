"""The options of a setting as its functions read them, from words of a command line."""

import argparse
from typing import Any

from llm_tasks import option_values
from llm_tasks.levels import Level, Setting


def values_of(setting: Setting, *words: str, **shared: Any) -> Any:
    """The setting's values; `shared` are those of options that other settings have too, by name."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for name, declaration in setting.options.items():
        parser.add_argument(f"--{name}", **declaration)
    given = {"data_dir": None, "max_items": None, "answer_mode": None, "overflow": "drop_shots", **shared}
    return option_values.values_of(setting, {**vars(parser.parse_args(words)), **given})


def build(setting: Setting, values: Any, seed: int = 0, tokenizer: Any = None) -> list[Level]:
    """The setting's levels."""
    return setting.build(setting.load(values), values, seed, tokenizer)
