"""scripts/benchmarks/peer_lm_eval.py: what runs without lm-eval, which has an environment of its own."""

import gzip
import hashlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pyarrow import parquet

MMLU = [
    {"question": f"{subject} {number}?", "subject": subject, "choices": list("wxyz"), "answer": number % 4}
    for number in range(3)
    for subject in ("anatomy", "astronomy")
]


@pytest.fixture(scope="module")
def peer(load_script) -> ModuleType:
    return load_script("benchmarks/peer_lm_eval")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    """Options that are right; the model is a folder with a config."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    chosen = {"model": tmp_path / "model", "task": "piqa", "data_dir": "data", "output": tmp_path / "out.json"}
    return {name: str(value) for name, value in chosen.items()}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The peer's folder of task files, for two subjects and PIQA."""
    folder = tmp_path / "tasks"
    for name in ("piqa/piqa", "mmlu/default/mmlu_anatomy", "mmlu/default/mmlu_astronomy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text("output_type: multiple_choice\n")
    return folder


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def command_line(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def test_defaults_are_float32_on_one_thread_of_the_cpu(peer, options):
    args = peer.parse_args(command_line(options))
    assert (args.dtype, args.device, args.batch_size, args.threads) == ("float32", "cpu", 8, 1)
    assert (args.items, args.num_fewshot) == (None, None)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"task": "boolq"}, "invalid choice: 'boolq'"),
        ({"num_fewshot": "5"}, "--num_fewshot is for --task mmlu, not piqa"),
        ({"items": "no.json"}, "--items no.json: no such file"),
        ({"model": "no/model"}, "--model no/model: no folder with a config.json"),
        ({"output": "no/folder/out.json"}, "--output no/folder/out.json: its folder does not exist"),
        ({"batch_size": "0"}, "0 is not a whole number above 0"),
        ({"threads": "half"}, "half is not a whole number above 0"),
        ({"dtype": "int8"}, "invalid choice: 'int8'"),
    ],
)
def test_bad_options_are_refused_by_name(peer, options, capsys, changed, message):
    with pytest.raises(SystemExit):
        peer.parse_args(command_line(options | changed))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("shots", ["-1", "6"])
def test_more_examples_than_mmlu_has_are_refused(peer, options, capsys, shots):
    with pytest.raises(SystemExit):
        peer.parse_args(command_line(options | {"task": "mmlu", "num_fewshot": shots}))
    assert f"--num_fewshot {shots} is outside 0 to 5" in capsys.readouterr().err


def test_without_lm_eval_the_other_tasks_say_what_to_install(peer, monkeypatch):
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lm-eval\[hf\]"'):
        peer.installed_tasks()


@pytest.mark.parametrize("items, expected", [(None, [0, 1, 2, 3]), ([3, 0, 2], [3, 0, 2]), ([1], [1])])
def test_items_choose_rows_in_their_order(peer, tmp_path, items, expected):
    file = None
    if items is not None:
        file = tmp_path / "items.json"
        file.write_text(json.dumps(items))
    assert peer.select_rows(4, file) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("[0, 4]", "row 4 is not among the 4 rows"),
        ("[-1]", "row -1 is not among the 4 rows"),
        ("[1, 1]", "a row occurs twice"),
        ("[true]", "not a JSON list of whole numbers"),
        ('{"rows": [1]}', "not a JSON list of whole numbers"),
        ("1 2", "items.json: Extra data"),
        ("[]", "no row to score"),
    ],
)
def test_bad_items_are_refused(peer, tmp_path, text, message):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        peer.select_rows(4, tmp_path / "items.json")


@pytest.mark.parametrize("line, message", [("[1]", "line 1: not a JSON object"), ("{", "line 1: Expecting")])
def test_lines_that_are_no_objects_are_refused(peer, tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=message):
        peer.read_rows(file)


def test_own_task_file_includes_the_peers_and_replaces_its_data(peer, tmp_path, installed):
    """Texts that look like dates or numbers, and spaces before a text, arrive as they were."""
    rows = [{"goal": "2020-01-02", "sol1": " On a chair.", "sol2": "12", "label": label} for label in (0, 1)]
    write_lines(tmp_path / "data" / "piqa" / "validation.jsonl", rows)
    (task,) = peer.own_tasks("piqa", tmp_path / "data", None, 5, installed, tmp_path)
    config = json.loads(task.text)
    assert config["include"] == str(installed / "piqa" / "piqa.yaml")
    assert (config["dataset_path"], config["dataset_name"], config["num_fewshot"]) == ("parquet", None, 0)
    assert [config[f"{split}_split"] for split in ("training", "validation", "test")] == [None, "validation", None]
    assert not {"doc_to_text", "doc_to_choice", "doc_to_target", "description"} & set(config)
    assert parquet.read_table(config["dataset_kwargs"]["data_files"]["validation"]).to_pylist() == rows


