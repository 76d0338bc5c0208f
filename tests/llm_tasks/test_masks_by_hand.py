"""Attention masks of packed rows and of growing answers, by hand: a wrong one may pass a proof on other lengths."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llm_tasks.engine import greedy
from llm_tasks.engine.feed import Engine, sliding_window
from llm_tasks.engine.ways import Ways

WINDOW = 3
MIXED = ["full_attention", "sliding_attention"]


def engine_of(kind: type, types: list[str], **more: Any) -> Any:
    """An engine of this class that has only what masks are made of."""
    engine = kind.__new__(kind)
    engine._config = SimpleNamespace(layer_types=types, sliding_window=WINDOW)
    engine._model = SimpleNamespace(dtype=torch.float32, device=torch.device("cpu"))
    engine._ways = Ways(packs=True)
    vars(engine).update(more)
    return engine


def seen(mask: torch.Tensor) -> list[list[list[bool]]]:
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return (mask[:, 0] == 0).tolist()


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_sequence_sees_what_is_before_it_and_in_a_sliding_layer_a_window_of_it(before: int, length: int):
    """The window has three tokens, the token itself among them; no mask of its own where none is further away."""
    ends, depths = np.full((1, length), length), np.arange(before, before + length)[None]
    full = [[key <= query for key in range(before + length)] for query in range(before, before + length)]
    near = [[own and query - key < WINDOW for key, own in enumerate(row)] for query, row in enumerate(full, before)]
    mask = engine_of(Engine, MIXED)._positions(ends, depths, before)["attention_mask"]
    if before + length <= WINDOW:
        assert seen(mask) == [full]
    else:
        assert {kind: seen(own) for kind, own in mask.items()} == {MIXED[0]: [full], MIXED[1]: [near]}
    assert seen(engine_of(Engine, MIXED[1:])._positions(ends, depths, before)["attention_mask"]) == [near]


def test_the_newest_token_of_an_answer_sees_its_prompt_and_answer_and_a_window_of_them():
    """Prompts of two and four tokens, aligned at their ends, and two tokens of each answer."""
    told: dict[str, Any] = {}
    writer = engine_of(
        greedy._PackedWriter, MIXED, _layers=[SimpleNamespace(get_seq_length=lambda: 6)], _longest=4,
        _prompt_lengths=torch.tensor([2, 4]), _after_last=lambda ids, cache, **more: told.update(more),
    )  # fmt: skip
    writer._feed_newest(torch.tensor([[7], [8]]))
    assert told["position_ids"].tolist() == [[4], [6]]
    full = [[[False] * 2 + [True] * 5], [[True] * 7]]
    near = [[[False] * 4 + [True] * 3]] * 2
    assert {kind: seen(mask) for kind, mask in told["attention_mask"].items()} == {MIXED[0]: full, MIXED[1]: near}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"sliding_window": 4}, 4),
        ({"sliding_window": 4, "use_sliding_window": True, "layer_types": MIXED}, 4),
        ({"sliding_window": 4, "use_sliding_window": False}, None),
        ({"sliding_window": 4, "layer_types": MIXED[:1]}, None),
        ({}, None),
    ],
)
def test_windows_are_those_of_configs_that_use_them(config: dict[str, Any], expected: int | None):
    assert sliding_window(SimpleNamespace(**config)) == expected
