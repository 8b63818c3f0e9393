"""Calibration: methods, fitted on the calibration split, that turn logits (N, K) into probabilities (N, K)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from udc_model.decisions.rows import by_rows
from udc_model.errors import UdcError

Floats = NDArray[np.float64]
Indices = NDArray[np.integer]
logger = logging.getLogger(__name__)

METHODS = ("none", "temperature", "vector", "dirichlet", "isotonic")  # by number of parameters
CROSS_VALIDATED = ("auto", "dirichlet")  # values of evaluate.calibration that need cross-validation
_LOG_T_BOUND = 6.0  # temperatures from 1/400 to 400
_LOG_T_SPREAD = 0.5  # of the prior of a temperature: most of trained models are between 0.4 and 2.7
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # candidates of Dirichlet calibration
_FOLDS = 5
_FEW = 20  # images of the smallest class; with fewer, temperatures have a prior and other methods must be tested
_FEWEST = 2  # images of each class that cross-validation needs
_SIMPLE = ("none", "temperature")


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration; ``parameters`` holds numbers and lists only, for JSON.

    ``none``: the softmax. ``temperature`` (Guo et al. 2017): ``softmax(z / T)``. ``vector`` (ibid.):
    ``softmax(w z + b)`` with a weight and a bias per class. ``dirichlet`` (Kull et al. 2019): ``softmax(W log p + b)``.
    ``isotonic`` (Zadrozny and Elkan 2002): an increasing function per class, one class against the rest, normalised to
    a sum of 1.
    """

    method: str = "none"
    parameters: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, logits: NDArray[np.floating], offset: Floats | None = None) -> Floats:
        """Calibrated probabilities (N, K) of logits (N, K), in double precision.

        Parameters
        ----------
        offset : (K,) from `logit_offset`, added after the temperature: it is exact, whatever the scale of the logits.
            The methods with a bias per class ignore it, since they learn it from the calibration split.
        """
        return by_rows(lambda rows: self._of_rows(rows, offset), logits)

    def _of_rows(self, logits: NDArray[np.floating], offset: Floats | None) -> Floats:
        z = np.asarray(logits, dtype=np.float64)
        match self.method:
            case "none":
                return np.asarray(softmax(_shifted(z, offset), axis=1))
            case "temperature":
                return np.asarray(softmax(_shifted(z / self.parameters["temperature"], offset), axis=1))
            case "vector":
                return np.asarray(softmax(z * self.parameters["weight"] + self.parameters["bias"], axis=1))
            case "dirichlet":
                features = log_softmax(z, axis=1)
                return np.asarray(softmax(features @ self.parameters["weight"] + self.parameters["bias"], axis=1))
            case "isotonic":
                return self._isotonic(np.asarray(softmax(z, axis=1)))
        raise ValueError(f"unknown calibration {self.method!r}")

    def _isotonic(self, p: Floats) -> Floats:
        steps = zip(self.parameters["x"], self.parameters["y"], strict=True)
        calibrated = np.column_stack([np.interp(p[:, k], x, y) for k, (x, y) in enumerate(steps)])
        return np.asarray(calibrated / calibrated.sum(axis=1, keepdims=True))


def _shifted(z: Floats, offset: Floats | None) -> Floats:
    return z if offset is None else z + offset


def fit_calibration(
    method: str, logits: Floats, targets: Indices, groups: Indices | None = None, offset: Floats | None = None
) -> Calibration:
    """Fit a method on logits (N, K) and targets (N,); ``auto`` selects the method of least cross-validated log loss.

    If a class has fewer than 20 samples, a method of many parameters is used only if its cross-validated log loss is
    lower by more than one standard error than that of temperature scaling, which is used otherwise (for ``auto``, or
    none).

    Parameters
    ----------
    groups : (N,) group of each sample; cross-validation keeps each group in one fold.
    offset : (K,), see `Calibration.probabilities`.

    Raises
    ------
    UdcError
        ``auto`` or ``dirichlet``, which use cross-validation, and a class has fewer than two samples, or all samples
        are of one group.
    """
    logits = np.asarray(logits, dtype=np.float64)
    fewest = _fewest(logits, targets)
    if method == "auto" or (method not in _SIMPLE and fewest < _FEW):
        method = _selected(method, logits, targets, groups, fewest, offset)
    return fit_method(method, logits, targets, groups, offset)


def _fewest(logits: Floats, targets: Indices) -> int:
    """Number of samples of the smallest class."""
    return int(np.bincount(targets, minlength=logits.shape[1]).min())


