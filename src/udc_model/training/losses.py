"""Training losses: functions of logits (N, K) and targets (N,), in float32 inside, mean over the batch.

Which of them leads to the decision of least cost by argmax for *any* cost matrix? Only ``expected_cost``. Cross entropy
and focal loss rank the classes by probability; ``class_balanced``, ``ldam``, ``logit_adjusted`` and ``seesaw`` know how
frequent the classes are, not what a mistake costs; the rest bend the probabilities by the prices. The default is
therefore cross entropy, followed by calibration and the minimum-risk decision (`udc_model.decisions.decision`). It is
consistent and survives a change of prices without training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from udc_model.config import LossParams


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """``-(1 - p_y)^gamma log p_y`` (Lin et al. 2017, equation 4) of the softmax; gamma = 0 is cross entropy."""
    log_p = logits.float().log_softmax(dim=1)
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    # log(1 - p_y), from the other classes: exact where p_y rounds to 1
    log_rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return -((gamma * log_rest).exp() * log_p[is_target]).mean()


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """``(1 - beta) / (1 - beta^n)`` for each class, scaled to a sum of K (Cui et al. 2019, equation 2).

    beta = 0 weights all classes alike, beta towards 1 by inverse frequency.
    """
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.sum() * len(counts)).float()


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins proportional to ``n^(-1/4)``, the rarest class's ``max_margin`` (Cao et al. 2019, equation 11)."""
    margins = counts.double() ** -0.25
    return (margins / margins.max() * max_margin).float()


