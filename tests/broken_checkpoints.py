"""Broken checkpoints, for test_broken_inputs.py."""

from broken import Broken

CASES: list[Broken] = []
