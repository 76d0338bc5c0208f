"""Whether two functions do the same, told by their code.

Most models of transformers repeat Llama's functions line by line. What is known of Llama's holds for these, and only
for these: a model that differs in a step differs in its instructions.
"""

import inspect
import types
from typing import Any


def same_code(one: object, other: object) -> bool:
    """Whether both are functions with the same instructions, names and constants; docstrings and hints aside."""
    codes = [_instructions(inspect.unwrap(function)) for function in (one, other) if callable(function)]
    return len(codes) == 2 and codes[0] is not None and codes[0] == codes[1]


def _instructions(function: object) -> tuple[Any, ...] | None:
    """What a function is compiled to, but for its docstring: the only constant of several lines."""
    if not isinstance(function, types.FunctionType):
        return None
    code = function.__code__
    constants = tuple(value for value in code.co_consts if not (isinstance(value, str) and "\n" in value))
    return code.co_code, code.co_names, code.co_varnames, constants
