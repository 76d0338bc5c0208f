"""harness/models.py: how the files of a model are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness import models
from harness.models import converted_tensor_by_tensor


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.bfloat16, "pread"), (torch.float16, "pread"), (torch.float32, "mmap"), ("auto", None)]
)
def test_files_of_another_dtype_are_not_mapped(
    dtype: torch.dtype | str, backend: str | None, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The tiny decoder is stored in float32. None: the library opens its files as it likes."""
    opened, open_file = [], models.safe_open

    def recording(*args: Any, **options: Any) -> Any:
        opened.append(options["backend"])
        return open_file(*args, **options)

    plain = AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=dtype).state_dict()
    monkeypatch.setattr(models, "safe_open", recording)
    with converted_tensor_by_tensor(dtype):
        found = AutoModelForCausalLM.from_pretrained(tiny_decoder, dtype=dtype).state_dict()
    assert opened[-1:] == ([backend] if backend else [])
    assert plain.keys() == found.keys()
    assert all(torch.equal(plain[name], found[name]) and plain[name].dtype == found[name].dtype for name in plain)