def fit_method(
    method: str, logits: Floats, targets: Indices, groups: Indices | None, offset: Floats | None = None
) -> Calibration:
    """Fit a method, however few samples there are; the parameters are those of `fit_calibration`, without ``auto``."""
    match method:
        case "none":
            return Calibration()
        case "temperature":
            return Calibration(method, {"temperature": fit_temperature(logits, targets, offset)})
        case "vector":
            return _fit_vector(logits, targets)
        case "dirichlet":
            losses = [
                _cross_validated(lambda z, y, penalty=penalty: _fit_dirichlet(z, y, penalty), logits, targets, groups)
                for penalty in (_PENALTIES if _fewest(logits, targets) >= _FEWEST else ())
            ]
            return _fit_dirichlet(logits, targets, _PENALTIES[int(np.argmin(losses))] if losses else _PENALTIES[-1])
        case "isotonic":
            return _fit_isotonic(logits, targets)
    raise ValueError(f"unknown calibration {method!r}")


def _selected(
    method: str, logits: Floats, targets: Indices, groups: Indices | None, fewest: int, offset: Floats | None
) -> str:
    """The method to fit by cross-validated log loss: for ``auto`` of all, otherwise this one or temperature.

    Parameters
    ----------
    fewest : samples of the smallest class.
    """
    num_groups = None if groups is None else len(np.unique(groups))
    if method in CROSS_VALIDATED:
        check_cross_validation(fewest, num_groups)
    if fewest < _FEWEST or num_groups == 1:
        reason = f"a class of {fewest} images" if fewest < _FEWEST else "one group"
        logger.warning("calibration: temperature, since %s is too small to test %s", reason, method)
        return "temperature"
    names = METHODS if method == "auto" else ("temperature", method)
    losses = {
        name: _cross_validated_losses(
            lambda z, y, name=name: fit_method(name, z, y, None, offset), logits, targets, groups, offset
        )
        for name in names
    }
    means = {name: float(each.mean()) for name, each in losses.items()}
    best, simple = min(means, key=means.__getitem__), min(set(names) & set(_SIMPLE), key=means.__getitem__)
    gain = losses[simple] - losses[best]
    if fewest < _FEW and gain.mean() <= gain.std() / np.sqrt(len(gain)):
        best = simple
    values = ", ".join(f"{name} {loss:.4f}" for name, loss in means.items())
    logger.info("calibration by cross-validated log loss: %s (%s)", best, values)
    if method not in ("auto", best):
        logger.warning("calibration: %s, since %d images of the smallest class do not show that %s is better",
                       best, fewest, method)  # fmt: skip
    return best


def _cross_validated(fit: Any, logits: Floats, targets: Indices, groups: Indices | None) -> float:
    """Mean of `_cross_validated_losses`."""
    return float(_cross_validated_losses(fit, logits, targets, groups).mean())