def test_mmlu_is_one_task_per_subject_with_that_subjects_examples(peer, tmp_path, installed):
    for split in ("dev", "test"):
        write_lines(tmp_path / "data" / "mmlu" / f"{split}.jsonl.gz", MMLU)
    (tmp_path / "items.json").write_text("[5, 0, 4]")
    tasks = peer.own_tasks("mmlu", tmp_path / "data", tmp_path / "items.json", 2, installed, tmp_path)
    assert [(task.name, task.group, task.rows) for task in tasks] == [
        ("mmlu_astronomy", "astronomy", [5]),
        ("mmlu_anatomy", "anatomy", [0, 4]),
    ]
    config = json.loads(tasks[1].text)
    files = config["dataset_kwargs"]["data_files"]
    assert parquet.read_table(files["test"]).to_pylist() == [MMLU[0], MMLU[4]]
    assert parquet.read_table(files["dev"]).to_pylist() == [MMLU[0], MMLU[2], MMLU[4]]
    assert (config["num_fewshot"], config["test_split"], config["validation_split"]) == (2, "test", None)


def test_missing_data_examples_and_task_files_are_named(peer, tmp_path, installed):
    data = tmp_path / "data"
    with pytest.raises(ValueError, match=r"neither mmlu/test.jsonl nor mmlu/test.jsonl.gz"):
        peer.own_tasks("mmlu", data, None, 0, installed, tmp_path)
    write_lines(data / "mmlu" / "test.jsonl", MMLU)
    write_lines(data / "mmlu" / "dev.jsonl", MMLU[:2])
    with pytest.raises(ValueError, match="--num_fewshot 2: mmlu's dev split has 1 rows of anatomy"):
        peer.own_tasks("mmlu", data, None, 2, installed, tmp_path)
    with pytest.raises(ValueError, match=r"no task file .*mmlu_anatomy.yaml"):
        peer.own_tasks("mmlu", data, None, 1, tmp_path / "elsewhere", tmp_path)
    write_lines(data / "mmlu" / "test.jsonl", [{"question": "Which?"}])
    with pytest.raises(ValueError, match="line 1 lacks the field 'subject'; it has question"):
        peer.own_tasks("mmlu", data, None, 1, installed, tmp_path)


def test_rows_keep_their_index_and_the_peers_numbers(peer):
    task = peer.PeerTask("mmlu_anatomy", "anatomy", [7, 3], "")
    pairs = [("Q", " A"), ("Q", " B")]
    sample = {"target": 1, "filtered_resps": [(-2.5, False), (-0.5, True)], "arguments": pairs, "metrics": ["acc"]}
    rows = peer.task_rows(task, [sample | {"doc_id": 1, "acc": 1.0}, sample | {"doc_id": 0, "acc": 0.0}])
    digest = hashlib.sha256(b'[["Q", " A"], ["Q", " B"]]').hexdigest()
    same = {"group": "anatomy", "gold": 1, "log_likelihoods": [-2.5, -0.5], "requests_sha256": digest}
    assert rows == [{"row": 3, "acc": 1.0, **same}, {"row": 7, "acc": 0.0, **same}]
    assert peer.means(rows) == {"acc": 0.5}


def test_watching_a_model_marks_the_stages_and_changes_nothing(peer):
    """A model that takes the peer's three steps: its requests become tokens, tokens become numbers."""
    model = SimpleNamespace(_loglikelihood_tokens=lambda requests, disable_tqdm=False: [len(requests), disable_tqdm])
    model.loglikelihood = lambda requests: model._loglikelihood_tokens(
        [(pair, [0] * len(pair[0]), [0] * len(pair[1])) for pair in requests], disable_tqdm=True
    )
    marks = peer.Marks()
    lengths = peer.watch_requests(model, marks)
    assert model.loglikelihood([("ab", "c"), ("d", "efg")]) == [2, True]
    assert (marks.names, lengths) == (["build", "tokenize", "forward"], [3, 4])


def test_seconds_are_differences_of_the_marks(peer):
    marks = peer.Marks()
    marks.names = ["import", "load", "build", "tokenize", "forward", "finish"]
    marks.times = [(10, 1), (14, 2), (15, 2), (17, 3), (20, 5), (28, 9), (29, 9)]
    expected = {"import": 4, "load": 1, "build": 2, "tokenize": 3, "forward": 8, "finish": 1, "score": 11, "total": 19}
    assert marks.spent(0) == expected
    assert (marks.spent(1)["score"], marks.spent(1)["total"]) == (6, 8)
