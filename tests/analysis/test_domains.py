"""Tables, figures and summary of multi-domain learning, on runs made up so that every number can be worked out."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from of_runs import domains, minorities
from synthetic_runs import run, write_tree

from analysis import tuned_plots, tuned_sections
from analysis.cautions import domain_cautions
from analysis.contrasts import DOMAIN_COLUMNS, MEAN, MINORITY_COLUMNS, domain_table, minority_table
from analysis.replicates import resampled_levels
from harness import run_folder

LABELS = np.tile([0, 1], 10)  # 20 items a domain, chance 1/2


def domain_run(
    transfer: str, strength: float | None, right: dict[str, int], share: dict[str, float], **changes
) -> dict:
    """A run that has the first `right` items of each domain right."""
    base = run(transfer, strength, setting="multi_domain", task="mood", mixture=str(share), **changes)
    (like,) = base["levels"]
    items, levels = {}, []
    for domain, count in right.items():
        prediction = np.where(np.arange(20) < count, LABELS, 1 - LABELS)
        items |= {f"prediction_{domain}": prediction, f"label_{domain}": LABELS}
        own = {"level": domain, "score": count / 20, "share": share[domain], "train_rows": 1, "num_examples": 20}
        levels.append({**like, **own, "difficulty": 1 - share[domain], "stderr": 0.05})
    return {**base, "levels": levels, "items": items}


MOVIES, TWEETS = {"movies": 0.9, "tweets": 0.1}, {"movies": 0.1, "tweets": 0.9}


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    """Two mixtures, dense and sparse at 0.5."""
    write_tree(
        tmp_path,
        domain_run("dense_transfer", None, {"movies": 20, "tweets": 18}, MOVIES),
        domain_run("sparse_transfer", 0.5, {"movies": 16, "tweets": 12}, MOVIES),
        domain_run("dense_transfer", None, {"movies": 18, "tweets": 20}, TWEETS),
        domain_run("sparse_transfer", 0.5, {"movies": 14, "tweets": 18}, TWEETS),
    )
    return run_folder.read_runs(tmp_path)


def sections(rows: list[dict]) -> list[str]:
    return tuned_sections.domain_section(domain_table(rows), minority_table(rows))


def cautions(rows: list[dict]) -> list[str]:
    return domain_cautions(rows, domain_table(rows), minority_table(rows))


def stretched(estimate: float, bound: float, items: int) -> float:
    """A bound moved away from the estimate as Student's quantile and exponential weights of few items ask for."""
    students = scipy.stats.t.ppf(0.975, items - 1) / scipy.stats.norm.ppf(0.975)
    return estimate + (bound - estimate) * students * ((items + 1) / (items - 1)) ** 0.5


def point(table: list[dict], **wanted) -> dict:
    (found,) = [row for row in table if all(row[name] == value for name, value in wanted.items())]
    return found


def replicates_of(rows: list[dict], row: dict, resamples: int) -> np.ndarray:
    """The score of a run at a row's level, and those of its resamples."""
    return resampled_levels(rows, resamples)[row["level"]].scores[row["folder"]]