def ldam(logits: Tensor, targets: Tensor, margins: Tensor, scale: float, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of ``scale`` times logits whose target is lowered by its class's margin (Cao et al. 2019, eq. 13).

    ``weight`` is for the last epochs: the paper's deferred re-weighting.
    """
    lowered = logits.float() - F.one_hot(targets, logits.shape[1]) * margins[targets, None]
    return F.cross_entropy(scale * lowered, targets, weight)


def logit_adjusted(logits: Tensor, targets: Tensor, counts: Tensor, tau: float) -> Tensor:
    """Cross entropy of logits plus ``tau`` times the log class frequency (Menon et al. 2021, equation 10).

    The logits alone then rank by balanced error.
    """
    return F.cross_entropy(logits.float() + tau * (counts / counts.sum()).log(), targets)


def expected_cost(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """``sum_j C[y, j] softmax(z)_j``, linear in the probabilities.

    Its gradient, ``p_j (C[y, j] - sum_k C[y, k] p_k)``, vanishes wherever p is near a corner, the wrong ones included:
    a net that has once settled on a class cannot leave it. Start it from another loss (`warm_expected_cost`).
    """
    return (costs[targets] * logits.float().softmax(dim=1)).sum(dim=1).mean()


def warm_expected_cost(logits: Tensor, targets: Tensor, costs: Tensor, share: float) -> Tensor:
    """From cross entropy to the expected cost as ``share`` goes from 0 to 1, prices in units of their mean.

    The scale changes no optimum; it makes the two losses, and the learning rate, comparable whatever the currency.
    """
    k = len(costs)
    scaled = costs / costs.abs().sum() * (k * (k - 1))
    return (1 - share) * F.cross_entropy(logits.float(), targets) + share * expected_cost(logits, targets, scaled)


def cost_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """Cross entropy plus ``weight`` times the expected cost under C scaled to a largest price of 1 (Galdran 2020)."""
    scaled = costs / costs.abs().max()
    return F.cross_entropy(logits.float(), targets) + weight * expected_cost(logits, targets, scaled)


def mean_prices(costs: Tensor) -> Tensor:
    """The mean price of each class's mistakes, (K,)."""
    off_diagonal = ~torch.eye(len(costs), dtype=torch.bool, device=costs.device)
    return (costs * off_diagonal).sum(dim=1) / (len(costs) - 1)


def cost_weighted(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy with each sample weighted by the mean price of its class's mistakes.

    Consistent with the cost matrix only where each row is constant off the diagonal (Elkan 2001).
    """
    return F.cross_entropy(logits.float(), targets, weight=mean_prices(costs))


class SeesawLoss:
    """Seesaw loss for long tails (Wang et al. 2021, equations 4 to 7), with its running class counts.

    ``-log [e^{z_y} / (e^{z_y} + sum_{j != y} S_yj e^{z_j})]`` with ``S = M Q``: ``M_yj = min(1, N_j / N_y)^p`` spares
    rare classes, ``Q_yj = max(1, s_j / s_y)^q`` (s the softmax, held constant) pays for mistakes. Knows class
    frequencies, not prices.
    """

    def __init__(self, num_classes: int, p: float = 0.8, q: float = 2.0) -> None:
        self.p, self.q = p, q
        self.counts = torch.zeros(num_classes)

    def count(self, targets: Tensor) -> None:
        """Add the targets (N,) of a training batch to the counts."""
        self.counts = self.counts.to(targets.device) + torch.bincount(targets, minlength=len(self.counts))

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (N, K)."""
        logits = logits.float()
        counts = self.counts.to(logits.device).clamp(min=1)
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
    class_counts : training images of each class, at least 1, for the losses that know how frequent classes are.
    """

    def __init__(self, params: LossParams, costs: Tensor, class_counts: Sequence[int]) -> None:
        self.params = params
        self.costs = costs.float()
        self.counts = torch.tensor(class_counts, dtype=torch.float32)
        self.seesaw = SeesawLoss(len(class_counts))
        self.cost_weight = 0.0
        self.cost_share = 1.0
        self.reweights = False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set what changes with the ``epoch`` (from 0) of ``epochs``.

        The weight of the cost term rises linearly to ``cost_lambda`` over ``warmup_epochs``, as does the share of the
        cost in ``expected_cost`` from 0 to 1; ``ldam`` re-weights the classes in the last fifth.
        """
        self.cost_share = min(1.0, epoch / self.params.warmup_epochs) if self.params.warmup_epochs else 1.0
        share = min(1.0, (epoch + 1) / (self.params.warmup_epochs + 1))
        self.cost_weight = self.params.cost_lambda * share
        self.reweights = epoch >= 0.8 * epochs

    def start_step(self, targets: Tensor) -> None:
        """Take notice of the targets (N,) of a whole batch, before the loss of it or of its parts is computed."""
        if self.params.name == "seesaw":
            self.seesaw.count(targets)

    def class_weights(self) -> Tensor | None:
        """What each class counts in the mean, (K,); None where all samples count alike."""
        match self.params.name:
            case "cross_entropy" if self.params.class_weights == "balanced":
                return self.counts.sum() / (len(self.counts) * self.counts)
            case "class_balanced":
                return class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "ldam" if self.reweights:
                return class_balanced_weights(self.counts, self.params.class_balanced_beta)
            case "cost_weighted":
                return mean_prices(self.costs)
        return None

    def share(self, part: Tensor, whole: Tensor) -> float:
        """What the mean loss of a part of a batch counts in that of the whole, by their targets."""
        weights = self.class_weights()
        if weights is None:
            return len(part) / len(whole)
        weights = weights.double().to(whole.device)
        return float(weights[part].sum() / weights[whole].sum())

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a float32 scalar."""
        params, costs, counts = self.params, self.costs.to(logits.device), self.counts.to(logits.device)
        weights = self.class_weights()
        weights = weights if weights is None else weights.to(logits.device)
        match params.name:
            case "cross_entropy":
                return F.cross_entropy(logits.float(), targets, weights, label_smoothing=params.label_smoothing)
            case "focal":
                return focal(logits, targets, params.focal_gamma)
            case "class_balanced":
                return F.cross_entropy(logits.float(), targets, weights)
            case "ldam":
                margins = ldam_margins(counts, params.ldam_max_margin)
                return ldam(logits, targets, margins, params.ldam_scale, weights)
            case "logit_adjusted":
                return logit_adjusted(logits, targets, counts, params.logit_adjusted_tau)
            case "seesaw":
                return self.seesaw(logits, targets)
            case "expected_cost":
                return warm_expected_cost(logits, targets, costs, self.cost_share)
            case "cost_regularized":
                return cost_regularized(logits, targets, costs, self.cost_weight)
            case "cost_weighted":
                return cost_weighted(logits, targets, costs)
            case "legacy_logit_adjustment":
                return legacy_logit_adjustment(logits, targets, costs)
            case "legacy_logit_adjustment_regularized":
                return legacy_logit_adjustment_regularized(logits, targets, costs, self.cost_weight)
            case "legacy_cost_matrix_cross_entropy":
                return legacy_cost_matrix_cross_entropy(logits, targets, costs)
