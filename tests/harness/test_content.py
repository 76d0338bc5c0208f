"""harness/content.py: what a model and data are, by their content; hub caches are made up, there is no network."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from setting_values import values_of

from GLUE_tasks import Glue_prune_oneshot, Mcq_prune_oneshot, pretrained
from harness import content
from harness.content import content_sha256, dataset_commit, files_content, model_content, sha256
from harness.data import Source
from llm_tasks import plan
from llm_tasks.compressed_model import ModelSource
from llm_tasks.settings import option_count, perplexity
from pruning import calibration

COMMIT, OTHER = "a" * 40, "b" * 40


def test_sha256_depends_on_names_and_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    before = sha256([one, two])
    assert before == sha256([two, one])
    two.write_bytes(b"3")
    assert before != sha256([one, two])


def test_content_sha256_depends_on_contents_kinds_and_order_alone(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    before = content_sha256([one, two])
    assert before != content_sha256([two, one])
    one.rename(tmp_path / "uno.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "two.txt")
    assert before == content_sha256([tmp_path / "uno.txt", tmp_path / "link.txt"])
    two.rename(tmp_path / "two.jsonl")
    assert before != content_sha256([tmp_path / "uno.txt", tmp_path / "two.jsonl"])


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"1")
    before = content_sha256([path])
    os.utime(path, ns=(0, 0))  # as if written long ago
    path.write_bytes(b"2")
    assert content_sha256([path]) != before


@pytest.fixture
def model(tiny_decoder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_decoder, tmp_path / "model")


def test_a_model_is_the_same_by_any_path(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = model_content(str(model))
    assert len(found) == 5 and all(len(value) == 64 for value in found.values())
    (tmp_path / "link").symlink_to(model)
    copied = shutil.copytree(model, tmp_path / "another name")
    monkeypatch.chdir(tmp_path)
    for name in ("model", "./model/", str(tmp_path / "link"), str(copied)):
        assert model_content(name) == found


def edit_json(path: Path, **values: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **values}))


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda model: edit_json(model / "config.json", rms_norm_eps=1e-3), "config_sha256"),
        (lambda model: edit_json(model / "generation_config.json", eos_token_id=[2, 3]), "generation_config_sha256"),
        (lambda model: (model / "generation_config.json").unlink(), "generation_config_sha256"),
        (lambda model: edit_json(model / "tokenizer.json", version="x"), "tokenizer_sha256"),
        (lambda model: edit_json(model / "tokenizer_config.json", bos_token="the"), "tokenizer_sha256"),
        (lambda model: edit_json(model / "special_tokens_map.json", pad_token="the"), "tokenizer_sha256"),
        (lambda model: edit_json(model / "added_tokens.json", the=40), "tokenizer_sha256"),
        (lambda model: (model / "merges.txt").write_text("a b"), "tokenizer_sha256"),
        (lambda model: edit_json(model / "config.json", id2label={"0": "pos", "1": "neg"}), "config_sha256"),
        (lambda model: (model / "source.spm").write_bytes(b"x"), "tokenizer_sha256"),
        (lambda model: (model / "tokenizer.model").write_bytes(b"x"), "tokenizer_sha256"),
        (lambda model: (model / "chat_template.jinja").write_text("{{ 1 }}"), "template_sha256"),
        (lambda model: write(model / "additional_chat_templates" / "tools.jinja"), "template_sha256"),
        (lambda model: flip(model / "model.safetensors"), "model_sha256"),
    ],
)
def test_every_part_of_a_model_is_its_identity(model: Path, edit, name: str):
    before = model_content(str(model))
    edit(model)
    after = model_content(str(model))
    assert [key for key in before if before[key] != after[key]] == [name]


def write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("{{ 2 }}")


def flip(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[-1] ^= 1
    path.write_bytes(found)


def test_what_changes_no_number_is_no_identity(model: Path):
    before = model_content(str(model))
    edit_json(model / "config.json", _name_or_path="/elsewhere", transformers_version="4.0.0")
    edit_json(model / "tokenizer_config.json", name_or_path="/elsewhere")
    (model / "README.md").write_text("a card")
    (model / "trainer_state.json").write_text("{}")
    assert model_content(str(model)) == before


def test_the_models_code_counts_where_it_is_run(model: Path):
    (model / "modeling_own.py").write_text("x = 1")
    without, before = model_content(str(model)), model_content(str(model), with_code=True)
    (model / "modeling_own.py").write_text("x = 2")
    assert model_content(str(model)) == without
    assert model_content(str(model), with_code=True)["code_sha256"] != before["code_sha256"]


def test_the_weights_that_are_read_count(model: Path):
    (model / "pytorch_model.bin").write_bytes(b"1")
    safetensors, before = model_content(str(model)), model_content(str(model), weights="bin")
    (model / "pytorch_model.bin").write_bytes(b"2")
    assert model_content(str(model)) == safetensors
    assert model_content(str(model), weights="bin")["model_sha256"] != before["model_sha256"]


@pytest.fixture
def hub_model(tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a model lab/tiny, whose branch main is at COMMIT and v2 at OTHER."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = cache / "models--lab--tiny"
    for branch, commit in (("main", COMMIT), ("v2", OTHER)):
        shutil.copytree(tiny_decoder, folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    return folder


def test_a_hub_model_is_its_commit(hub_model: Path):
    assert model_content("lab/tiny") == {"model_commit": COMMIT} == model_content("lab/tiny", "main")
    assert model_content("lab/tiny", "v2") == {"model_commit": OTHER} == model_content("lab/tiny", OTHER)
    (hub_model / "refs" / "main").write_text(OTHER)
    assert model_content("lab/tiny") == {"model_commit": OTHER}


@pytest.mark.parametrize(("name", "revision"), [("lab/other", None), ("lab/tiny", "v3")])
def test_a_hub_model_that_is_not_there_is_refused(hub_model: Path, name: str, revision: str | None):
    with pytest.raises(ValueError, match=f"--model_name_or_path {name}: "):
        model_content(name, revision)


@pytest.fixture
def hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `datasets` keeps of two versions of a data set's configuration, the second made later."""
    import datasets

    dataset_commit.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for time, commit in enumerate((COMMIT, OTHER)):
        folder = tmp_path / "lab___two_words" / "all" / "0.0.0" / commit
        folder.mkdir(parents=True)
        os.utime(folder, (time, time))
    yield tmp_path
    dataset_commit.cache_clear()


