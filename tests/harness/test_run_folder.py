import contextlib
import datetime
import errno
import json
import os
import resource
import shlex
import stat

import numpy as np
import pytest
from synthetic_runs import dense, run, write_tree

from harness import leases, run_folder, status


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    write_tree(tmp_path, run(strength=0.5, score=0.75))
    (row,) = run_folder.read_runs(tmp_path)
    assert row["score"] == 0.75 and row["strength"] == 0.5 and row["level"] == 100 and row["task"] == "qnli"
    assert row["folder"] == str(tmp_path / "000") and "levels" not in row
    items = run_folder.read_items(tmp_path / "000")
    assert items["idx"].tolist() == [0, 1, 2] and items["prediction"].tolist() == [0, 1, 1]
    assert run_folder.recorded_arguments(tmp_path / "000")["learning_rate"] == 2e-5


@pytest.mark.parametrize("content", ['{"arguments": {"see', "[]", "{}"])
def test_arguments_that_are_cut_off_are_named(tmp_path, content):
    (tmp_path / run_folder.ARGUMENTS_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"args\.json was cut off, or not written by this project"):
        run_folder.recorded_arguments(tmp_path)


def test_one_row_per_run_and_level_sorted_by_folder(tmp_path):
    two_levels = run()
    two_levels["levels"] = [{**two_levels["levels"][0], "level": level} for level in (2, 4)]
    write_tree(tmp_path / "b", two_levels)
    write_tree(tmp_path / "a", dense())
    rows = run_folder.read_runs(tmp_path)
    assert [(row["transfer"], row["level"]) for row in rows] == [
        ("dense_transfer", 100), ("sparse_transfer", 2), ("sparse_transfer", 4),
    ]  # fmt: skip


def test_a_run_that_two_folders_reach_is_read_once(tmp_path, monkeypatch):
    write_tree(tmp_path / "qnli", run())
    monkeypatch.chdir(tmp_path)
    assert len(run_folder.read_runs(tmp_path, tmp_path / "qnli", "qnli")) == 1


def test_links_are_followed_to_runs_elsewhere_and_each_is_read_once(tmp_path):
    """A loop, a second link and the folder itself give no second run."""
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    write_tree(tree, dense())
    write_tree(disk, run(), run(strength=0.7))
    (tree / "a").symlink_to(disk)
    (tree / "b").symlink_to(disk / "001")
    (tree / "c").symlink_to("000")
    (disk / "loop").symlink_to(tree)
    assert [row["folder"] for row in run_folder.read_runs(tree)] == [
        str(tree / name) for name in ("000", "a/000", "a/001")
    ]
    assert len(run_folder.read_runs(tree, disk, tmp_path)) == 3
    assert status.started_folders(tree) == [tree / name for name in ("000", "a/000", "a/001")]


def test_an_unfinished_run_is_no_result(tmp_path):
    write_tree(tmp_path, dense())
    run_folder.start_run(tmp_path / "001", {"seed": 42}, {})
    assert len(run_folder.read_runs(tmp_path)) == 1
    assert run_folder.unfinished_runs(tmp_path) == [tmp_path / "001"]
    assert not run_folder.is_complete(tmp_path / "001")


def test_starting_again_removes_the_earlier_result(tmp_path):
    write_tree(tmp_path, dense())
    run_folder.start_run(tmp_path / "000", {"seed": 42}, {})
    assert [path.name for path in (tmp_path / "000").iterdir()] == ["args.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match=r"all_results\.json is not written: .*not JSON compliant"):
        write_tree(tmp_path, run(score=value))
    assert not run_folder.is_complete(tmp_path / "000")


def test_nan_is_never_read(tmp_path):
    write_tree(tmp_path, run(score=0.25))
    path = tmp_path / "000" / "all_results.json"
    path.write_text(path.read_text().replace("0.25", "NaN"))
    with pytest.raises(ValueError, match=r"000/all_results\.json is not valid JSON: it holds NaN"):
        run_folder.read_runs(tmp_path)


def test_every_missing_key_is_named(tmp_path):
    result = run()
    del result["recipe"], result["levels"][0]["chance"]
    with pytest.raises(ValueError, match=r"000 lacks recipe, levels\[\]\.chance"):
        write_tree(tmp_path, result)
    with pytest.raises(ValueError, match="lacks levels"):
        run_folder.write_run(tmp_path, {**run(), "levels": []}, {})
    assert run_folder.read_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ('{"eval_accuracy": 0.9}', "was not written by this project"), ("[]", "lacks")],
)
def test_a_foreign_result_is_named(tmp_path, text, message):
    (tmp_path / "all_results.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        run_folder.read_runs(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'all_results.json'} ")


