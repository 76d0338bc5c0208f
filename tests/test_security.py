"""What a model, a data set or a result that somebody else made cannot do: run code, or write outside its folder."""

import ast
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.models import meta_model
from llm_tasks import perplexity

ROOT = Path(__file__).parents[1]
SOURCES = [path for room in ("GLUE_tasks", "llm_tasks", "pruning", "quantization", "analysis", "harness", "scripts")
           for path in sorted((ROOT / room).rglob("*.py"))]  # fmt: skip


@functools.cache
def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def keywords(path: Path, name: str) -> Iterator[ast.expr]:
    """The values that calls in a file give an argument by name."""
    return (keyword.value for call in calls(path) for keyword in call.keywords if keyword.arg == name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_and_pickles_of_others_are_trusted_nowhere_by_constant(path: Path):
    for name, safe in (("trust_remote_code", False), ("allow_pickle", False), ("weights_only", True)):
        constants = [value.value for value in keywords(path, name) if isinstance(value, ast.Constant)]
        assert all(value is safe for value in constants), f"{path.name} sets {name} to {constants}"
    safetensors = [ast.unparse(value) for value in keywords(path, "use_safetensors")]
    asked = "weights == 'safetensors'" if path.parent.name == "harness" else "True"  # harness reads what --weights says
    assert all(value == asked for value in safetensors)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_weights_are_read_from_safetensors(path: Path):
    """Of what from_pretrained loads, configs and tokenizers are JSON; every model asks for safetensors, or one GGUF.

    PEFT's adapters may be .bin files, which it reads by weights_only=True.
    """
    for call in calls(path):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained":
            owner = ast.unparse(call.func.value)
            if owner not in ("AutoTokenizer", "AutoConfig", "GenerationConfig", "PeftModel"):
                named = {keyword.arg for keyword in call.keywords}
                assert named & {"use_safetensors", "gguf_file"}, f"{owner} in {path.name}"


@pytest.fixture
def hostile_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder with code of its own, which leaves a file behind when it runs."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "configuration_hostile.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig\n"
        f"Path({str(tmp_path / 'it_ran')!r}).touch()\n\n\n"
        "class HostileConfig(LlamaConfig):\n    model_type = 'hostile'\n"
    )
    config = {"model_type": "hostile", "auto_map": {"AutoConfig": "configuration_hostile.HostileConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_a_models_own_code_runs_only_when_asked(hostile_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        perplexity.main(["--model_name_or_path", str(hostile_model), "--output_dir", str(tmp_path / "run")])
    assert stopped.value.code == 2 and "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "it_ran").exists()

    class Asked(Exception):
        pass

    def stop(config: object) -> None:
        raise Asked

    with pytest.raises(Asked):
        meta_model(str(hostile_model), object, True, stop)
    assert (tmp_path / "it_ran").exists()
