"""Losses: gradients, numerical stability, published equations, and effective decision thresholds at costs of 10:1."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from udc_model.config import LossParams, validate_params
from udc_model.config.loss import LOSS_OPTIONS
from udc_model.training import legacy_losses, losses
from udc_model.training.training_loss import TrainingLoss, training_frequencies

COSTS = torch.tensor([[0.0, 1.0, 2.0], [10.0, 0.0, 1.0], [3.0, 4.0, 0.0]])
ALL = list(LOSS_OPTIONS)


def _loss(name, costs=COSTS, **options):
    loss = TrainingLoss(LossParams(name=name, **options), costs, [5] * len(costs))
    loss.start_epoch(99, 100)
    return loss


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_finite_at_extreme_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 5.0]], dtype=dtype, requires_grad=True)
    value = _loss(name)(logits, torch.tensor([1, 1]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_equals_torch():
    logits, targets = torch.randn(8, 3), torch.randint(0, 3, (8,))
    loss = TrainingLoss(LossParams(label_smoothing=0.1, class_weights="balanced"), COSTS, [10, 20, 30])
    weight = torch.tensor([60 / 30, 60 / 60, 60 / 90])  # scikit-learn's n / (K * n_k)
    assert loss(logits, targets) == F.cross_entropy(logits, targets, weight, label_smoothing=0.1)


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_finite_differences(name, monkeypatch):
    """In double precision: ``float()``, which the losses call, is replaced by the identity."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    loss = _loss(name, COSTS.double())
    loss.counts = torch.tensor([5.0, 50.0, 500.0], dtype=torch.float64)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    if name == "seesaw":  # its factors are held constant by design, so they are made constant here
        loss.seesaw.q, loss.seesaw.counts = 0.0, loss.counts * 1e15
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits,))


def test_focal_equals_torchvision_for_two_classes():
    margins = torch.linspace(-8, 8, 33)
    logits = torch.stack([torch.zeros_like(margins), margins], dim=1)
    for gamma in (0.0, 0.5, 2.0, 5.0):
        for y in (0, 1):
            targets = torch.full((33,), y)
            expected = sigmoid_focal_loss(margins, targets.float(), alpha=-1, gamma=gamma, reduction="mean")
            torch.testing.assert_close(losses.focal(logits, targets, gamma), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses.focal(logits, targets, 0.0), F.cross_entropy(logits, targets))


def test_class_balanced_weights_equal_the_paper():
    """Cui et al. 2019: E_n = (1 - beta^n) / (1 - beta), weights 1 / E_n scaled to a sum of K."""
    effective = [1.0, 1 + 0.9, 1 + 0.9 + 0.81]  # geometric sums for n = 1, 2, 3
    raw = np.array([1 / e for e in effective])
    weights = losses.class_balanced_weights(torch.tensor([1.0, 2.0, 3.0]), 0.9)
    np.testing.assert_allclose(weights.numpy(), raw / raw.sum() * 3, rtol=1e-6)
    torch.testing.assert_close(losses.class_balanced_weights(torch.tensor([7.0, 70.0]), 0.0), torch.ones(2))
    near_one = losses.class_balanced_weights(torch.tensor([10.0, 40.0]), 1 - 1e-9)
    torch.testing.assert_close(near_one[0] / near_one[1], torch.tensor(4.0), rtol=1e-4, atol=0)


def test_ldam_equals_the_paper():
    margins = losses.ldam_margins(torch.tensor([16.0, 81.0, 10_000.0]), 0.5)
    np.testing.assert_allclose(margins.numpy(), [0.5, 0.5 * 2 / 3, 0.5 * 2 / 10], rtol=1e-6)
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    lowered = np.array([1.0, 2.0 - 1 / 3, 0.5]) * 3
    expected = np.log(np.exp(lowered - lowered.max()).sum()) + lowered.max() - lowered[1]
    assert losses.ldam(logits, torch.tensor([1]), margins, 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_ldam_reweights_in_the_last_fifth():
    loss = TrainingLoss(LossParams(name="ldam", class_balanced_beta=0.9), COSTS, [2, 20, 200])
    logits, targets = torch.randn(9, 3), torch.tensor([0, 1, 2] * 3)
    values = []
    for epoch in range(10):
        loss.start_epoch(epoch, 10)
        values.append(loss(logits, targets).item())
    assert len(set(values[:8])) == len(set(values[8:])) == 1
    assert values[0] != values[-1]


def test_logit_adjusted_equals_the_paper():
    logits, targets = torch.tensor([[0.3, -0.2], [1.0, 0.1]]), torch.tensor([0, 1])
    prior = np.array([0.75, 0.25])
    total = 0.0
    for z, y in zip(logits.numpy().astype(float), (0, 1), strict=True):
        other = 1 - y
        total += np.log(1 + (prior[other] / prior[y]) ** 0.5 * np.exp(z[other] - z[y]))
    value = losses.logit_adjusted(logits, targets, torch.tensor([30.0, 10.0]), 0.5)
    assert value.item() == pytest.approx(total / 2, rel=1e-5)


def test_expected_cost_of_one_sample():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    assert losses.expected_cost(p.log(), torch.tensor([1]), COSTS) == pytest.approx(0.5 * 10 + 0.2 * 1)


def test_seesaw_equals_the_paper():
    logits = torch.tensor([[0.2, 1.0, -0.5], [2.0, 0.1, 0.3]])
    targets = torch.tensor([0, 2])
    seesaw = losses.SeesawLoss(3)
    seesaw.counts = torch.tensor([9.0, 3.0, 49.0])
    seesaw.count(targets)
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


def test_legacy_logit_adjustment_raises_the_largest_logit_of_wrong_samples():
    logits = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 1.0]])
    value = legacy_losses.logit_adjustment(logits, torch.tensor([2, 0]), COSTS)
    raised = torch.tensor([[1.0, 3.0 + 4 * 3.0, 0.0], [2.0, 0.0, 1.0]])
    torch.testing.assert_close(value, F.cross_entropy(raised, torch.tensor([2, 0])))