def test_drops_of_every_domain_by_hand(rows: list[dict]):
    table = domain_table(rows, resamples=20_000)
    assert len(table) == 8 and all(set(row) == set(DOMAIN_COLUMNS) for row in table)
    tweets = point(table, level="tweets", condition=str(MOVIES), strength=0.5)
    assert tweets["normalized_drop"] == pytest.approx((12 - 18) / 18)
    assert tweets["corrected_drop"] == pytest.approx((0.6 - 0.9) / (0.9 - 0.5))
    assert tweets["points_drop"] == pytest.approx(-0.3) and tweets["relative_percent"] == pytest.approx(100 * 12 / 18)
    # 6 of 20 items are lost: below, the bound of Clopper and Pearson; above, an unseen item is found instead.
    assert tweets["points_low"] == pytest.approx(stretched(-0.3, -scipy.stats.beta.ppf(0.975, 7, 14), 20), abs=0.015)
    rng = np.random.default_rng(0)
    lost, rest, unseen = rng.gamma(6, size=200_000), rng.gamma(14, size=200_000), rng.exponential(size=200_000)
    high = np.quantile((unseen - lost) / (lost + rest + unseen), 0.975)
    assert tweets["points_high"] == pytest.approx(stretched(-0.3, high, 20), abs=0.015)
    # Of the 18 that the dense model has right 6 are lost, and an item that is lost is one more of them.
    low = -scipy.stats.beta.ppf(0.975, 7, 12)
    assert tweets["drop_low"] == pytest.approx(stretched(-6 / 18, low, 20), abs=0.02)
    assert tweets["corrected_low"] < -0.75 < tweets["corrected_high"]
    dense = point(table, level="tweets", condition=str(MOVIES), strength=None)
    assert dense["normalized_drop"] == dense["points_drop"] == 0 and dense["points_low"] is None
    assert [row["level"] for row in table[:4]] == ["movies", "movies", "tweets", "tweets"], "the largest share first"
    assert table[0]["model"] == "lab/model-a" and table[0]["dense_above_chance"] is True


def test_the_same_domain_as_minority_and_majority_by_hand(rows: list[dict]):
    table = minority_table(rows, resamples=10_000)
    assert len(table) == 3 and all(set(row) == set(MINORITY_COLUMNS) for row in table)
    tweets = point(table, level="tweets")
    assert (tweets["minority_share"], tweets["majority_share"]) == (0.1, 0.9)
    assert tweets["minority_corrected"] == pytest.approx(-0.75)
    assert tweets["majority_corrected"] == pytest.approx((0.9 - 1.0) / 0.5)
    assert tweets["corrected_effect"] == pytest.approx(-0.55)
    assert tweets["drop_effect"] == pytest.approx(-6 / 18 + 2 / 20)
    assert tweets["corrected_effect_low"] < -0.55 < tweets["corrected_effect_high"]
    # Shares of .9 and 1 instead of the .4 and .5 above chance: less than half as wide, as all that varies is.
    widths = [tweets[f"{stem}_effect_high"] - tweets[f"{stem}_effect_low"] for stem in ("drop", "corrected")]
    assert tweets["drop_effect_low"] < tweets["drop_effect"] < tweets["drop_effect_high"]
    assert 0.35 < widths[0] / widths[1] < 0.55
    assert tweets["lowest_seed_effect"] == tweets["highest_seed_effect"] == pytest.approx(-0.55)
    movies = point(table, level="movies")
    assert movies["corrected_effect"] == pytest.approx((0.7 - 0.9) / 0.4 - (0.8 - 1.0) / 0.5)
    mean = point(table, level=MEAN)
    assert mean["corrected_effect"] == pytest.approx((movies["corrected_effect"] + tweets["corrected_effect"]) / 2)
    widths = [row["corrected_effect_high"] - row["corrected_effect_low"] for row in (movies, tweets, mean)]
    # independent domains: the mean's error is half the root of the sum of their squares
    assert widths[2] == pytest.approx(np.hypot(widths[0], widths[1]) / 2, rel=0.15)


def test_mixtures_that_give_a_domain_the_same_share_are_averaged(tmp_path: Path):
    shares = [{"a": 0.8, "b": 0.1, "c": 0.1}, {"a": 0.1, "b": 0.8, "c": 0.1}, {"a": 0.1, "b": 0.1, "c": 0.8}]
    sparse = [{"a": 18, "b": 12, "c": 10}, {"a": 16, "b": 18, "c": 14}, {"a": 12, "b": 16, "c": 18}]
    runs = []
    for share, right in zip(shares, sparse, strict=True):
        runs.append(domain_run("dense_transfer", None, {"a": 20, "b": 20, "c": 20}, share))
        runs.append(domain_run("sparse_transfer", 0.5, right, share))
    table = minority_table(run_folder.read_runs(write_tree(tmp_path, *runs)))
    effects = {row["level"]: row["corrected_effect"] for row in table}
    # minority means 14, 14, 12 of 20; majority 18: (mean - 20) / 10 each
    assert effects == {
        "a": pytest.approx(-0.4), "b": pytest.approx(-0.4), "c": pytest.approx(-0.6),
        MEAN: pytest.approx(-1.4 / 3),
    }  # fmt: skip
    assert all(len(row["minority_conditions"]) == 2 for row in table[:3])


