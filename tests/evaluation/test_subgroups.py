"""The table of subgroups against values by hand, Fisher's exact test and Holm's correction; what is said, how often."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, fisher_exact

from udc_model.evaluation.intervals import difference_draws, two_sided_p_value
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.paired_test import holm
from udc_model.evaluation.subgroups import read_subgroup_table, subgroup_sentences, subgroup_table

COSTS = np.array([[0.0, 1.0], [10.0, 0.0]])


def _scored(targets, decided, costs=COSTS, top=0.9, groups=None, weights=None):
    targets, decided = np.array(targets), np.array(decided)
    p = np.full((len(targets), 2), 1 - top)
    p[np.arange(len(targets)), decided] = top
    return Scored(targets, decided, p, costs, weights, groups)


def _by_mistakes(mistakes, sizes, costs=COSTS):
    """Subgroups A, B, … of images of class 1, of which the first are decided as class 0; two images of class 0."""
    decided = np.concatenate([np.r_[np.zeros(k), np.ones(n - k)] for k, n in zip(mistakes, sizes, strict=True)])
    sites = [name for name, n in zip("ABCDEFGH", sizes, strict=False) for _ in range(n)]
    scored = _scored([1] * len(sites) + [0, 0], [*decided.astype(int), 0, 0], costs)
    return scored, {"site": [*sites, "", ""]}


def test_values_of_a_table_by_hand():
    scored = _scored([1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 1])
    table = subgroup_table(scored, {"site": ["A", "A", "B", "B", "B", ""]}, [], ["safe", "venomous"], 0.95)
    a, b = table.to_dict("records")
    assert (a["division"], a["subgroup"], a["images"], a["groups"], a["costly_mistakes"]) == ("site", "A", 2, 2, 1)
    assert (a["mean_cost"], a["right"], a["recall/venomous"]) == (5.0, 0.5, 0.5)
    assert a["calibration_gap"] == pytest.approx(0.9 - 0.5)
    assert (b["subgroup"], b["images"], b["costly_mistakes"]) == ("B", 3, 0)
    assert b["mean_cost"] == pytest.approx(1 / 3)
    assert (b["right"], b["recall/venomous"]) == (pytest.approx(2 / 3), 1.0)
    assert (a["cost_of_others"], a["difference"]) == (
        pytest.approx(1 / 3),
        pytest.approx(5 - 1 / 3),
    )  # not the last image
    assert b["difference"] == -a["difference"]
    assert a["p_value"] == b["p_value"] > 0.05
    assert (table["comparisons"] == 1).all()  # A against B and B against A are one


def test_intervals_hold_together():
    """Three subgroups: each interval has the level 1 - 0.05 / 3; shares have that of Clopper and Pearson."""
    scored, sites = _by_mistakes([4, 2, 0], [20, 20, 20])
    table = subgroup_table(scored, sites, [], ["safe", "venomous"], 0.95)
    assert table["subgroup"].tolist() == ["A", "B", "C"]
    for hits, row in zip((16, 18, 20), table.to_dict("records"), strict=True):
        expected = binomtest(hits, 20).proportion_ci(1 - 0.05 / 3)
        assert (row["right_low"], row["right_high"]) == pytest.approx(tuple(expected), abs=1e-9)
        assert row["mean_cost_high"] == pytest.approx(10 * (1 - expected.low), rel=0.03)
        assert row["mean_cost_low"] == pytest.approx(10 * (1 - expected.high), rel=0.05, abs=0.02)


def test_p_value_is_that_of_fisher_and_corrected_by_holm():
    mistakes, sizes = [9, 3, 1], [30, 40, 50]
    costs = np.array([[0.0, 0.0], [10.0, 0.0]])
    table = subgroup_table(*_by_mistakes(mistakes, sizes, costs), [], ["safe", "venomous"], 0.95).set_index("subgroup")
    one_sided = []
    for k in range(3):
        rest = (sum(mistakes) - mistakes[k], sum(sizes) - sizes[k])
        cells = [[mistakes[k], sizes[k] - mistakes[k]], [rest[0], rest[1] - rest[0]]]
        one_sided.append(min(fisher_exact(cells, side)[1] for side in ("less", "greater")))
    expected = holm([min(1.0, 2 * p) for p in one_sided])
    for name, p_value in zip("ABC", expected, strict=True):
        assert table.loc[name, "p_value"] == pytest.approx(p_value, rel=0.1, abs=0.004)
    assert (table["comparisons"] == 3).all()
    sentences = subgroup_sentences(table.reset_index(), 0.95)
    assert sentences[0].startswith("site A costs more than the rest: 3 against 0.444 per image (p = 0.00")
    assert sentences[0].endswith(", corrected for 3 comparisons)")
    assert [text.split(":")[0] for text in sentences[1:]] == ["site C costs less than the rest"] * (expected[2] <= 0.05)


def test_nothing_is_said_that_is_not_shown():
    table = subgroup_table(*_by_mistakes([3, 2], [20, 20]), [], ["safe", "venomous"], 0.95)
    (sentence,) = subgroup_sentences(table, 0.95)
    assert sentence.startswith("no subgroup is shown to differ in cost from the rest (smallest p = ")
    alone = subgroup_table(*_by_mistakes([3], [20]), [], ["safe", "venomous"], 0.95)
    assert subgroup_sentences(alone, 0.95) == ["no subgroup can be compared: each column has one value in this split"]
    assert np.isnan(alone.loc[0, "p_value"])


def test_groups_are_the_unit():
    """Images of one group decided alike: ten times the images do not lower the p-value."""
    scored, sites = _by_mistakes([4, 0], [8, 12])
    repeated = np.repeat(np.arange(22), 10)
    many = Scored(scored.targets[repeated], scored.decided[repeated], scored.probabilities[repeated], COSTS,
                  groups=repeated)  # fmt: skip
    of_groups = subgroup_table(many, {"site": [sites["site"][i] for i in repeated]}, [], ["a", "b"], 0.95)
    of_images = subgroup_table(scored, sites, [], ["a", "b"], 0.95)
    assert of_groups["images"].tolist() == [80, 120]
    assert of_groups["groups"].tolist() == [8, 12]
    for column in ("p_value", "mean_cost", "mean_cost_low", "mean_cost_high"):
        assert of_groups[column].tolist() == pytest.approx(of_images[column].tolist(), rel=1e-6)


def test_classes_without_images_have_no_recall():
    scored = _scored([1, 0, 0, 1], [1, 0, 1, 1])
    table = subgroup_table(scored, {"site": ["A", "A", "B", "B"]}, [(0, "safe")], ["safe", "b"], 0.95)
    assert "recall/safe" in table
    assert "recall/b" not in table
    only_a = subgroup_table(scored, {"site": ["A", "", "", "A"]}, [(0, "safe")], ["safe", "b"], 0.95)
    assert np.isnan(only_a.loc[0, "recall/safe"])
    uniform = subgroup_table(_scored([1, 0], [1, 0], 1 - np.eye(2)), {"s": ["A", "B"]}, [], ["a", "b"], 0.95)
    assert not [column for column in uniform if column.startswith("recall")]


def test_weights_of_images_count():
    scored = _scored([1, 1, 0, 0], [0, 1, 0, 1], weights=np.array([3.0, 1.0, 1.0, 1.0]))
    table = subgroup_table(scored, {"site": ["A", "A", "B", "B"]}, [], ["a", "b"], 0.95).set_index("subgroup")
    assert (table.loc["A", "mean_cost"], table.loc["B", "mean_cost"]) == (7.5, 0.5)


def test_names_like_missing_values_are_read_back(tmp_path):
    table = subgroup_table(_scored([1, 0], [1, 0]), {"site": ["NA", ""]}, [], ["a", "b"], 0.95)
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(read_subgroup_table(tmp_path / "table.csv"), table)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "size"), [(0.2, 1), (0.1, 4)])
def test_equal_subgroups_are_rarely_called_different(rate, size):
    """Five sites of unequal sizes with the same expected cost: at most 5 % of the tables call one different. More draws
    and settings are in benchmarks/verdicts.csv."""
    rng, tables, wrong = np.random.default_rng(1), 100, 0
    for _ in range(tables):
        counts = np.array([6, 10, 15, 30, 60])
        paid = rng.choice([0.0, 1.0, 10.0], (counts.sum(), 1), p=[1 - rate, rate / 2, rate / 2]).repeat(size, axis=1)
        sums, sizes = paid.sum(axis=1), np.full(counts.sum(), float(size))
        site = np.repeat(np.arange(5), counts)
        p_values = [
            two_sided_p_value(difference_draws((sums * (site == k), sums * (site != k)),
                                               (sizes * (site == k), sizes * (site != k)), 0.0, 10.0))
            for k in range(5)
        ]  # fmt: skip
        wrong += min(holm(p_values)) <= 0.05
    assert wrong / tables <= 0.05


def test_a_costlier_subgroup_is_found():
    scored, sites = _by_mistakes([12, 2, 2], [40, 40, 40])
    assert subgroup_sentences(subgroup_table(scored, sites, [], ["a", "b"], 0.95), 0.95)[0].startswith(
        "site A costs more"
    )


def _one_bad_site_of(count):
    """Sites of 20 images each; those of the first are all decided wrong, of the others one in 20."""
    targets = np.ones(20 * count, dtype=int)
    decided = np.where(np.arange(20 * count) % 20 == 0, 0, 1)
    decided[:20] = 0
    scored = _scored(targets, decided)
    return subgroup_table(scored, {"site": [f"{i // 20:03}" for i in range(20 * count)]}, [], ["a", "b"], 0.95)


def test_a_costlier_one_of_many_subgroups_is_found(monkeypatch):
    """40 comparisons need more than 1,000 draws, as 300 need more than the 10,000 that a single one has."""
    monkeypatch.setattr("udc_model.evaluation.intervals._DRAWS", 1000)
    table = _one_bad_site_of(40)
    first = subgroup_sentences(table, 0.95)[0]
    assert first.startswith("site 000 costs more than the rest: 10 against 0.5 per image (p = 0.01")
    assert first.endswith(", corrected for 40 comparisons)")


def test_subgroups_too_many_to_show_anything_are_said_to_be_untested(monkeypatch):
    monkeypatch.setattr("udc_model.evaluation.intervals._MOST_WEIGHTS", 0)  # as for very many groups: 1,000 draws
    assert subgroup_sentences(_one_bad_site_of(20), 0.95)[0].startswith("site 000 costs more")
    table = _one_bad_site_of(40)
    (sentence,) = subgroup_sentences(table, 0.95)
    assert sentence.startswith("the costs of 40 subgroups are not compared with the rest: ")
    assert table["p_value"].isna().all()
    assert table["difference"].notna().all()