def test_hub_data_are_their_commit(hub_data: Path):
    assert dataset_commit("lab/TwoWords", "all") == OTHER
    assert dataset_commit("lab/TwoWords", "all", COMMIT) == COMMIT
    source = Source("two", "test", "lab/TwoWords", "all", "test", ())
    assert files_content([source, source]) == {"data_commit": f"lab/TwoWords@{OTHER}"}


def test_hub_data_that_are_not_there_are_refused_with_the_way_out(hub_data: Path):
    source = Source("two", "test", "lab/TwoWords", "other", "test", ())
    message = r"lab/TwoWords: offline mode; without a hub, give --data_dir DIR with two/test\.jsonl"
    with pytest.raises(ValueError, match=message):
        files_content([source])


def test_the_hub_itself_is_asked_where_it_can_be(monkeypatch: pytest.MonkeyPatch):
    class Api:
        def dataset_info(self, name: str, revision: str | None) -> object:
            return type("Info", (), {"sha": COMMIT})

    dataset_commit.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(content, "HfApi", Api)
    assert dataset_commit("lab/data") == COMMIT
    dataset_commit.cache_clear()


def test_the_default_path_names_every_commit(hub_model: Path, hub_data: Path):
    """Models and data of the hub: what tells a run from others holds a commit for each, with --revision too."""
    for name, config in (("nyu-mll___glue", "rte"), ("tau___commonsense_qa", "default"), ("cais___mmlu", "all")):
        (hub_data / name / config / "0.0.0" / COMMIT).mkdir(parents=True)
    for script, task, data in ((Glue_prune_oneshot, "rte", "nyu-mll/glue"),
                               (Mcq_prune_oneshot, "commonsense_qa", "tau/commonsense_qa")):  # fmt: skip
        assert pretrained.PretrainedSource("lab/tiny", revision="v2").content() == {"model_commit": OTHER}
        assert files_content([script.hub_source(task)]) == {"data_commit": f"{data}@{COMMIT}"}
    cells = [{"compression": "wanda"}]
    source = ModelSource("lab/tiny", torch.device("cpu"), revision="v2")
    found = plan.input_hashes(source, "c4", None, cells)
    assert found == {"model_commit": OTHER, "calibration_commit": calibration.C4_REVISION}
    assert option_count.SETTING.content(values_of(option_count.SETTING)) == {"data_commit": f"cais/mmlu@{COMMIT}"}
    assert perplexity.SETTING.content(values_of(perplexity.SETTING, max_length=9)) == {
        "text_commit": calibration.WIKITEXT_REVISION
    }
