"""Local copies of lm-eval's tasks and the comparison of its answers with ours: by hand, without lm_eval."""

import gzip
import json
from pathlib import Path

import pytest
from pyarrow import parquet

import lm_eval_equality
import local_lm_eval

MINE = {"prompt_hash": "p", "arguments": [["q", " a"]], "metrics": ["acc"], "acc": 1.0}


def sample(*answers: object, **changes: object) -> dict:
    return {**MINE, "resps": [[answer] for answer in answers], **changes}


def test_rows_become_what_the_task_files_read(tmp_path: Path):
    rows = [{"sentence": "They paid for the bridge that was never built. "}, {"sentence": "Too short."},
            {"sentence": "They paid for the bridge that was never built!"}]  # fmt: skip
    text = "They paid for the bridge that was never built"
    assert local_lm_eval.last_words(rows) == [{"text": text}]
    assert local_lm_eval.sentence_pages(rows) == [{"page": text, "text": text}]
    assert local_lm_eval.boolq_rows([{"question": "is it", "answer": True}])[0]["label"] == 1
    wiki = " = One = \n text \n = = Part = = \n more \n = Two = \n end \n"
    assert local_lm_eval.articles(wiki) == [" = One = \n text \n = = Part = = \n more \n", " = Two = \n end \n"]
    many = [{"number": number} for number in range(50)]
    some = local_lm_eval.sampled(many, 5)
    assert len(some) == 5 and some == local_lm_eval.sampled(many, 5) and some == sorted(some, key=lambda r: r["number"])
    (tmp_path / "piqa").mkdir()
    with gzip.open(tmp_path / "piqa/validation.jsonl.gz", "wt") as file:
        file.write(json.dumps({"goal": "a"}) + "\n")
    assert local_lm_eval.read_rows([tmp_path / "none", tmp_path], "piqa/validation") == [{"goal": "a"}]
    with pytest.raises(ValueError, match=r"none has nq_open/validation.jsonl"):
        local_lm_eval.read_rows([tmp_path], "nq_open/validation")


def test_a_task_file_replaces_only_where_rows_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local_lm_eval, "installed_tasks", lambda: Path("/lm_eval/tasks"))
    local_lm_eval.write_task(tmp_path, "piqa", "piqa/piqa.yaml", {"validation": [{"goal": "a"}]}, "validation")
    task = json.loads((tmp_path / "piqa.yaml").read_text())
    assert task["include"] == "/lm_eval/tasks/piqa/piqa.yaml" and task["task"] == "piqa"
    assert (task["training_split"], task["validation_split"], task["test_split"]) == (None, "validation", None)
    (path,) = task["dataset_kwargs"]["data_files"].values()
    assert parquet.read_table(path).to_pylist() == [{"goal": "a"}]
    rows = [{"subject": "law", "question": "q"}, {"subject": "art", "question": "r"}]
    local_lm_eval.write_mmlu(tmp_path, rows, rows, None, 2)
    group = json.loads((tmp_path / "mmlu_local.yaml").read_text())
    assert group["task"] == ["mmlu_law", "mmlu_art"] and group["aggregate_metric_list"][0]["weight_by_size"] is True
    assert json.loads((tmp_path / "mmlu_law.yaml").read_text())["num_fewshot"] == 2


def test_items_are_equal_only_where_all_is():
    one = sample((-3.0, False), (-1.0, True))
    assert lm_eval_equality.difference(one, sample((-3.0, False), (-1.5, True))) == pytest.approx(0.25)
    assert lm_eval_equality.difference(sample(-7.0), sample(-7.0)) == 0.0
    assert lm_eval_equality.difference(sample("text"), sample("other")) == 0.0
    assert lm_eval_equality.same_answers(one, sample((-3.00001, False), (-1.0, True)))
    for other in (
        sample((-3.0, True), (-1.0, True)), sample((-0.5, False), (-1.0, True)),
        sample((-3.0, False), (-1.0, True), acc=0.0), sample((-3.0, False), (-1.0, True), prompt_hash="o"),
    ):  # fmt: skip
        assert not lm_eval_equality.same_answers(one, other)
    assert not lm_eval_equality.same_answers(sample("text"), sample("other"))
