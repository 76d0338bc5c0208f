"""harness/choices.py: what a model that knows nothing scores; rows are read in the tests of the tasks."""

import pytest

from harness.choices import guessing_score


@pytest.mark.parametrize(
    ("options", "golds", "score"),
    [
        ([("a", "b"), ("c", "d", "e", "f")], [[0], [3]], (1 / 2 + 1 / 4) / 2),
        ([("yes", "no"), ("no", "yes"), ("yes", "no"), ("no", "yes")], [[0], [1], [0], [0]], 3 / 4),
        ([("yes", "no"), ("yes", "no")], [[0], [1]], 1 / 2),
        ([("yes", "no")], [[0]], 1 / 2),  # a single question does not tell what is right most often
        ([("a", "b", "c", "d"), ("e", "f", "g", "h")], [[0, 1], [2]], (2 / 4 + 1 / 4) / 2),  # two are right
        ([("a", "b", "b"), ("b", "a", "b")], [[1, 2], [1]], 1 / 2),  # the same text twice is one right answer
    ],
)  # fmt: skip
def test_guessing_by_hand(options: list[tuple[str, ...]], golds: list[list[int]], score: float):
    assert guessing_score(options, golds) == pytest.approx(score)
