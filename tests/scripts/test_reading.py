"""What harness.run_folder reads back: faults of files, trees that mix runs, columns of items."""

import json
import zipfile

import numpy as np
import pytest
from synthetic_runs import level_run, run, write_tree

from analysis.kinds import describe
from analysis.outcomes import ItemReader
from harness import records, run_folder

CELL = ("seed", "sparsity")


def write_changed(folder, change):
    """A run whose all_results.json was changed by hand."""
    write_tree(folder, run(score=0.25))
    path = folder / "000" / "all_results.json"
    path.write_text(change(path.read_text()))
    return path


@pytest.mark.parametrize("length", [1, 100, 400])
def test_a_file_that_was_cut_off_is_named(tmp_path, length):
    path = write_changed(tmp_path, lambda text: text[:length])
    with pytest.raises(ValueError, match="is not valid JSON") as error:
        run_folder.read_runs(tmp_path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused_and_its_file_named(tmp_path, number):
    path = write_changed(tmp_path, lambda text: text.replace("0.25", number))
    with pytest.raises(ValueError, match=f"is not valid JSON: it holds {number}") as error:
        run_folder.read_runs(tmp_path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("score", ["null", '"0.25"', "true", "[]"])
def test_a_score_that_is_no_number_is_refused(tmp_path, score):
    write_changed(tmp_path, lambda text: text.replace("0.25", score))
    with pytest.raises(ValueError, match=r"000/all_results\.json: the score of level 100.0 is .*, not a number"):
        run_folder.read_runs(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    write_tree(tmp_path, run())
    (tmp_path / "000" / "all_results.json").write_bytes(b'{"setting": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"000/all_results\.json is not valid JSON"):
        run_folder.read_runs(tmp_path)


def test_a_run_that_was_started_again_meanwhile_does_not_count(tmp_path, monkeypatch):
    write_tree(tmp_path, run(), run(seed=42))
    monkeypatch.setattr(run_folder, "folders_with", lambda *_: [tmp_path / "gone", tmp_path / "001"])
    assert [row["seed"] for row in run_folder.read_runs(tmp_path)] == [42]


def test_links_are_not_followed_in_circles(tmp_path):
    write_tree(tmp_path / "runs", run())
    (tmp_path / "runs" / "again").symlink_to(tmp_path)
    assert len(run_folder.read_runs(tmp_path, tmp_path / "runs")) == 1


def test_rows_share_their_texts(tmp_path):
    write_tree(tmp_path, run(), run(seed=42))
    one, other = run_folder.read_runs(tmp_path)
    assert one["model"] is other["model"]
    assert all(mine is theirs for mine, theirs in zip(one, other, strict=True))


def made_with(seed, **arguments):
    """A run and the arguments that it was made with, its recipe worked out of them."""
    identity = {"seed": seed, "sparsity": 0.5, "data_sha256": "abc", "model_sha256": "def", "max_items": 500}
    identity |= arguments
    return run(seed=seed, recipe=records.recipe(identity, CELL)), identity


@pytest.mark.parametrize("name, value", [("data_sha256", "xyz"), ("model_sha256", "xyz"), ("max_items", 100)])
def test_runs_on_other_data_other_weights_or_other_items_are_never_averaged(tmp_path, name, value):
    for result, identity in (made_with(41), made_with(42), made_with(43, **{name: value})):
        write_tree(tmp_path, result, **identity)
    with pytest.raises(ValueError, match=rf"different recipes.*{name}: .* here, .*{value}.* there") as error:
        describe(run_folder.read_runs(tmp_path))
    assert f"{tmp_path}/000 (here)" in str(error.value) and f"{tmp_path}/002 (there)" in str(error.value)


def test_other_models_are_told_apart_even_where_their_names_end_alike(tmp_path):
    runs = [made(model=model) for model in ("one/lm", "two/lm") for made in (level_run,)]
    parts = describe(run_folder.read_runs(write_tree(tmp_path, *runs)), []).parts
    assert len(parts) == 2 and len({part.title for part in parts}) == 2


def store(folder, **columns):
    run_folder.start_run(folder, {}, {})
    run_folder.write_run(folder, run(), columns)


def test_columns_come_back_as_numpy_itself_reads_them(tmp_path):
    columns = {
        "flags": np.array([True, False]), "names": np.array(["é", "two words"]), "empty": np.zeros((0, 3)),
        "numbers": np.arange(6, dtype=np.int16).reshape(2, 3), "turned": np.asfortranarray(np.eye(2, 3)),
        "single": np.float32(0.5), "infinite": np.array([-np.inf, 0.0]),
    }  # fmt: skip
    store(tmp_path, **columns)
    with np.load(tmp_path / "items.npz") as expected:
        found = run_folder.read_items(tmp_path)
        assert found.keys() == set(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
    assert run_folder.read_items(tmp_path, ["names", "unknown"]).keys() == {"names"}


def test_columns_that_repeat_are_one_array_and_cannot_be_changed(tmp_path):
    items = np.array(["a", "b"])
    store(tmp_path / "0", item=items, score=np.array([0.0, 1.0]))
    store(tmp_path / "1", item=items.copy(), score=np.array([1.0, 1.0]))
    one, other = (run_folder.read_items(tmp_path / name) for name in "01")
    assert one["item"] is other["item"] and one["score"].tolist() == [0, 1] and other["score"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        one["item"][0] = "c"


def test_nan_in_items_is_refused_and_the_file_named(tmp_path):
    store(tmp_path, score=np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"items\.npz cannot be read: it holds NaN"):
        run_folder.read_items(tmp_path)


def test_items_that_were_cut_off_are_named(tmp_path):
    store(tmp_path, score=np.arange(1000.0))
    path = tmp_path / "items.npz"
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"items\.npz cannot be read"):
            run_folder.read_items(tmp_path)


def test_pickled_items_are_not_read(tmp_path):
    np.savez(tmp_path / "items.npz", answers=np.array(["a", None], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        run_folder.read_items(tmp_path)


def test_a_file_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "items.npz", "w") as stored:
        stored.writestr("score.npy", json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"items\.npz cannot be read"):
        run_folder.read_items(tmp_path)


def test_outcomes_of_the_same_items_share_them_and_each_reader_reads_anew(tmp_path):
    levels = {"2 options": (1, 0, 1), "4 options": (0, 0, 1)}
    write_tree(tmp_path, level_run(levels=levels), level_run("wanda", 0.5, dict.fromkeys(levels, (0.25, 0, 1))))
    rows, read = run_folder.read_runs(tmp_path), ItemReader()
    dense, _, wanda, _ = [read(row) for row in rows]
    assert dense.items is wanda.items and read(rows[1]).groups is read(rows[3]).groups
    assert dense.scores.tolist() == [1, 0, 1] and wanda.scores.tolist() == [0.25, 0, 1]
    assert dense.scores.dtype == np.uint8 and wanda.scores.dtype == np.float64
    path = tmp_path / "000" / "items.npz"
    changed = level_run(levels=dict.fromkeys(levels, (0, 0, 0)))["items"]
    run_folder.write_run(path.parent, run(), changed)
    assert read(rows[0]) is dense and ItemReader()(rows[0]).scores.tolist() == [0, 0, 0]
    path.unlink()
    assert ItemReader()(rows[0]) is None


def test_recipes_that_differ_in_a_path_alone_are_one(tmp_path):
    """Of two versions, or of one: a hash is a spelling, what args.json records decides."""
    for seed, path in ((41, "data/train.csv"), (42, "/somewhere/data/train.csv")):
        write_tree(tmp_path, run(seed=seed, recipe=path), train_file=path, data_content_sha256="abc")
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(seed=43, recipe="third"), train_file="data/train.csv", data_content_sha256="xyz")
    with pytest.raises(ValueError, match=r"differ in data_content_sha256: 'abc' here, 'xyz' there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_recipes_that_differ_for_no_reason_on_record_are_refused(tmp_path):
    write_tree(tmp_path, run(), run(seed=42, recipe="two"))
    with pytest.raises(ValueError, match="different recipes"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


@pytest.mark.parametrize("told_by", ["result", "environment"])
def test_precision_that_options_do_not_show_is_never_averaged(tmp_path, told_by):
    """--mixed_precision auto is bf16 on one machine and float32 on another."""
    for seed, precision in ((41, "no"), (42, "bf16")):
        told = {"precision": precision} if told_by == "result" else {}
        write_tree(tmp_path, run(seed=seed, **told), mixed_precision="auto")
        path = tmp_path / f"{seed - 41:03d}" / run_folder.ARGUMENTS_FILE
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "environment": {"precision": precision, "dtype": "torch.float32"}}))
    with pytest.raises(ValueError, match=r"different recipes.*precision_used: 'no' here, 'bf16' there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))
