"""Calibration against known distortions, scikit-learn, and properties of each method."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from udc_model.decisions.calibration import (
    METHODS,
    Calibration,
    _cross_validated,
    _fit_isotonic,
    fit_calibration,
    fit_temperature,
    negative_log_likelihood,
)
from udc_model.errors import UdcError
from udc_model.evaluation.metrics import Scored, split_metrics


def _calibration_error(targets, p):
    return split_metrics(Scored(targets, p.argmax(axis=1), p, 1 - np.eye(p.shape[1])), 15)["expected_calibration_error"]


def _draw(rng, logits):
    p = softmax(logits, axis=1)
    return (p.cumsum(axis=1) > rng.random((len(p), 1))).argmax(axis=1)


@pytest.fixture
def true_logits(rng):
    return rng.normal(0, 2, (3000, 3))


def test_fit_recovers_the_temperature(rng):
    logits = rng.normal(0, 2, (200_000, 4))
    targets = _draw(rng, logits)
    for true in (0.25, 1.0, 3.0):
        assert fit_temperature(logits * true, targets) == pytest.approx(true, rel=0.02)


def test_temperature_lowers_the_calibration_error_and_keeps_argmax(rng, true_logits):
    targets, overconfident = _draw(rng, true_logits), true_logits * 4
    before = Calibration().probabilities(overconfident)
    after = fit_calibration("temperature", overconfident, targets).probabilities(overconfident)
    errors = [_calibration_error(targets, p) for p in (before, after)]
    assert errors[1] < 0.2 * errors[0]
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()


def test_temperature_equals_scikit_learn(rng):
    x = rng.normal(size=(3000, 2))
    targets = _draw(rng, np.column_stack([x[:, 0], x[:, 1], np.zeros(3000)]))
    model = LogisticRegression(C=1e6).fit(x, targets)
    model.coef_, model.intercept_ = model.coef_ * 3, model.intercept_ * 3  # overconfident
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature", ensemble=False).fit(x, targets)
    logits = model.decision_function(x)
    ours = fit_calibration("temperature", logits, targets).probabilities(logits)
    assert ours == pytest.approx(theirs.predict_proba(x), abs=2e-3)


def test_isotonic_equals_scikit_learn_except_near_0_and_1(rng, true_logits):
    targets = _draw(rng, true_logits)

    class Scores:
        classes_ = np.arange(3)

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return softmax(x, axis=1)

        def __sklearn_is_fitted__(self):
            return True

    theirs = CalibratedClassifierCV(_classifier(Scores()), method="isotonic", ensemble=False).fit(true_logits, targets)
    ours = fit_calibration("isotonic", true_logits, targets).probabilities(true_logits)
    inner = (ours > 0.01).all(axis=1)  # theirs reaches 0 and 1
    assert ours[inner] == pytest.approx(theirs.predict_proba(true_logits)[inner], abs=5e-3)
    assert ours.min() > 0


def _classifier(scores):
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Wrapped(ClassifierMixin, BaseEstimator):
        classes_ = scores.classes_
        fit, predict_proba, __sklearn_is_fitted__ = scores.fit, scores.predict_proba, scores.__sklearn_is_fitted__

        def predict(self, x):
            return self.predict_proba(x).argmax(axis=1)

    return FrozenEstimator(Wrapped())


def test_vector_and_dirichlet_recover_distortions_of_their_families(rng):
    weight, bias = np.array([0.5, 2.0, 1.0]), np.array([0.0, 1.5, -1.0])
    mixing = np.array([[1.0, 0.3, 0.0], [0.0, 0.5, 0.2], [0.4, 0.0, 1.5]])
    for method, true in (
        ("vector", lambda z: z * weight + bias),
        ("dirichlet", lambda z: log_softmax(z, axis=1) @ mixing + bias),
    ):
        train, test = rng.normal(0, 2, (4000, 3)), rng.normal(0, 2, (4000, 3))
        targets, labels = _draw(rng, true(train)), _draw(rng, true(test))
        best = log_loss(labels, softmax(true(test), axis=1))
        losses = {name: log_loss(labels, fit_calibration(name, train, targets).probabilities(test)) for name in METHODS}
        assert losses[method] == pytest.approx(best, abs=0.006)
        assert losses["temperature"] > best + 0.05
        assert losses["isotonic"] < losses["temperature"]


def test_auto_selects_the_simplest_sufficient_method(rng, true_logits):
    true_logits = true_logits[:800]
    targets = _draw(rng, true_logits)
    assert fit_calibration("auto", true_logits * 3, targets).method == "temperature"
    distorted = true_logits * np.array([0.5, 2.0, 1.0]) + np.array([0.0, 1.5, -1.0])
    assert fit_calibration("auto", distorted, targets).method in ("vector", "dirichlet")


def test_cross_validation_keeps_groups_in_one_fold(rng, true_logits):
    """Copies of an image in two folds would favour the method with the most parameters."""
    few = true_logits[:40]
    targets, groups = np.repeat(_draw(rng, few), 5), np.repeat(np.arange(40), 5)
    logits = np.repeat(few, 5, axis=0)
    ungrouped, grouped = (_cross_validated(_fit_isotonic, logits, targets, units) for units in (None, groups))
    assert grouped > ungrouped + 0.02


def test_auto_raises_for_fewer_than_two_samples_of_a_class():
    with pytest.raises(UdcError, match="two images of each class"):
        fit_calibration("auto", np.eye(3), np.arange(3))


def test_a_single_group_cannot_be_cross_validated(rng, true_logits, caplog):
    few, groups = true_logits[:40], np.zeros(40, dtype=int)
    targets = _draw(rng, few)
    with pytest.raises(UdcError, match="two groups in the calibration split"):
        fit_calibration("auto", few, targets, groups)
    assert fit_calibration("vector", few, targets, groups).method == "temperature"
    assert "one group is too small to test vector" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_every_method_returns_probabilities_and_round_trips_through_json(method, rng, true_logits):
    fitted = fit_calibration(method, true_logits[:300], _draw(rng, true_logits[:300]))
    loaded = Calibration(method, json.loads(json.dumps(fitted.parameters)))
    extreme = np.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    p = loaded.probabilities(np.vstack([true_logits, extreme]))
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert (p == fitted.probabilities(np.vstack([true_logits, extreme]))).all()


def test_negative_log_likelihood_equals_scikit_learn(rng):
    logits, targets = rng.normal(0, 2, (100, 3)), rng.integers(0, 3, 100)
    assert negative_log_likelihood(logits, targets, 1.7) == pytest.approx(
        log_loss(targets, softmax(logits / 1.7, axis=1), labels=[0, 1, 2])
    )


def test_temperature_is_one_if_none_is_best():
    targets = np.array([0, 1, 0, 1])
    logits = np.where(np.eye(2)[targets] > 0, 1.0, -1.0)  # all right: the likelihood increases without bound
    assert fit_temperature(logits, targets) == 1.0


def test_temperature_at_the_bound_logs_a_warning(caplog):
    logits, targets = np.array([[5.0, 0.0]] * 2 + [[0.0, 5.0]] * 2), np.array([1, 1, 0, 0])
    assert 2 < fit_temperature(logits, targets) < 10  # four images are little evidence
    assert fit_temperature(np.tile(10 * logits, (5000, 1)), np.tile(targets, 5000)) > 300
    assert "at the bound" in caplog.text


def _few(rng, per_class, overconfidence, classes=5):
    """Logits and targets of a fair model, whose calibrated logits are divided by the overconfidence."""
    targets = np.repeat(np.arange(classes), per_class)
    return 2 * overconfidence * (rng.normal(0, 1, (len(targets), classes)) + 2 * np.eye(classes)[targets]), targets


@pytest.mark.parametrize("per_class", [2, 5, 18])
def test_a_temperature_of_few_images_is_not_worse_than_none(rng, per_class):
    """Nor than that of the largest likelihood, which a hundred times as many copies of the images have."""
    for overconfidence, is_calibrated in ((1.0, True), (2.0, False)):
        test, labels = _few(rng, 1500, overconfidence)
        excess = []
        for _ in range(40):
            logits, targets = _few(rng, per_class, overconfidence)
            copies = np.tile(logits, (100, 1)), np.tile(targets, 100)
            temperatures = fit_temperature(logits, targets), fit_temperature(*copies)
            excess.append([negative_log_likelihood(test, labels, t) - negative_log_likelihood(test, labels)
                           for t in temperatures])  # fmt: skip
        mean, error = np.mean(excess, axis=0), np.std(excess, axis=0) / np.sqrt(40)
        assert mean[0] < mean[1] + (0 if is_calibrated else 0.02)
        assert mean[0] < (0.02 if is_calibrated else -5 * error[0])  # nats, of 0.5 to 0.8


@pytest.mark.parametrize("method", ["vector", "dirichlet", "isotonic", "auto"])
def test_few_images_do_not_select_many_parameters(rng, method, caplog):
    """A Dirichlet calibration of three images a class can have a log loss of 4 nats instead of 0.6."""
    test, labels = _few(rng, 500, 1.0)
    for per_class in (2, 6):
        logits, targets = _few(rng, per_class, 1.0)
        fitted = fit_calibration(method, logits, targets)
        assert fitted.method in ("none", "temperature")
        excess = log_loss(labels, fitted.probabilities(test)) - log_loss(labels, softmax(test, axis=1))
        assert excess < 0.1
    if method != "auto":
        assert f"the smallest class do not show that {method} is better" in caplog.text


def test_a_class_of_one_image_is_calibrated_by_temperature(caplog):
    logits, targets = np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [1.5, 1.0]]), np.array([0, 0, 1, 0])
    assert fit_calibration("isotonic", logits, targets).method == "temperature"
    assert "a class of 1 images is too small to test isotonic" in caplog.text


def test_a_distortion_that_few_images_show_is_corrected(rng):
    logits = rng.normal(0, 2, (200, 3))
    biased = logits + np.array([0.0, 3.0, -3.0])
    targets = _draw(rng, logits)
    keep = np.concatenate([np.flatnonzero(targets == k)[:19] for k in range(3)])
    assert fit_calibration("vector", biased[keep], targets[keep]).method == "vector"