def test_a_crash_between_items_and_result_leaves_an_unfinished_run(tmp_path, monkeypatch):
    def crash(path, content):
        raise KeyboardInterrupt

    run_folder.start_run(tmp_path, {}, {})
    monkeypatch.setattr(run_folder, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        run_folder.write_run(tmp_path, run(), {"idx": np.arange(3)})
    assert (tmp_path / "items.npz").exists()
    assert not run_folder.is_complete(tmp_path) and run_folder.unfinished_runs(tmp_path) == [tmp_path]


def test_a_crash_within_a_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    run_folder.replace_file(path, b"before")

    def crash(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space"):
        run_folder.replace_file(path, b"after")
    assert path.read_bytes() == b"before" and [found.name for found in tmp_path.iterdir()] == ["file"]


def test_names_are_synced_after_the_contents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    run_folder.replace_file(tmp_path / "file", b"content")
    assert synced == [f"{tmp_path}/file.{os.getpid()}.partial", str(tmp_path)]


@pytest.mark.parametrize(("code", "refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_names_is_taken_as_it_is(tmp_path, monkeypatch, code, refused):
    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError) if refused else contextlib.nullcontext():
        run_folder.replace_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_full_disk_leaves_an_unfinished_run_and_no_partial_file(tmp_path):
    """The disk is a limit on the size of files; the kernel refuses the write, not a stand-in."""
    run_folder.start_run(tmp_path, {}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run_folder.write_run(tmp_path, run(), {"idx": np.random.default_rng(0).random(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["args.json"]
    run_folder.write_run(tmp_path, run(), {"idx": np.arange(3)})
    assert run_folder.is_complete(tmp_path)


def test_starting_removes_what_killed_processes_left(tmp_path):
    for name in ("all_results.json.7.partial", "items.npz.8.partial", "failure.json", "failure.json.9.partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / "notes.partial").write_text("of the user")
    run_folder.start_run(tmp_path, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "notes.partial"]


def test_a_run_that_another_process_holds_is_not_written(tmp_path):
    text = f"filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={'0' * 32}\nduration={leases.LEASE_SECONDS}\n"
    (tmp_path / leases.OWNER_FILE).write_text(text)
    with pytest.raises(leases.LostRunError, match="taken over by process 1 of elsewhere"):
        run_folder.start_run(tmp_path, {}, {})
    with pytest.raises(leases.LostRunError):
        run_folder.write_run(tmp_path, run(), {"idx": np.arange(3)})
    assert [path.name for path in tmp_path.iterdir()] == [leases.OWNER_FILE]


def test_a_failure_is_read_back(tmp_path):
    assert run_folder.read_failure(tmp_path) is None
    run_folder.write_failure(tmp_path, OSError(28, "No space left on device"))
    found = run_folder.read_failure(tmp_path)
    assert found["error"] == "OSError: [Errno 28] No space left on device" and found["pid"] == os.getpid()
    assert found["host"] and datetime.datetime.fromisoformat(found["time"]).tzinfo


def test_what_a_killed_process_leaves_behind_is_not_read(tmp_path):
    write_tree(tmp_path, dense())
    done = tmp_path / "000" / "all_results.json"
    done.rename(tmp_path / "000" / "all_results.json.123.partial")
    assert run_folder.read_runs(tmp_path) == [] and not run_folder.is_complete(tmp_path / "000")


def test_items_that_would_need_pickle_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        run_folder.write_run(tmp_path, run(), {"answer": np.array(["a", None], dtype=object)})
    assert not run_folder.is_complete(tmp_path)


def test_a_run_with_other_arguments_is_refused_and_the_difference_named(tmp_path):
    write_tree(tmp_path, run(seed=41))
    folder = tmp_path / "000"
    run_folder.check_same_run(folder, run_folder.recorded_arguments(folder))
    with pytest.raises(run_folder.DifferentRunError, match=r"seed: 42 here, 41 there\); .*--overwrite"):
        run_folder.check_same_run(folder, {**run_folder.recorded_arguments(folder), "seed": 42})
    run_folder.check_same_run(tmp_path / "empty", {"seed": 1})


def test_the_same_run_twice_is_refused(tmp_path):
    write_tree(tmp_path, run(seed=41), run(seed=42), run(strength=0.6), run("sparse_to_dense"), run(fraction=0.5))
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(seed=42), warmup=9)
    with pytest.raises(ValueError, match=r"the same run \(setting 1, .*seed 42\).* keep one") as error:
        run_folder.check_runs(run_folder.read_runs(tmp_path))
    assert f"{tmp_path}/001 (here) and {tmp_path}/005 (there) differ in warmup: None here, 9 there" in str(error.value)


def test_the_magnitude_scope_is_a_coordinate_of_unstructured_sparsity_alone(tmp_path):
    write_tree(tmp_path, run(), run(magnitude_scope="layer"), dense(magnitude_scope="global"))
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, dense(magnitude_scope="layer"))
    with pytest.raises(ValueError, match="the same run"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_two_levels_of_one_run_are_not_the_same_run_twice(tmp_path):
    row = {**run(), "folder": "a"}
    run_folder.check_runs([{**row, "level": 1}, {**row, "level": 2}])


def test_different_recipes_are_refused_with_the_closest_pair(tmp_path):
    write_tree(tmp_path, run(strength=0.1), run(strength=0.2))
    write_tree(tmp_path, run(strength=0.9, recipe="two", seed=43), run(strength=0.1, recipe="two", seed=42), lr=3)
    with pytest.raises(ValueError, match=r"setting 1, model lab/model-a, task qnli were made with different") as error:
        run_folder.check_runs(run_folder.read_runs(tmp_path))
    expected = f"{tmp_path}/000 (here) and {tmp_path}/003 (there) differ in lr: None here, 3 there; seed: 41 here, 42"
    assert expected in str(error.value)


def test_recipes_are_compared_within_a_task_and_model_only(tmp_path):
    write_tree(tmp_path, run(), run(task="sst2", recipe="two"), run(model="lab/model-b", recipe="three"))
    run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_different_precision_is_refused_where_the_recipes_hash_does_not_tell(tmp_path):
    """As of older runs, whose hash left it out."""
    for seed, precision in ((41, "no"), (42, "bf16")):
        write_tree(tmp_path, run(seed=seed, precision=precision), precision_used=precision)
    with pytest.raises(ValueError, match=r"different recipes.*precision_used: 'no' here, 'bf16' there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_the_recipe_of_compression_does_not_concern_dense_runs(tmp_path):
    write_tree(tmp_path, dense(compression_recipe=None), run(compression_recipe="x"))
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(strength=0.6, compression_recipe="y"), noembed=True)
    with pytest.raises(ValueError, match=r"different recipes.*noembed: None here, True there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_arithmetic_of_a_kind_of_strength_concerns_no_other_kind(tmp_path):
    """As of GPT-2, fine-tuned: N:M is computed otherwise than before, a sparsity is not."""
    write_tree(tmp_path, run(strength="2:4", method_recipe="x"), method_arithmetic=2)
    write_tree(tmp_path, dense(), run(strength=0.5))
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(strength="2:4", seed=42))
    with pytest.raises(ValueError, match=r"compression magnitude were made .*method_arithmetic: 2 here, 1 there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_two_files_of_one_name_are_never_averaged_but_each_strength_may_have_its_own(tmp_path):
    """A file that names every weight holds for one strength alone."""
    write_tree(tmp_path, dense(), run(strength=0.4, allocation="plan"), allocation="sha256:a")
    write_tree(tmp_path, run(strength=0.5, allocation="plan"), run(strength=0.4), allocation="sha256:b")
    write_tree(tmp_path, run(strength=0.4, allocation="plan", seed=43), allocation="sha256:a")
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(strength=0.4, allocation="plan", seed=42), allocation="sha256:b")
    with pytest.raises(ValueError, match=r"compression magnitude, allocation plan, strength 0.4 were made") as error:
        run_folder.check_runs(run_folder.read_runs(tmp_path))
    expected = f"{tmp_path}/001 (here) and {tmp_path}/005 (there) differ in allocation: 'sha256:a' here, 'sha256:b' "
    assert expected in str(error.value)


@pytest.mark.parametrize(("option", "label"), [("only_layers", "1"), ("skip_layers", "without_1")])
def test_layers_of_one_label_are_the_same_at_every_strength(tmp_path, option, label):
    """1 is a block; *.1* is every weight with .1 in its name, as in blocks 1, 10 and 11."""
    write_tree(tmp_path, dense(), run(strength=0.4, layers=label), run(strength=0.5, layers=label), **{option: "1"})
    run_folder.check_runs(run_folder.read_runs(tmp_path))
    write_tree(tmp_path, run(strength=0.6, layers=label), **{option: "*.1*"})
    with pytest.raises(ValueError, match=rf"layers {label} were made .* {option}: '1' here, '\*\.1\*' there"):
        run_folder.check_runs(run_folder.read_runs(tmp_path))


def test_json_is_readable_by_any_parser(tmp_path):
    write_tree(tmp_path, dense())
    assert json.loads((tmp_path / "000" / "all_results.json").read_text())["seed"] == 41


def test_environment_says_where_a_run_was_made(monkeypatch):
    monkeypatch.setattr("sys.argv", ["a script.py", "--output_dir", "$(touch x)"])
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = run_folder.describe_environment("cpu", data_sha256="abc")
    assert found["device"] == "cpu" and found["data_sha256"] == "abc"
    assert found["packages"]["numpy"] == np.__version__
    assert shlex.split(found["command"])[1:] == ["a script.py", "--output_dir", "$(touch x)"]
    assert found["num_processes"] == 4 and found["job"]["SLURM_JOB_ID"] == "17"
    assert {"git_commit", "git_dirty", "python", "platform", "host", "time"} <= found.keys()
