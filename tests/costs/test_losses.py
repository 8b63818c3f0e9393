"""Losses: gradients, stability, published tables, and which posterior they take for a tie at 10:1."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from udc_model.costs import losses
from udc_model.params import LossParams

COSTS = torch.tensor([[0.0, 1.0, 2.0], [10.0, 0.0, 1.0], [3.0, 4.0, 0.0]])
ALL = [
    "cross_entropy", "seesaw", "expected_cost", "cost_regularized", "cost_weighted", "legacy_logit_adjustment",
    "legacy_logit_adjustment_regularized", "legacy_cost_matrix_cross_entropy",
]  # fmt: skip


def _loss(name, costs=COSTS, **options):
    reads = "loss" if name in ("cross_entropy", "seesaw") else "costs"
    loss = losses.TrainingLoss(LossParams(name=name, reads=reads, **options), costs, [5] * len(costs))
    loss.start_epoch(100)
    return loss


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_nan_at_extreme_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]], dtype=dtype, requires_grad=True)
    value = _loss(name)(logits, torch.tensor([1, 1]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_is_torchs():
    logits, targets = torch.randn(8, 3), torch.randint(0, 3, (8,))
    loss = losses.TrainingLoss(LossParams(label_smoothing=0.1, class_weights="balanced"), COSTS, [10, 20, 30])
    weight = torch.tensor([60 / 30, 60 / 60, 60 / 90])  # scikit-learn's n / (K * n_k)
    assert loss(logits, targets) == F.cross_entropy(logits, targets, weight, label_smoothing=0.1)


def test_expected_cost_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    assert losses.expected_cost(p.log(), torch.tensor([1]), COSTS) == pytest.approx(0.5 * 10 + 0.2 * 1)


def test_seesaw_by_the_papers_equations():
    logits = torch.tensor([[0.2, 1.0, -0.5], [2.0, 0.1, 0.3]])
    targets = torch.tensor([0, 2])
    seesaw = losses.SeesawLoss(3)
    seesaw.counts = torch.tensor([9.0, 3.0, 49.0])
    value = seesaw(logits, targets)
    n = np.array([10.0, 3.0, 50.0])
    total = 0.0
    for z, y in zip(logits.numpy().astype(float), targets.tolist(), strict=True):
        s = np.exp(z) / np.exp(z).sum()
        denominator = np.exp(z[y])
        for j in set(range(3)) - {y}:
            mitigation = 1.0 if n[y] <= n[j] else (n[j] / n[y]) ** 0.8
            compensation = 1.0 if s[j] <= s[y] else (s[j] / s[y]) ** 2.0
            denominator += mitigation * compensation * np.exp(z[j])
        total += -np.log(np.exp(z[y]) / denominator)
    assert value.item() == pytest.approx(total / 2, rel=1e-5)


def test_legacy_logit_adjustment_by_hand():
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 1.0]])
    value = losses.legacy_logit_adjustment(logits, torch.tensor([2, 0]), COSTS)
    raised = torch.tensor([[1.0, 3.0 + 4 * 3.0, 0.0], [2.0, 0.0, 1.0]])
    torch.testing.assert_close(value, F.cross_entropy(raised, torch.tensor([2, 0])))


def test_legacy_logit_adjustment_keeps_its_gradient_on_dear_errors():
    """With log(p + 1e-9) the gradient at gap 5, cost 10 was 1e-14 instead of 11."""
    logits = torch.tensor([[5.0, 0.0]], requires_grad=True)
    costs = torch.tensor([[0.0, 1.0], [10.0, 0.0]])
    losses.legacy_logit_adjustment(logits, torch.tensor([1]), costs).backward()
    assert logits.grad[0, 0] == pytest.approx(11.0, rel=1e-4)


def test_legacy_cost_matrix_cross_entropy_has_no_gradient_where_the_price_is_zero():
    logits = torch.tensor([[3.0, 1.0, 0.0]], requires_grad=True)
    value = losses.legacy_cost_matrix_cross_entropy(logits, torch.tensor([0]), COSTS)
    value.backward()
    assert value.item() == pytest.approx(np.log(3))
    assert (logits.grad == 0).all()


def test_lambda_warms_up():
    loss = losses.TrainingLoss(
        LossParams(name="cost_regularized", reads="costs", cost_lambda=6.0, warmup_epochs=2), COSTS, [1, 1, 1]
    )
    weights = []
    for epoch in range(4):
        loss.start_epoch(epoch)
        weights.append(loss.cost_weight)
    assert weights == [2.0, 4.0, 6.0, 6.0]


@pytest.mark.parametrize(
    ("name", "options", "threshold"),
    [
        ("cross_entropy", {}, 0.50),
        ("cost_weighted", {}, 1 / 11),
        ("cost_regularized", {"cost_lambda": 0.1}, 0.49),
        ("cost_regularized", {"cost_lambda": 10.0}, 0.20),
        ("expected_cost", {}, 1 / 11),
    ],
)
def test_effective_binary_threshold_at_ten_to_one(name, options, threshold):
    """The posterior of the dear class at which the loss's optimal margin changes sign."""
    costs = torch.tensor([[0.0, 1.0], [10.0, 0.0]])
    loss = _loss(name, costs, **options)
    margins = torch.linspace(-12, 12, 4801)
    logits = torch.stack([-margins / 2, margins / 2], dim=1)
    risks = []
    for y in (0, 1):
        targets = torch.full((1,), y)
        risks.append(torch.stack([_unweighted(loss, row[None], targets) for row in logits]))
    best = [margins[((1 - p) * risks[0] + p * risks[1]).argmin()].item() for p in np.linspace(0.01, 0.99, 197)]
    found = next(p for p, margin in zip(np.linspace(0.01, 0.99, 197), best, strict=True) if margin > 0)
    assert found == pytest.approx(threshold, abs=0.011)


def _unweighted(loss, logits, targets):
    """The loss of one sample; a weighted mean over one sample would divide its weight out again."""
    if loss.params.name == "cost_weighted":
        return F.cross_entropy(logits, targets) * loss.costs[targets].sum()
    return loss(logits, targets)
