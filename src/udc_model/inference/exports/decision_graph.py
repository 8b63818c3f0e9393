"""What is exported: from an image to logits, probabilities, costs, decision and familiarity, in torch operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from udc_model.data.transforms import Preprocessing
from udc_model.decisions.actions import REFER
from udc_model.decisions.calibration import Calibration
from udc_model.decisions.familiarity import FAMILIARITY, UNFAMILIAR
from udc_model.decisions.policy import Policy
from udc_model.inference.exports.resampling import ToStored, pillow_may_resize_rows_first
from udc_model.inference.feature_distance import FeatureDistance
from udc_model.models.ensemble import Ensemble
from udc_model.models.staged import ImageClassifier

# For N images, K classes and D outcomes, in the order of an exported file:
# decision        (N,) int64, indices into the policy's outcomes: the classes, then the actions
# class           (N,) int64, the decision if it is a class; otherwise the class of least expected cost
# probabilities   (N, K) float32, calibrated, under the class frequencies of deployment
# expected_costs  (N, D) float32, of each outcome
# logits          (N, K) float32, of the network
OUTPUTS = ("decision", "class", "probabilities", "expected_costs", "logits")
# Of a policy with familiarity also:
# familiarity     (N,) float32, a p-value
# unfamiliar      (N,) bool, whether it is small
FAMILIARITY_OUTPUTS = (FAMILIARITY, UNFAMILIAR)
ALL_OUTPUTS = OUTPUTS + FAMILIARITY_OUTPUTS
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Prepare(nn.Module):
    """Decoded images (N, H, W, C) uint8 of any size to the network's input (N, C, size, size) float32."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.to_stored = ToStored(preprocessing, pillow_may_resize_rows_first())

    def forward(self, image: Tensor) -> Tensor:
        """Resize, crop and normalise."""
        return self.preprocessing.to_input(self.to_stored(image))