def test_seeds_are_averaged_and_their_range_is_kept(tmp_path: Path):
    runs = []
    for seed, count in ((1, 14), (2, 18)):
        for share in (MOVIES, TWEETS):
            few = share["tweets"] == 0.1
            runs.append(domain_run("dense_transfer", None, {"movies": 20, "tweets": 20}, share, seed=seed))
            right = {"movies": 20, "tweets": count if few else 20}
            runs.append(domain_run("sparse_transfer", 0.5, right, share, seed=seed))
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    found = point(domain_table(rows), level="tweets", condition=str(MOVIES), strength=0.5)
    assert found["seeds"] == (1, 2) and found["mean_score"] == 0.8
    effect = point(minority_table(rows), level="tweets")
    assert effect["corrected_effect"] == pytest.approx(-0.4)
    assert effect["lowest_seed_effect"] == pytest.approx(-0.6)
    assert effect["highest_seed_effect"] == pytest.approx(-0.2)


def test_only_seeds_that_all_sides_have_are_compared(tmp_path: Path):
    """Seed 1 learns more than seed 2, and pruning costs nothing; one sparse run is not finished yet."""
    kinds = (("dense_transfer", None), ("sparse_transfer", 0.5))
    runs = [
        domain_run(*kind, {"movies": count, "tweets": count}, share, seed=seed)
        for share in (MOVIES, TWEETS) for kind in kinds for seed, count in ((1, 20), (2, 16))
        if (share, kind[1], seed) != (MOVIES, 0.5, 1)
    ]  # fmt: skip
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    table = domain_table(rows)
    assert {row["normalized_drop"] for row in table} == {0.0}
    unfinished = point(table, level="tweets", condition=str(MOVIES), strength=0.5)
    assert unfinished["seeds"] == (2,) and unfinished["dense_mean_score"] == 0.8
    effects = minority_table(rows)
    assert {row["corrected_effect"] for row in effects} == {0.0} and {row["seeds"] for row in effects} == {(2,)}
    assert "The points do not have the same seeds" in "".join(cautions(rows))


def test_what_needs_the_dense_run_is_missing_without_it(tmp_path: Path):
    rows = run_folder.read_runs(
        write_tree(tmp_path, domain_run("sparse_transfer", 0.5, {"a": 9, "b": 8}, {"a": 0.9, "b": 0.1}))
    )
    for found in domain_table(rows):
        names = ("dense_mean_score", "normalized_drop", "corrected_drop", "drop_low", "points_drop", "relative_percent")
        assert all(found[name] is None for name in names)
    assert minority_table(rows) == []
    assert any("there is no dense transfer to compare with" in text for text in cautions(rows))
    text = domains(rows).axes[0].texts[0].get_text()
    assert "NO DENSE RUN" in text


def test_dense_at_chance_has_no_corrected_drop_and_is_cautioned(tmp_path: Path):
    share = {"a": 0.9, "b": 0.1}
    rows = run_folder.read_runs(write_tree(
        tmp_path, domain_run("dense_transfer", None, {"a": 20, "b": 11}, share),
        domain_run("sparse_transfer", 0.5, {"a": 15, "b": 10}, share),
    ))  # fmt: skip
    found = point(domain_table(rows), level="b", strength=0.5)
    assert found["dense_above_chance"] is False and found["corrected_drop"] is None
    told = cautions(rows)
    assert any(text.startswith("b (") and "not above chance" in text for text in told)
    assert any("cannot be told from its own difficulty" in text for text in told)


def test_runs_without_items_have_no_intervals(rows: list[dict]):
    for row in rows:
        (Path(row["folder"]) / run_folder.ITEMS_FILE).unlink(missing_ok=True)
    found = point(domain_table(rows), level="tweets", condition=str(MOVIES), strength=0.5)
    assert found["drop_low"] is None and found["normalized_drop"] is not None