def _cross_validated_losses(
    fit: Any, logits: Floats, targets: Indices, groups: Indices | None, offset: Floats | None = None
) -> Floats:
    """Cross-validated log loss (nats) of each sample, (N,), of ``fit(logits, targets)``."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    classes = logits.shape[1]
    fewest = int(np.bincount(targets, minlength=classes).min())
    check_cross_validation(fewest, None if groups is None else len(np.unique(groups)))
    folds = min(_FOLDS, fewest)
    if groups is None:
        parts = StratifiedKFold(folds, shuffle=True, random_state=0).split(logits, targets)
    else:
        folds = min(folds, len(np.unique(groups)))
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(logits, targets, groups)
    p = np.empty_like(logits)
    for train, test in parts:
        p[test] = fit(logits[train], targets[train]).probabilities(logits[test], offset)
    return np.asarray(-np.log(np.maximum(p[np.arange(len(targets)), targets], np.finfo(float).eps)))


def check_cross_validation(fewest: int, num_groups: int | None) -> None:
    """Raise :class:`UdcError` if the calibration split is too small for cross-validation.

    Parameters
    ----------
    fewest : images of the smallest class.
    num_groups : groups of images; None if each image is its own group.
    """
    if fewest >= _FEWEST and num_groups != 1:
        return
    what = "images of each class" if fewest < _FEWEST else "groups"
    raise UdcError(
        f"evaluate.calibration: auto and dirichlet use cross-validation, which needs two {what} in the calibration "
        "split; raise data.splits.calibration, or set evaluate.calibration: temperature"
    )


def negative_log_likelihood(
    logits: NDArray[np.floating], targets: Indices, temperature: float = 1.0, offset: Floats | None = None
) -> float:
    """Mean negative log likelihood (nats per sample) of targets under ``softmax(logits / temperature + offset)``."""

    def of_targets(rows: NDArray[np.floating], of_rows: Indices) -> Floats:
        z = _shifted(np.asarray(rows, dtype=np.float64) / temperature, offset)
        z -= z.max(axis=1, keepdims=True)
        return np.asarray(z[np.arange(len(z)), of_rows] - np.log(np.exp(z).sum(axis=1)))

    return float(-by_rows(of_targets, logits, targets).mean())


def fit_temperature(logits: Floats, targets: Indices, offset: Floats | None = None) -> float:
    """The temperature T of least negative log likelihood, in [1/400, 400]; 1 if no other is better.

    If a class has fewer than 20 samples, it is the most probable temperature if log T is normal with mean 0, because
    the likelihood of few samples is often largest at a T that makes other samples' probabilities worse than without
    calibration. The negative log likelihood is convex in 1/T, so it has one minimum over log T. If all samples are
    classified right, it decreases without bound as T approaches 0; the result is then 1.
    """
    if not (_shifted(logits, offset).argmax(axis=1) != targets).any():
        return 1.0
    from scipy.optimize import minimize_scalar  # 0.2 s to import

    penalty = 1 / (2 * _LOG_T_SPREAD**2 * len(targets)) if _fewest(logits, targets) < _FEW else 0.0
    optimum = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, targets, float(np.exp(log_t)), offset) + penalty * log_t**2,
        bounds=(-_LOG_T_BOUND, _LOG_T_BOUND),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if not optimum.fun < negative_log_likelihood(logits, targets, offset=offset):
        return 1.0
    if abs(optimum.x) > _LOG_T_BOUND - 0.01:
        logger.warning("the best temperature, %.3g, is at the bound of the search: the logits hold almost no "
                       "information about the class", np.exp(optimum.x))  # fmt: skip
    return float(np.exp(optimum.x))


def _fit_vector(logits: Floats, targets: Indices) -> Calibration:
    """Weight and bias per class, with a small penalty towards 1 and 0 so that separable samples have an optimum."""
    n, classes = logits.shape
    one_hot = np.eye(classes)[targets]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight, bias = flat[:classes], flat[classes:]
        log_p = log_softmax(logits * weight + bias, axis=1)
        error = (np.exp(log_p) - one_hot) / n
        penalised = (((weight - 1) ** 2).sum() + (bias**2).sum()) / (2 * n)
        gradient = np.concatenate([(error * logits).sum(axis=0) + (weight - 1) / n, error.sum(axis=0) + bias / n])
        return -float((log_p * one_hot).sum()) / n + penalised, gradient

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    from scipy.optimize import minimize

    fitted = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Calibration("vector", {"weight": fitted[:classes].tolist(), "bias": fitted[classes:].tolist()})


def _fit_dirichlet(logits: Floats, targets: Indices, penalty: float) -> Calibration:
    """Weight matrix and bias, with ``penalty`` on off-diagonal weights and biases (ODIR of Kull et al. 2019)."""
    n, classes = logits.shape
    features, one_hot = log_softmax(logits, axis=1), np.eye(classes)[targets]
    off_diagonal = 1 - np.eye(classes)
    scale = 2 * penalty / np.array([classes * (classes - 1), classes])

    def loss(flat: Floats) -> tuple[float, Floats]:
        weight, bias = flat[:-classes].reshape(classes, classes), flat[-classes:]
        log_p = log_softmax(features @ weight + bias, axis=1)
        error = (np.exp(log_p) - one_hot) / n
        penalised = (scale[0] * (off_diagonal * weight**2).sum() + scale[1] * (bias**2).sum()) / 2
        by_weight = features.T @ error + scale[0] * off_diagonal * weight
        return -float((log_p * one_hot).sum()) / n + penalised, np.concatenate(
            [by_weight.ravel(), error.sum(axis=0) + scale[1] * bias]
        )

    start = np.concatenate([np.eye(classes).ravel(), np.zeros(classes)])
    from scipy.optimize import minimize

    fitted = minimize(loss, start, jac=True, method="L-BFGS-B").x
    weight = fitted[:-classes].reshape(classes, classes)
    return Calibration("dirichlet", {"weight": weight.tolist(), "bias": fitted[-classes:].tolist()})


def _fit_isotonic(logits: Floats, targets: Indices) -> Calibration:
    """An increasing function per class, within the bounds of the rule of succession, hence never 0 or 1."""
    from sklearn.isotonic import IsotonicRegression

    p, n = softmax(logits, axis=1), len(targets)
    steps = [
        IsotonicRegression(y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), out_of_bounds="clip").fit(p[:, k], targets == k)
        for k in range(p.shape[1])
    ]
    return Calibration("isotonic", {"x": [s.X_thresholds_.tolist() for s in steps],
                                    "y": [s.y_thresholds_.tolist() for s in steps]})  # fmt: skip
