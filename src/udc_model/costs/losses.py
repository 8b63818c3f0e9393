"""Training losses: functions of logits (N, K) and targets (N,), in float32 inside, mean over the batch.

Which of them leads to the decision of least cost by argmax for *any* cost matrix? Only ``expected_cost``. The others
estimate probabilities (cross entropy, seesaw) or bend them (the rest); the default is therefore cross entropy, followed
by calibration and the minimum-risk decision (`udc_model.costs.decision`), which is consistent and survives a change of
prices without training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from udc_model.params import COST_SENSITIVE_LOSSES, LossParams


def expected_cost(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """``sum_j C[y, j] softmax(z)_j``: linear in the probabilities, so it stalls far from a solution."""
    return (costs[targets] * logits.float().softmax(dim=1)).sum(dim=1).mean()


def cost_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """Cross entropy plus ``weight`` times the expected cost under C scaled to a largest price of 1 (Galdran 2020)."""
    scaled = costs / costs.abs().max()
    return F.cross_entropy(logits.float(), targets) + weight * expected_cost(logits, targets, scaled)


def cost_weighted(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy with each sample weighted by the mean price of its class's mistakes.

    Consistent with the cost matrix only where each row is constant off the diagonal (Elkan 2001).
    """
    off_diagonal = ~torch.eye(len(costs), dtype=torch.bool, device=costs.device)
    weight = (costs * off_diagonal).sum(dim=1) / (len(costs) - 1)
    return F.cross_entropy(logits.float(), targets, weight=weight)


class SeesawLoss:
    """Seesaw loss for long tails (Wang et al. 2021, equations 4 to 7), with its running class counts.

    ``-log [e^{z_y} / (e^{z_y} + sum_{j != y} S_yj e^{z_j})]`` with ``S = M Q``: ``M_yj = min(1, N_j / N_y)^p`` spares
    rare classes, ``Q_yj = max(1, s_j / s_y)^q`` (s the softmax, held constant) pays for mistakes. Knows class
    frequencies, not prices.
    """

    def __init__(self, num_classes: int, p: float = 0.8, q: float = 2.0) -> None:
        self.p, self.q = p, q
        self.counts = torch.zeros(num_classes)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Count the targets and return the mean loss of the batch."""
        logits = logits.float()
        self.counts = self.counts.to(logits.device)
        self.counts += torch.bincount(targets, minlength=len(self.counts))
        counts = self.counts.clamp(min=1)
        log_mitigation = self.p * (counts[None, :] / counts[targets][:, None]).log().clamp(max=0)
        log_s = logits.detach().log_softmax(dim=1)
        log_compensation = self.q * (log_s - log_s.gather(1, targets[:, None])).clamp(min=0)
        # S_yy = 1, and both logarithms are 0 there.
        return F.cross_entropy(logits + log_mitigation + log_compensation, targets)


def legacy_logit_adjustment(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Of the older repository: a wrong sample's largest logit is raised by ``C[y, argmax] |largest - target|``.

    Not consistent: zero margin is optimal for a wide range of posteriors. Kept for old configurations.
    """
    logits = logits.float()
    largest, predicted = logits.max(dim=1)
    margin = (largest - logits.gather(1, targets[:, None])[:, 0]).abs()
    raised = torch.where(predicted == targets, torch.zeros_like(margin), costs[targets, predicted] * margin)
    return F.cross_entropy(logits + F.one_hot(predicted, logits.shape[1]) * raised[:, None], targets)


def legacy_logit_adjustment_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """`legacy_logit_adjustment` plus ``weight`` times the expected cost under C scaled to [0, 1]."""
    scaled = (costs - costs.min()) / (costs.max() - costs.min())
    return legacy_logit_adjustment(logits, targets, costs) + weight * expected_cost(logits, targets, scaled)


def legacy_cost_matrix_cross_entropy(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Of the older repository: cross entropy of logits scaled by ``C[argmax, y] mean|z| / std(z)``.

    It reads C transposed, and where the price is 0 (every correct sample) the loss is log K and has no gradient.
    Kept for old configurations.
    """
    logits = logits.float()
    scale = costs[logits.argmax(dim=1), targets] * logits.abs().mean(dim=1) / logits.std(dim=1)
    return F.cross_entropy(logits * scale[:, None], targets)


class TrainingLoss:
    """The loss that ``loss.name`` asks for, callable as ``loss(logits (N, K), targets (N,))``.

    Parameters
    ----------
    params : the section ``loss``.
    costs : (K, K) cost matrix, rows true; only cost-sensitive losses look at it.
    class_counts : training images of each class, for ``class_weights: balanced``.
    """

    def __init__(self, params: LossParams, costs: Tensor, class_counts: Sequence[int]) -> None:
        self.params = params
        self.costs = costs.float()
        counts = torch.tensor(class_counts, dtype=torch.float32)
        balanced = params.class_weights == "balanced"
        self.class_weights = counts.sum() / (len(counts) * counts) if balanced else None
        self.seesaw = SeesawLoss(len(class_counts))
        self.cost_weight = 0.0

    def start_epoch(self, epoch: int) -> None:
        """Raise the weight of the cost term linearly to ``cost_lambda`` over ``warmup_epochs`` (``epoch`` from 0)."""
        share = min(1.0, (epoch + 1) / (self.params.warmup_epochs + 1))
        self.cost_weight = self.params.cost_lambda * share

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a float32 scalar."""
        name = self.params.name
        if name == "cross_entropy":
            weight = None if self.class_weights is None else self.class_weights.to(logits.device)
            return F.cross_entropy(logits.float(), targets, weight, label_smoothing=self.params.label_smoothing)
        if name == "seesaw":
            return self.seesaw(logits, targets)
        costs = self.costs.to(logits.device)
        if name in _WEIGHTED:
            return _WEIGHTED[name](logits, targets, costs, self.cost_weight)
        return _PRICED[name](logits, targets, costs)


_PRICED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "expected_cost": expected_cost,
    "cost_weighted": cost_weighted,
    "legacy_logit_adjustment": legacy_logit_adjustment,
    "legacy_cost_matrix_cross_entropy": legacy_cost_matrix_cross_entropy,
}
_WEIGHTED: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "cost_regularized": cost_regularized,
    "legacy_logit_adjustment_regularized": legacy_logit_adjustment_regularized,
}
assert {*_PRICED, *_WEIGHTED} == COST_SENSITIVE_LOSSES