def test_bleu_is_resampled_from_its_counts(tmp_path: Path):
    """Half of the sentences perfect, half without a word right: BLEU by hand, and an interval around its drop."""
    perfect, lost = [4, 4, 4, 3, 2, 1, 4, 3, 2, 1], [4, 4, 0, 0, 0, 0, 4, 3, 2, 1]
    runs = []
    for strength, counts in ((None, [perfect] * 20), (0.5, [perfect, lost] * 10)):
        base = run(
            "sparse_transfer" if strength else "dense_transfer", strength, setting="translation", task="t", shots=0
        )
        (like,) = base["levels"]
        level = {**like, "level": "a-b", "metric": "bleu", "score": 0.5 if strength else 1.0, "chance": 0.0,
                 "num_examples": 20, "share": None, "difficulty": None}  # fmt: skip
        runs.append({**base, "levels": [level], "items": {"bleu_counts_a-b": np.array(counts, dtype=np.int32)}})
    rows = run_folder.read_runs(write_tree(tmp_path, *runs))
    found = point(domain_table(rows), strength=0.5)
    assert found["condition"] == "no fine-tuning" and found["share"] is None
    assert found["drop_low"] < -0.5 < found["drop_high"] < 0
    drawn = replicates_of(rows, rows[1], 100)
    assert drawn[0] == 0.5 and drawn.shape == (101,) and 0 < drawn[1:].min() < 0.5 < drawn[1:].max() < 1
    assert np.allclose(replicates_of(rows, rows[0], 100), 1, rtol=0, atol=1e-12)  # rounded as the processor does
    assert len(domains(rows).axes) == 1
    assert any("is the only level" in text for text in cautions(rows))
    assert "| no fine-tuning | a-b |" in "\n".join(sections(rows))


def test_figures_have_a_panel_for_every_mixture_and_transfer(rows: list[dict]):
    figure = domains(rows)
    assert len(figure.axes) == 2
    labels = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == [
        "Dense Transfer",
        "movies, 90 %: no slope",
        "tweets, 10 %: no slope",
    ]
    effect = minorities(rows)
    heights = {line.get_label(): line.get_ydata()[0] for line in effect.axes[0].get_lines()}
    assert heights["tweets: 10 % and 90 %"] == pytest.approx(-55)


def test_the_band_of_an_effect_is_widened_to_the_seeds(rows: list[dict]):
    """A single strength has a bar: here from the lowest seed to the end of the interval."""
    (effect,) = [row for row in minority_table(rows) if row["level"] == "tweets"]
    low, high = effect["corrected_effect_low"] - 0.5, effect["corrected_effect_high"]
    figure = tuned_plots.minorities([{**effect, "lowest_seed_effect": low}], domain_table(rows))
    (bar,) = figure.axes[0].collections
    np.testing.assert_allclose(bar.get_segments(), [[[50, 100 * low], [50, 100 * high]]])


def test_figures_refuse_what_they_cannot_draw(rows: list[dict], tmp_path: Path):
    with pytest.raises(ValueError, match="the runs belong in 2 figures"):
        domains([*rows, {**rows[0], "task": "other"}])
    with pytest.raises(ValueError, match="no compressed model scored by domain"):
        domains([row for row in rows if row["strength"] is None])
    with pytest.raises(ValueError, match="no domain stands in two mixtures"):
        minorities([row for row in rows if row["mixture"] == str(MOVIES)])


def test_seeds_that_differ_widen_the_interval(tmp_path: Path):
    """One seed loses nothing and the other 8 of 20: the error of their mean is .2 over seeds alone."""
    runs = []
    for seed, count in ((1, 20), (2, 12)):
        runs.append(domain_run("dense_transfer", None, {"movies": 20, "tweets": 20}, MOVIES, seed=seed))
        runs.append(domain_run("sparse_transfer", 0.5, {"movies": 16, "tweets": count}, MOVIES, seed=seed))
    table = domain_table(run_folder.read_runs(write_tree(tmp_path, *runs)))
    movies, tweets = (point(table, level=level, strength=0.5) for level in ("movies", "tweets"))
    assert movies["points_drop"] == tweets["points_drop"] == pytest.approx(-0.2)
    assert tweets["points_low"] < -0.2 - 1.96 * 0.2 < movies["points_low"] < -0.2
    assert tweets["points_high"] > -0.2 + 1.96 * 0.2 > movies["points_high"] > -0.2


