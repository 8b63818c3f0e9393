"""Loss functions of logits (N, K) and targets (N,), computed in float32; each returns the mean over the batch.

`expected_cost` is the only loss whose minimiser decides at least cost by argmax for every cost matrix. Cross entropy
and focal loss order the classes by probability. ``class_balanced``, ``ldam``, ``logit_adjusted`` and ``seesaw`` use the
class frequencies, but not the costs. The others distort the probabilities by the costs. The default is cross entropy,
followed by calibration and the decision of least expected cost (`udc_model.decisions.decision`): it is consistent, and
other costs need no new training run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """``-(1 - p_y)^gamma log p_y`` (Lin et al. 2017, equation 4) of the softmax; gamma = 0 is cross entropy."""
    log_p = logits.float().log_softmax(dim=1)
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    # log(1 - p_y), from the other classes: exact where p_y rounds to 1
    log_rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return -((gamma * log_rest).exp() * log_p[is_target]).mean()


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """Weight ``(1 - beta) / (1 - beta^n)`` of each class, scaled to a sum of K (Cui et al. 2019, equation 2).

    beta = 0 gives equal weights; beta towards 1 gives weights by inverse frequency.
    """
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.sum() * len(counts)).float()


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins proportional to ``n^(-1/4)``, ``max_margin`` for the rarest class (Cao et al. 2019, equation 11)."""
    margins = counts.double() ** -0.25
    return (margins / margins.max() * max_margin).float()


def ldam(logits: Tensor, targets: Tensor, margins: Tensor, scale: float, weight: Tensor | None = None) -> Tensor:
    """Cross entropy of ``scale`` times logits, the target's lowered by its class's margin (Cao et al. 2019, eq. 13).

    ``weight`` (K,) is the paper's deferred re-weighting, for the last epochs.
    """
    lowered = logits.float() - F.one_hot(targets, logits.shape[1]) * margins[targets, None]
    return F.cross_entropy(scale * lowered, targets, weight)


def logit_adjusted(logits: Tensor, targets: Tensor, counts: Tensor, tau: float) -> Tensor:
    """Cross entropy of logits plus ``tau`` times the log class frequency (Menon et al. 2021, equation 10).

    The argmax of the logits alone then minimises the balanced error.
    """
    return F.cross_entropy(logits.float() + tau * (counts / counts.sum()).log(), targets)


def expected_cost(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """``sum_j C[y, j] softmax(z)_j``, linear in the probabilities.

    Its gradient ``p_j (C[y, j] - sum_k C[y, k] p_k)`` vanishes wherever one class has nearly all probability, even if
    the class is wrong: a network cannot leave that state. Start from another loss (`warm_expected_cost`).
    """
    return (costs[targets] * logits.float().softmax(dim=1)).sum(dim=1).mean()


def warm_expected_cost(logits: Tensor, targets: Tensor, costs: Tensor, share: float) -> Tensor:
    """Cross entropy for ``share`` 0, expected cost for ``share`` 1, and a linear mixture between.

    The costs are divided by their mean off the diagonal. This changes no optimum, and makes the two losses and the
    learning rate comparable whatever the unit of the costs.
    """
    k = len(costs)
    scaled = costs / costs.abs().sum() * (k * (k - 1))
    return (1 - share) * F.cross_entropy(logits.float(), targets) + share * expected_cost(logits, targets, scaled)


def cost_regularized(logits: Tensor, targets: Tensor, costs: Tensor, weight: float) -> Tensor:
    """Cross entropy plus ``weight`` times the expected cost, the largest cost scaled to 1 (Galdran et al. 2020)."""
    scaled = costs / costs.abs().max()
    return F.cross_entropy(logits.float(), targets) + weight * expected_cost(logits, targets, scaled)


def mean_mistake_costs(costs: Tensor) -> Tensor:
    """The mean cost of the mistakes of each true class above that of its right decision, (K,), at least 0."""
    return (costs - costs.diagonal()[:, None]).sum(dim=1) / (len(costs) - 1)


def cost_weighted(logits: Tensor, targets: Tensor, costs: Tensor) -> Tensor:
    """Cross entropy with each sample weighted by the mean cost of its class's mistakes.

    Consistent with the cost matrix only if each row is constant off the diagonal (Elkan 2001). 0 for samples of classes
    whose mistakes cost nothing.
    """
    weights = mean_mistake_costs(costs)
    if not weights[targets].any():
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float(), targets, weight=weights)


class SeesawLoss:
    """Seesaw loss for long-tailed data (Wang et al. 2021, equations 4 to 7), with its running class counts.

    ``-log [e^{z_y} / (e^{z_y} + sum_{j != y} S_yj e^{z_j})]`` with ``S = M Q``. ``M_yj = min(1, N_j / N_y)^p`` reduces
    the penalty on rare classes; ``Q_yj = max(1, s_j / s_y)^q`` (s is the softmax, held constant) raises it for
    mistakes. It uses class frequencies, but not the costs.
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
        # S_yy = 1, and both logarithms are 0 there
        return F.cross_entropy(logits + log_mitigation + log_compensation, targets)