def test_legacy_logit_adjustment_has_a_gradient_on_costly_mistakes():
    """Computed with log(p + 1e-9), the gradient at a gap of 5 and a cost of 10 would be 1e-14 instead of 11."""
    logits = torch.tensor([[5.0, 0.0]], requires_grad=True)
    costs = torch.tensor([[0.0, 1.0], [10.0, 0.0]])
    legacy_losses.logit_adjustment(logits, torch.tensor([1]), costs).backward()
    assert logits.grad[0, 0] == pytest.approx(11.0, rel=1e-4)


def test_legacy_cost_matrix_cross_entropy_has_no_gradient_if_the_cost_is_zero():
    logits = torch.tensor([[3.0, 1.0, 0.0]], requires_grad=True)
    value = legacy_losses.cost_matrix_cross_entropy(logits, torch.tensor([0]), COSTS)
    value.backward()
    assert value.item() == pytest.approx(np.log(3))
    assert (logits.grad == 0).all()


def test_cost_weight_rises_linearly():
    loss = TrainingLoss(LossParams(name="cost_regularized", cost_lambda=6.0, warmup_epochs=2), COSTS, [1, 1, 1])
    weights = []
    for epoch in range(4):
        loss.start_epoch(epoch, 4)
        weights.append(loss.cost_weight)
    assert weights == [2.0, 4.0, 6.0, 6.0]


@pytest.mark.parametrize(
    ("name", "options", "threshold"),
    [
        ("cross_entropy", {}, 0.50),
        ("focal", {}, 0.50),
        ("class_balanced", {}, 0.50),
        ("ldam", {}, 0.50),
        ("logit_adjusted", {}, 0.50),
        ("cost_weighted", {}, 1 / 11),
        ("cost_regularized", {"cost_lambda": 0.1}, 0.49),
        ("cost_regularized", {"cost_lambda": 10.0}, 0.20),
        ("expected_cost", {}, 1 / 11),
    ],
)
def test_effective_binary_threshold_at_ten_to_one(name, options, threshold):
    """The posterior of the costly class at which the optimal margin of the loss changes sign."""
    costs = torch.tensor([[0.0, 1.0], [10.0, 0.0]])
    loss = _loss(name, costs, **options)
    margins = torch.linspace(-12, 12, 4801)
    logits = torch.stack([-margins / 2, margins / 2], dim=1)
    risks = []
    for y in (0, 1):
        targets = torch.full((1,), y)
        risks.append(torch.stack([_unweighted(loss, row[None], targets) for row in logits]))
    best = [margins[((1 - p) * risks[0] + p * risks[1]).argmin()].item() for p in np.linspace(0.01, 0.99, 197)]
    crossing = next(p for p, margin in zip(np.linspace(0.01, 0.99, 197), best, strict=True) if margin > 0)
    assert crossing == pytest.approx(threshold, abs=0.011)


def _unweighted(loss, logits, targets):
    """The loss of one sample; a weighted mean over one sample would cancel its weight."""
    if loss.params.name == "cost_weighted":
        return F.cross_entropy(logits, targets) * loss.costs[targets].sum()
    return loss(logits, targets)


@pytest.mark.parametrize("diagonal", [0.0, -3.0])
def test_a_class_whose_mistakes_cost_nothing_has_no_weight(diagonal):
    """Parts of a batch add up to the batch, also parts, and batches, with this class only."""
    costs = torch.tensor([[0.0, 0.0, 0.0], [5.0, 0.0, 1.0], [2.0, 2.0, 0.0]]) + diagonal
    loss = _loss("cost_weighted", costs)
    logits, targets = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 2, 0])
    complete = loss(logits, targets)
    assert torch.isfinite(complete)
    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    total = sum(loss.share(targets[part], targets) * loss(logits[part], targets[part]) for part in parts)
    torch.testing.assert_close(total, complete)
    zero = logits[:2].requires_grad_()
    loss(zero, targets[:2]).backward()
    assert not zero.grad.any()
    assert loss.share(targets[:1], targets[:2]) == 0


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced"}, {"name": "class_balanced"},
                                     {"name": "logit_adjusted", "logit_adjusted_tau": 0.7}])  # fmt: skip
def test_learned_frequencies_are_the_best_constant_prediction(options, power):
    """The gradient of the loss over a batch with the drawn frequencies is zero there."""
    params = validate_params(
        {"loss": {"class_balanced_beta": 0.99} | options, "train": {"sampling_power": power}}, "test"
    )
    counts, drawn = [256, 64, 16], {1.0: [256, 64, 16], 0.5: [16, 8, 4], 0.0: [1, 1, 1]}[power]
    training = training_frequencies(params, counts)
    if options or power != 1:
        assert training.learned is not None
    logits = torch.tensor(training.learned or training.images).log().float().requires_grad_()
    targets = torch.arange(3).repeat_interleave(torch.tensor(drawn))
    TrainingLoss(params.loss, torch.zeros(3, 3), counts)(logits.expand(len(targets), 3), targets).backward()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["cross_entropy", "cost_weighted", "ldam"])
def test_a_loss_without_weights_by_frequency_learns_the_frequencies_of_the_images(name):
    params = validate_params({"loss": {"name": name}}, "test")
    assert training_frequencies(params, [3, 1]).learned is None
    params = validate_params({"loss": {"name": name}, "train": {"sampling_power": 0.0}}, "test")
    assert training_frequencies(params, [3, 1]).learned == [0.5, 0.5]
