"""harness/models.py and model_files.py: folders of models are replaced whole; which are quantized."""

from pathlib import Path
from typing import Any

import pytest

from harness.model_files import quantization, refuse_quantized
from harness.models import written_whole
from llm_tasks.checkpoints.checkpoint_files import quantization_method


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path: Path):
    folder = tmp_path / "model"
    for content in ("old", "new"):
        with written_whole(folder, {"README.md": "card"}) as partial:
            (partial / content).touch()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "new"]
    with pytest.raises(OSError), written_whole(folder) as partial:
        (partial / "half").touch()
        raise OSError("no space")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "new"]


@pytest.mark.parametrize(
    ("config", "key", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config", "gptq"),
        ({"text_config": {"compression_config": {"format": "packed"}}}, "compression_config", "compressed-tensors"),
        ({"quantization_config": {}, "text_config": {"quantization_config": {"load_in_4bit": True}}},
         "quantization_config", "bitsandbytes"),
        ({"quantization_config": None, "text_config": {"hidden_size": 8}}, None, None),
    ],
)  # fmt: skip
def test_a_config_and_its_parts_say_how_weights_are_quantized(config: dict[str, Any], key: str, method: str):
    assert quantization_method(config) == method
    assert (quantization(config) or (None,))[0] == key
    if key is not None:
        with pytest.raises(ValueError, match=f"its weights are quantized \\({key} of config.json"):
            refuse_quantized("my/model", config)
