"""The familiarity of images: conformal p-values, and what follows from a small one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from udc_model.config import Params, override_params
from udc_model.decisions.checks import check_data
from udc_model.decisions.familiarity import MOST_DISTANCES, Familiarity, calibration_rows, evenly_spaced
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError

SHA = "0" * 64
LOGITS = np.array([[9.0, 0.0], [0.0, 9.0], [0.1, 0.0]])


def _familiarity(distances, **fields):
    return Familiarity(SHA, 8, 1, sorted(map(float, distances)), **fields)


def test_the_familiarity_is_the_rank_among_the_calibration_images(rng):
    calibration = rng.normal(5, 1, 40).round(1)  # with ties
    distances = np.concatenate([rng.normal(5, 3, 200).round(1), calibration, [np.inf, np.nan, 0.0]])
    expected = [(1 + sum(not other < each for other in calibration)) / 41 for each in distances[:-2]]
    values = _familiarity(calibration).of(distances)
    np.testing.assert_array_equal(values[:-2], expected)
    assert values[-3:].tolist() == [1 / 41, 1 / 41, 1.0]


def test_images_like_the_calibration_images_have_uniform_familiarities(rng):
    """Whatever the distribution of distances; on average over calibration splits, and never more than the level."""
    values = np.concatenate([_familiarity(rng.gamma(0.3, 1, 199)).of(rng.gamma(0.3, 1, 50)) for _ in range(400)])
    for level in (0.01, 0.05, 0.5):
        assert (values <= level).mean() == pytest.approx(level, abs=0.2 * level**0.5 * 0.1)
    counts = np.histogram(values, 10, (0, 1))[0] / len(values)
    np.testing.assert_allclose(counts, 0.1, atol=0.02)


@pytest.mark.parametrize(("n", "is_resolved"), [(0, False), (98, False), (99, True), (500, True)])
def test_a_small_calibration_split_flags_nothing(n, is_resolved):
    familiarity = _familiarity(range(n))
    assert familiarity.is_resolved == is_resolved
    assert familiarity.is_unfamiliar(familiarity.of(np.array([1e9]))).tolist() == [is_resolved]


def test_one_image_of_each_group_is_compared_with():
    assert calibration_rows(np.array([3, 3, 1, 3, 2, 1]), 6).tolist() == [0, 2, 4]
    assert calibration_rows(None, 3).tolist() == [0, 1, 2]
    assert calibration_rows(None, 0).tolist() == []
    rows = calibration_rows(None, 100_000)
    assert (len(rows), rows[0], rows[-1], len(set(rows))) == (MOST_DISTANCES, 0, 99_999, MOST_DISTANCES)
    assert evenly_spaced(5, 2).tolist() == [0, 4]
    distances = np.array([5, 9, 1, 9, 3, 9], np.float32)
    assert Familiarity.fit(SHA, (1, 8), distances, np.array([3, 3, 1, 3, 2, 1]), "warn").distances == [1, 3, 5]
    distances[0] = np.nan
    with pytest.raises(UdcError, match=r"^the features of 1 calibration images are not finite; train the model again"):
        Familiarity.fit(SHA, (1, 8), distances, None, "warn")


def _policy(**fields):
    return Policy(["a", "b"], [[0, 1], [1, 0]], refer=0.6, actions={"retest": [0.7, 0.8]}, **fields)


@pytest.mark.parametrize("decision", ["min_expected_cost", "argmax"])
def test_unfamiliar_images_are_referred(decision):
    values = np.array([0.01, 0.5, 0.0101])
    warn = _policy(decision=decision, familiarity=_familiarity(range(99)))
    refer = replace(warn, familiarity=replace(warn.familiarity, unfamiliar="refer"))
    assert warn.apply(LOGITS, values).decided.tolist() == [0, 1, 0]
    decisions = refer.apply(LOGITS, values)
    assert [refer.outcomes[k] for k in decisions.decided] == ["refer", "b", "a"]
    assert decisions.expected_cost[0] == pytest.approx(0.6)
    np.testing.assert_array_equal(decisions.expected_cost[1:], warn.apply(LOGITS).expected_cost[1:])
    assert refer.apply(LOGITS).decided.tolist() == [0, 1, 0]  # decides by the logits alone
    assert refer.is_unfamiliar(values).tolist() == [True, False, False]
    assert refer.costs_digest == warn.costs_digest == _policy(decision=decision).costs_digest


def test_the_file_has_it_and_files_of_earlier_versions_do_not(tmp_path):
    path = tmp_path / "policy.json"
    distances = np.random.default_rng(0).gamma(2, 1, 50).astype(np.float32)
    policy = _policy(familiarity=_familiarity(distances, unfamiliar="refer"))
    path.write_text(policy.to_json())
    assert Policy.load(path) == policy
    assert np.array_equal(np.array(Policy.load(path).familiarity.distances, np.float32), np.sort(distances))
    path.write_text(_policy().to_json())
    assert "familiarity" not in json.loads(path.read_text())
    assert Policy.load(path).familiarity is None
    assert _policy().familiarity_of(np.array([1.0])) is None


@pytest.mark.parametrize(("change", "message"), [
    ({"distances": [2.0, 1.0]}, "distances: must be in ascending order"),
    ({"distances": [-1.0]}, "familiarity.distances.0"),
    ({"distances": [0.0] * (MOST_DISTANCES + 1)}, "familiarity.distances"),
    ({"features": 2**40}, "familiarity.features"),
    ({"networks": 0}, "familiarity.networks"),
    ({"sha256": "../x"}, "familiarity.sha256"),
    ({"level": 0.0}, "familiarity.level"),
    ({"unfamiliar": "drop"}, "familiarity.unfamiliar"),
])  # fmt: skip
def test_values_that_are_not_allowed_are_named(tmp_path, change, message):
    path = tmp_path / "policy.json"
    values = json.loads(_policy(familiarity=_familiarity([1, 2])).to_json())
    values["familiarity"] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(UdcError) as error:
        Policy.load(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("fields", [{"refer": None}, {"decision": "cost_ceiling", "cost_ceiling": {
    "ceiling": 1.0, "confidence": 0.9, "threshold": 0.5}}])  # fmt: skip
def test_a_file_cannot_refer_where_it_must_not(tmp_path, fields):
    path = tmp_path / "policy.json"
    policy = replace(_policy(familiarity=_familiarity([1, 2], unfamiliar="refer")), **fields)
    path.write_text(policy.to_json())
    with pytest.raises(UdcError, match="must be warn if refer is null or the decision has a guarantee"):
        Policy.load(path)


@pytest.mark.parametrize(("settings", "counts", "groups", "message"), [
    (["costs.refer=0.5"], 99, None, None),
    ([], 99, None, "costs.unfamiliar: refer needs costs.refer, the cost of referring an image to a person; set it, or "
     "use warn"),
    (["costs.refer=0.5"], 98, None, "costs.unfamiliar: refer needs 99 images in the calibration split to tell 1 image "
     "in 100, but there are 98; raise data.splits.calibration, or use warn"),
    (["costs.refer=0.5"], 200, 40, "costs.unfamiliar: refer needs 99 groups in the calibration split to tell 1 image "
     "in 100, but there are 40; raise data.splits.calibration, or use warn"),
    (["costs.refer=0.5", "evaluate.decision=cost_ceiling", "evaluate.cost_ceiling={ceiling: 0.5, confidence: 0.9}"],
     200, None, "costs.unfamiliar: with refer, evaluate.decision: cost_ceiling is not proved, because more images are "
     "referred than in the proof; use warn"),
])  # fmt: skip
def test_refer_is_checked_before_training(settings, counts, groups, message):
    params: Params = override_params(["costs.unfamiliar=refer", "costs.preset=uniform", *settings])
    by_class = {"a": counts // 2, "b": counts - counts // 2}
    by_group = None if groups is None else [{"a": 3, "b": 2}] * groups
    if message is None:
        check_data(params, ["a", "b"], by_class, by_group)
        return
    with pytest.raises(UdcError) as error:
        check_data(params, ["a", "b"], by_class, by_group)
    assert message in str(error.value)