def test_too_few_items_have_no_interval(rows: list[dict], monkeypatch: pytest.MonkeyPatch):
    found = point(domain_table(rows, resamples=200), level="tweets", condition=str(MOVIES), strength=0.5)
    assert found["points_low"] is not None
    monkeypatch.setattr("analysis.resampling.MIN_CLUSTERS", 21)
    few = point(domain_table(rows, resamples=200), level="tweets", condition=str(MOVIES), strength=0.5)
    assert few["points_low"] is few["drop_low"] is few["corrected_high"] is None and few["points_drop"] is not None


def test_runs_share_the_draws_of_a_level_and_levels_have_their_own(rows: list[dict]):
    """Scores of both mixtures weigh the first items alike: what 14 and 16 right ones have in common is in step."""
    drawn = {(row["mixture"], row["level"]): replicates_of(rows, row, 2000) for row in rows if row["strength"] == 0.5}
    movies, other, tweets = (drawn[str(MOVIES), "movies"], drawn[str(TWEETS), "movies"], drawn[str(MOVIES), "tweets"])
    assert (movies >= other).all() and (movies[0], other[0]) == (0.8, 0.7)
    # 16 and 14 of 20 that start alike: correlation sqrt(14 * 4 / (6 * 16)).
    assert np.corrcoef(movies[1:], other[1:])[0, 1] == pytest.approx((14 * 4 / (6 * 16)) ** 0.5, abs=0.05)
    assert abs(np.corrcoef(movies[1:], tweets[1:])[0, 1]) < 0.1


def test_other_settings_are_passed_over(rows: list[dict]):
    others = [{**rows[0], "setting": 1, "task": "qnli", "folder": "elsewhere"}]
    assert domain_table(others) == []
    assert len(domain_table(rows + others)) == 8


def test_summary_says_what_shares_do(rows: list[dict]):
    text = "\n".join(sections(rows))
    assert "| tweets | sparse_transfer | 50 % | 10 % and 90 % | 0.900 and 1.000 | -75 % | -20 % | -55 % |" in text
    assert "How fast the score falls" in text and cautions(rows) == []

    def interval(row: dict, stem: str) -> str:
        return " to ".join(f"{100 * round(row[f'{stem}_{side}'], 3):.4g} %" for side in ("low", "high"))

    own = point(domain_table(rows), level="tweets", condition=str(MOVIES), strength=0.5)
    assert f"| -33.3 % | {interval(own, 'drop')} | -75 % | {interval(own, 'corrected')} | 1 |" in text
    effect = point(minority_table(rows), level="tweets")
    assert f"| -55 % | {interval(effect, 'corrected_effect')} | -55 % to -55 % |" in text
    dense = sections([row for row in rows if row["strength"] is None])
    assert not any("How fast" in line or "minority" in line for line in dense)


def test_a_model_that_gives_one_answer_in_a_domain_is_told(tmp_path: Path):
    """The sparse model calls every movie review good; it tells tweets apart."""
    dense, sparse = (
        domain_run(transfer, strength, {"movies": 16, "tweets": 16}, MOVIES)
        for transfer, strength in (("dense_transfer", None), ("sparse_transfer", 0.5))
    )
    sparse["items"]["prediction_movies"] = np.ones(20, dtype=int)
    write_tree(tmp_path, dense, sparse)
    (told,) = [line for line in cautions(run_folder.read_runs(tmp_path)) if "ONE ANSWER" in line]
    assert told.startswith("movies (") and "sparse_transfer: ONE ANSWER TO ALL ITEMS at 50 % (seed 41)" in told