class Network(nn.Module):
    """The network's input (N, C, size, size) float32 to logits (N, K) float32, as `TrainedClassifier` computes them.

    Parameters
    ----------
    model : it is moved to the CPU, set to eval mode and converted to ``dtype``.
    flip_averaging : average the logits of each image and its mirror image.
    dtype : of weights and activations.
    has_features : return features too, (N, V, M, D) float32 of M networks for each of V views: the image and, with
        ``flip_averaging``, its mirror image.
    """

    def __init__(
        self, model: ImageClassifier | Ensemble, flip_averaging: bool = False, dtype: torch.dtype = torch.float32,
        has_features: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model.cpu().eval().to(dtype)
        self.flip_averaging, self.dtype, self.has_features = flip_averaging, dtype, has_features

    def forward(self, values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits, and features if ``has_features``."""
        views = [values, values.flip(-1)] if self.flip_averaging else [values]
        if not self.has_features:
            return _mean([torch.as_tensor(self.model(view.to(self.dtype)).logits).float() for view in views])
        computed = [self.model.logits_and_features(view.to(self.dtype)) for view in views]
        features = torch.stack([torch.stack(each, dim=1) for _, each in computed], dim=1)
        return _mean([logits.float() for logits, _ in computed]), features.float()


def _mean(logits: list[Tensor]) -> Tensor:
    return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2


class Decide(nn.Module):
    """`Policy.apply` as operators, in double precision: logits (N, K) to all `OUTPUTS` but the logits.

    Parameters
    ----------
    distance : for a policy with familiarity; the module then takes features (N, V, M, D) too, see `Network`, and
        returns `FAMILIARITY_OUTPUTS` too.
    """

    shift: Tensor
    decision_costs: Tensor
    outcome_costs: Tensor
    distances: Tensor

    def __init__(self, policy: Policy, distance: FeatureDistance | None = None) -> None:
        super().__init__()
        self.distance, self.familiarity = distance, policy.familiarity
        self.refer = policy.outcomes.index(REFER) if policy.refers_unfamiliar else None
        if policy.familiarity is not None:
            _constant(self, "distances", policy.familiarity.distances)
        self.calibrate = Calibrate(policy.calibration, policy.logit_offset)
        self.num_classes = len(policy.classes)
        self.has_shift = policy.training_prior is not None and policy.deployment_prior is not None
        if self.has_shift:
            _constant(self, "shift", np.array(policy.deployment_prior) / np.array(policy.training_prior))
        _constant(self, "decision_costs", policy.decision_costs)
        _constant(self, "outcome_costs", policy.outcome_costs)

    def forward(self, logits: Tensor, features: Tensor | None = None) -> tuple[Tensor, ...]:
        """Decide logits."""
        p = self.calibrate(logits.double())
        if self.has_shift:
            p = p * self.shift
            p = p / p.sum(dim=1, keepdim=True)
        compared = p @ self.decision_costs
        decision, class_ = compared.argmin(dim=1), compared[:, : self.num_classes].argmin(dim=1)
        expected_costs = (p @ self.outcome_costs).float()
        if features is None or self.distance is None or self.familiarity is None:
            return decision, class_, p.float(), expected_costs
        familiarity = self._familiarity(self.distance, features)
        is_unfamiliar = familiarity <= self.familiarity.level
        if self.refer is not None:
            decision = torch.where(is_unfamiliar, self.refer, decision)
        return decision, class_, p.float(), expected_costs, familiarity.float(), is_unfamiliar

    def _familiarity(self, distance: FeatureDistance, features: Tensor) -> Tensor:
        """`Familiarity.of` the mean distance over the views."""
        views = [distance(list(view.unbind(dim=1))) for view in features.unbind(dim=1)]
        distances = torch.stack(views).mean(dim=0).double()
        at_least_as_far = (self.distances >= distances[:, None]).sum(dim=1)
        return (1 + at_least_as_far).double() / (1 + len(self.distances))


class DecisionGraph(nn.Module):
    """Preparation, network and decision as one module.

    Attributes
    ----------
    prepare : None if the input is the network's.
    """

    def __init__(self, prepare: Prepare | None, network: Network, decide: Decide) -> None:
        super().__init__()
        self.prepare, self.network, self.decide = prepare, network, decide

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Decide images; the result has `names` as keys."""
        computed = self.network(image if self.prepare is None else self.prepare(image))
        if not self.network.has_features:
            return dict(zip(self.names, (*self.decide(computed), computed), strict=True))
        decided = self.decide(*computed)
        return dict(zip(self.names, (*decided[:4], computed[0], *decided[4:]), strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ALL_OUTPUTS if self.network.has_features else OUTPUTS


def traced(module: nn.Module, examples: Sequence[Tensor], dims: Sequence[str]) -> ExportedProgram:
    """The program of a module.

    Parameters
    ----------
    examples : an input for each argument.
    dims : names of the leading dimensions of each, which may have any size.
    """
    shapes = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(dims)}
    with torch.no_grad():
        return torch.export.export(module.eval(), tuple(examples), dynamic_shapes=(shapes,) * len(examples))


class Calibrate(nn.Module):
    """`Calibration.probabilities` as operators: logits (N, K) to probabilities (N, K), float64 both."""

    offset: Tensor
    temperature: Tensor
    weight: Tensor
    bias: Tensor
    start: Tensor
    value: Tensor
    slope: Tensor

    def __init__(self, calibration: Calibration, offset: NDArray[np.float64] | None = None) -> None:
        super().__init__()
        self.method = calibration.method
        self.has_offset = offset is not None
        if offset is not None:
            _constant(self, "offset", offset)
        parameters: dict[str, Any] = calibration.parameters
        if self.method == "isotonic":
            parameters = _segments(parameters["x"], parameters["y"])
        for name, values in parameters.items():
            _constant(self, name, values)

    def forward(self, z: Tensor) -> Tensor:
        """Calibrate logits."""
        match self.method:
            case "none":
                return self._shifted(z).softmax(dim=1)
            case "temperature":
                return self._shifted(z / self.temperature).softmax(dim=1)
            case "vector":
                return (z * self.weight + self.bias).softmax(dim=1)
            case "dirichlet":
                return (z.log_softmax(dim=1) @ self.weight + self.bias).softmax(dim=1)
            case "isotonic":
                p = self._interpolated(z.softmax(dim=1))
                return p / p.sum(dim=1, keepdim=True)
        raise ValueError(f"unknown calibration {self.method!r}")

    def _shifted(self, z: Tensor) -> Tensor:
        return z + self.offset if self.has_offset else z

    def _interpolated(self, p: Tensor) -> Tensor:
        """``np.interp`` of column k of p (N, K) at the points of class k."""
        is_reached = p[:, :, None] >= self.start
        index = (is_reached.sum(dim=2, keepdim=True) - 1).clamp(min=0)
        start, value, slope = (torch.gather(each.expand(p.shape[0], -1, -1), 2, index).squeeze(2)
                               for each in (self.start, self.value, self.slope))  # fmt: skip
        return value + slope * (p - start).clamp(min=0.0)


def _segments(x: list[list[float]], y: list[list[float]]) -> dict[str, NDArray[np.float64]]:
    """Points (x, y) of each of K classes as segments, (K, M) each: start, value at the start, and slope.

    Classes with fewer points have more segments that start at 2, which no probability reaches.
    """
    shape = len(x), max(map(len, x))
    start, value, slope = np.full(shape, 2.0), np.zeros(shape), np.zeros(shape)
    for k, (of_x, of_y) in enumerate(zip(x, y, strict=True)):
        start[k, : len(of_x)], value[k, : len(of_y)] = of_x, of_y
        widths = np.diff(of_x)
        slope[k, : len(widths)] = np.divide(np.diff(of_y), widths, out=np.zeros(len(widths)), where=widths > 0)
    return {"start": start, "value": value, "slope": slope}


def _constant(module: nn.Module, name: str, values: ArrayLike) -> None:
    """Give a module a float64 constant."""
    module.register_buffer(name, torch.tensor(np.asarray(values, dtype=np.float64)))
