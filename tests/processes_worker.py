"""Settings 2 to 6 in one process of a job of two, for tests/llm_tasks/test_settings.py: process 1 fails in one run."""

import sys

import numpy as np
import torch

from llm_tasks import setting2_option_count
from llm_tasks.engine.feed import Engine
from llm_tasks.engine.processes import join

FAILING_CALL = 2  # of the evaluation: the second run
local_rows, calls = Engine.local_rows, []


def failing(*arguments: object) -> object:
    calls.append(1)
    if len(calls) == FAILING_CALL and join(torch.device("cpu")).index == 1:
        raise FloatingPointError("the model's logits are NaN, here alone")
    return local_rows(*arguments)


def check_exchange() -> None:
    processes = join(torch.device("cpu"))
    assert processes.count == 2
    assert processes.share("main" if processes.is_main else "other") == "main"
    own = np.array([0.1, 0.0] if processes.is_main else [0.0, -3e300])
    assert processes.merge(own).tolist() == [0.1, -3e300]
    matrix = torch.arange(6.0).reshape(2, 3).T if processes.is_main else torch.zeros(2, 3).T  # not contiguous
    processes.copy_from_main([matrix])
    assert matrix.tolist() == [[0, 3], [1, 4], [2, 5]]


if __name__ == "__main__":
    check_exchange()
    Engine.local_rows = failing
    sys.exit(setting2_option_count.main(sys.argv[1:]))
