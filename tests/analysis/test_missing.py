from synthetic_runs import dense, level_run, run

from analysis import missing


def row(result, folder="a"):
    levels = {name: value for name, value in result.items() if name not in ("levels", "items")}
    return {**levels, **result["levels"][0], "level_index": 0, "folder": folder}


def lacking(*runs):
    names = ("compression", "transfer", "strength", "data_fraction", "seed")
    return [tuple(found[name] for name in names) for found in missing.missing_runs([row(each) for each in runs])]


def test_a_full_grid_lacks_nothing():
    assert lacking(dense(), *[run(strength=strength, seed=41) for strength in (0.3, "2:4")]) == []
    assert lacking() == []


def test_strengths_seeds_and_amounts_of_data_are_crossed():
    runs = [dense(fraction=fraction, seed=seed) for fraction in (0.1, 1.0) for seed in (41, 42)]
    runs += [run(strength=0.3, fraction=0.1, seed=41), run(strength=0.5, fraction=1.0, seed=42)]
    # two strengths, two amounts of data and two seeds make eight
    assert len(lacking(*runs)) == 6
    assert ("magnitude", "sparse_transfer", 0.3, 1.0, 42) in lacking(*runs)
    assert not [found for found in lacking(*runs) if found[1] == "dense_transfer"]


def test_a_compression_lacks_what_others_have_of_the_kinds_that_it_takes():
    runs = [level_run(), level_run("magnitude", 0.3), level_run("magnitude", 0.5), level_run("wanda", 0.5)]
    runs += [level_run("gptq", ("bits", 4)), level_run("rtn", ("bits", 3))]
    assert lacking(*runs) == [
        ("gptq", None, 3, None, 0), ("rtn", None, 4, None, 0), ("wanda", None, 0.3, None, 0),
    ]  # fmt: skip


def test_seeds_are_a_compressions_own():
    """Magnitude takes no calibration text, and is run once where Wanda is run with several."""
    runs = [level_run(), level_run("magnitude", 0.5), level_run("wanda", 0.5, seed=0), level_run("wanda", 0.5, seed=1)]
    assert lacking(*runs) == []


def test_other_models_settings_and_tasks_have_grids_of_their_own():
    assert lacking(run(strength=0.3), run(strength=0.5, task="sst2"), run(strength=0.7, model="other")) == []


def test_the_lines_name_way_place_and_seeds():
    runs = [run(strength=0.3, seed=41), run(strength=0.3, seed=42), run(strength=0.5, seed=41), dense(seed=41)]
    found = missing.missing_runs([row(each) for each in runs])
    lines = missing.missing_lines(found)
    assert lines[0].startswith("Runs of the full grid of what the tree holds that are not there: 1 (all")
    assert lines[-1] == "| 1 | lab/model-a | qnli | sparse_transfer | 100 % data | 50 % (seed 42) |"


def test_a_long_list_is_cut_and_says_so():
    runs = [run(strength=0.3, task=f"task {number:02}") for number in range(50)]
    runs += [run("sparse_to_dense", 0.5, task=f"task {number:02}") for number in range(50)]
    lines = missing.missing_lines(missing.missing_runs([row(each) for each in runs]))
    assert lines[-1] == "And 60 more lines." and sum(line.startswith("| 1 ") for line in lines) == 40
