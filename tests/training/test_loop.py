"""The training loop: reproducibility, selection of the best epoch, frozen stages, accumulation, early ends, errors."""

import functools
import warnings

import numpy as np
import pytest
import torch

from udc_model.config import ConvNextParams, LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.logits import compute_logits
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training.distribution import Ranks
from udc_model.training.hardware import Hardware, pick_hardware
from udc_model.training.loop import classification_scores, train_model
from udc_model.training.session import CostMonitor, TrainingSession, check_sharding
from udc_model.training.training_loss import TrainingLoss

CLASSES = ["a", "b"]
DEFAULTS = {"epochs": 3, "batch_size": 16, "device": "cpu", "precision": "fp32"}  # auto depends on the machine
PREPROCESSING = Preprocessing(16)
MODELS = {
    "resnet": ModelParams(
        resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": ModelParams(
        model_type="convnext",
        convnext=ConvNextParams(
            patch_size=2,
            num_stages=2,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_scale_init_value=0.1,
            drop_path_rate=0.2,
        ),
    ),
}


def _split(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12, 4:12] += 120
    return PackedSplit(images, labels, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def _session(kind="resnet", seed=1, train_split=None, loss_fn=None, cost_monitor=None, **options):
    params = Params(train=TrainParams(**DEFAULTS | options), seed=seed)
    model_params = MODELS[kind] if isinstance(kind, str) else kind
    return TrainingSession(
        build_model(model_params, CLASSES, seed), loss_fn or TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1]),
        train_split or _split(50, 0), _split(30, 9), PREPROCESSING, params, pick_hardware(params.train),
        cost_monitor=cost_monitor,
    )  # fmt: skip


def _train(kind="resnet", **options):
    session = _session(kind, **{"augment": "standard", "horizontal_flip": True} | options)
    return session.model, train_model(session)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_equal_arguments_give_equal_bits(kind):
    _, first = _train(kind)
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 (global generators must have no effect)
    _, second = _train(kind)
    assert first.curves == second.curves
    assert all(torch.equal(first.best_state[key], second.best_state[key]) for key in first.best_state)
    _, other_seed = _train(kind, seed=2)
    assert first.curves != other_seed.curves


def _validation_log_loss(model, state):
    """The log loss of a model with these weights on the validation split, computed again."""
    model.load_state_dict(state)
    split = _split(30, 9)
    logits = compute_logits(lambda x: model.eval()(x).logits, split.images, PREPROCESSING, 7)
    return torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(split.labels)).item()


def test_result_has_the_weights_of_the_best_epoch():
    model, result = _train(epochs=6, learning_rate=0.05)
    losses = [row["validation_log_loss"] for row in result.curves]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert _validation_log_loss(model, result.best_state) == pytest.approx(min(losses), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_compiled_model_trains_alike(monkeypatch):
    """With torch's backend aot_eager; inductor would compile C++ for a minute or two."""
    compile_eagerly = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    _, plain = _train(epochs=2)
    model, compiled = _train(epochs=2, compile=True)
    assert model._compiled_call_impl is not None
    assert compiled.best_state.keys() == plain.best_state.keys()
    for row, expected in zip(compiled.curves, plain.curves, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "ranks", "precision", "message"),
    [
        ({}, Ranks(), "fp32", "a single process cannot shard a model"),
        ({}, Ranks(0, 2), "fp16", "the loss scaler of fp16"),
        ({"compile": True}, Ranks(0, 2), "fp32", "cannot be combined with train.compile"),
    ],
)
def test_impossible_sharding_raises(options, ranks, precision, message):
    with pytest.raises(UdcError, match=f"train.sharded: {message}"):
        check_sharding(TrainParams(sharded=True, **options), Hardware(torch.device("cpu"), precision), ranks)


def test_trained_model_can_be_exported_in_the_same_process():
    """Whatever the training run has set for its arithmetic."""
    model, _ = _train(epochs=1)
    image = torch.zeros(1, 3, 16, 16)
    exported = torch.export.export(model.eval(), (image,)).module()
    torch.testing.assert_close(exported(image).logits, model(image).logits)


def test_training_reaches_a_high_accuracy():
    _, result = _train(epochs=8, augment="none", learning_rate=3e-3)
    assert result.curves[-1]["validation_accuracy"] > 0.9


def test_early_stopping_ends_after_epochs_without_improvement():
    _, result = _train(epochs=40, early_stopping_patience=2, learning_rate=1e-9, monitor="accuracy")
    assert len(result.curves) < 40
    assert len(result.curves) >= result.best_epoch + 2
    assert not result.is_stopped


def test_on_epoch_ends_the_training_run():
    epochs = []
    result = train_model(_session(epochs=5), lambda record: bool(epochs.append(record.epoch)) or record.epoch == 2)
    assert epochs == [1, 2]
    assert len(result.curves) == 2
    assert result.is_stopped


def test_cost_monitor_selects_the_epoch_of_least_cost():
    """Its cost is a function of the logits of the calibration split and of the validation split, in this order."""
    costs, shapes = iter([0.7, 0.2, 0.5]), []

    def cost(calibration_logits, logits):
        shapes.append((calibration_logits.shape, logits.shape))
        return next(costs)

    result = train_model(_session(monitor="normalised_cost", cost_monitor=CostMonitor(_split(20, 4), cost)))
    assert result.best_epoch == 2
    assert shapes == [((20, 2), (30, 2))] * 3
    assert [row["validation_normalised_cost"] for row in result.curves] == [0.7, 0.2, 0.5]


def test_cost_monitor_accepts_an_empty_calibration_split():
    empty = PackedSplit(np.empty((0,), np.uint8), np.empty(0, np.int64), [], [], [])
    monitor = CostMonitor(empty, lambda calibration_logits, logits: float(calibration_logits.shape == (0, 2)))
    result = train_model(_session(epochs=1, monitor="normalised_cost", cost_monitor=monitor))
    assert result.curves[0]["validation_normalised_cost"] == 1.0


def test_frozen_stages_do_not_change():
    before = build_model(MODELS["resnet"], CLASSES, 1).state_dict()
    model, _ = _train(num_frozen_stages=1)
    for key, value in model.state_dict().items():
        is_frozen = key.startswith(("resnet.embedder", "resnet.encoder.stages.0"))
        if value.is_floating_point() and (is_frozen or "stages.1" in key):
            assert torch.equal(before[key], value) == is_frozen, key


def test_loss_that_is_not_finite_raises_with_the_images():
    with pytest.raises(UdcError, match=r"the loss is (nan|inf) in epoch \d, step \d.*Images: .*\.png"):
        _train(optimizer="sgd", learning_rate=1e30, epochs=5)


def test_single_training_image_is_enough():
    _train("convnext", train_split=_split(1, 0))


def test_unavailable_hardware_raises():
    assert pick_hardware(TrainParams(device="cpu", precision="bf16")).precision == "bf16"
    with pytest.raises(UdcError, match=r"train\.precision: fp16 needs a GPU"):
        pick_hardware(TrainParams(device="cpu", precision="fp16"))
    if not torch.cuda.is_available():
        with pytest.raises(UdcError, match=r"train\.device: cuda is not available"):
            pick_hardware(TrainParams(device="cuda"))


@pytest.mark.parametrize("loss", [{}, {"class_weights": "balanced"}, {"name": "class_balanced"}, {"name": "seesaw"},
                                  {"name": "ldam"}, {"name": "cost_weighted"}])  # fmt: skip
def test_accumulation_gives_the_result_of_the_complete_batch(loss):
    """Four parts of 16 give the weights of a batch of 64, without BatchNorm, with MixUp and clipped gradients."""
    plain = MODELS["convnext"].model_copy(
        update={"convnext": MODELS["convnext"].convnext.model_copy(update={"drop_path_rate": 0.0})}
    )
    results = []
    for parts in (1, 4):
        loss_fn = TrainingLoss(LossParams(**loss), torch.tensor([[0.0, 3.0], [1.0, 0.0]]), [40, 88])
        session = _session(plain, train_split=_split(128, 0), loss_fn=loss_fn, epochs=2, batch_size=64, augment="light",
                           mixup=0.5, clip_grad_norm=0.5, accumulation=parts, optimizer="sgd",
                           learning_rate=0.05)  # fmt: skip
        results.append(train_model(session))
    batch, accumulated = results
    assert batch.curves[-1]["train_loss"] == pytest.approx(accumulated.curves[-1]["train_loss"], rel=1e-5)
    for key, value in batch.best_state.items():
        torch.testing.assert_close(value, accumulated.best_state[key], rtol=1e-4, atol=1e-5, msg=key)


def test_averaged_weights_are_validated_and_returned():
    model, result = _train(ema_decay=0.9, learning_rate=0.05)
    assert any(not torch.equal(value, model.state_dict()[key]) for key, value in result.best_state.items())
    expected = result.curves[result.best_epoch - 1]["validation_log_loss"]
    assert _validation_log_loss(model, result.best_state) == pytest.approx(expected, rel=1e-4)


def test_max_minutes_ends_after_an_epoch():
    _, result = _train(epochs=50, max_minutes=1e-9)
    assert len(result.curves) == 1


def test_the_steps_of_a_killed_process_count_for_max_minutes():
    session = _session(epochs=50, max_minutes=60)
    session.resume = lambda: setattr(session.progress, "epoch_seconds", 3600.0)
    result = train_model(session, lambda record: False)
    assert len(result.curves) == 1
    assert result.seconds > 3600


def test_the_recorded_learning_rate_is_that_of_the_last_step():
    _, result = _train(epochs=3, learning_rate=0.1, schedule="step", step_epochs=1, step_factor=0.1, warmup_ratio=0)
    assert [curve["learning_rate"] for curve in result.curves] == pytest.approx([0.1, 0.01, 0.001])


def test_bf16_trains():
    _, result = _train(precision="bf16")
    assert result.best_epoch


def test_classification_scores_equal_scikit_learn_to_the_bit():
    """Also with classes that do not occur, are never decided, or neither."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

    rng = np.random.default_rng(0)
    for k in range(50):
        labels, decisions = rng.integers(0, 2 + k % 4, 30 + k), rng.integers(k % 3, 6, 30 + k)
        decisions = np.where(rng.random(len(labels)) < 0.6, labels, decisions)
        with warnings.catch_warnings(action="ignore"):  # decisions may have classes that labels do not have
            assert list(classification_scores(labels, decisions, 7).values()) == [
                accuracy_score(labels, decisions),
                balanced_accuracy_score(labels, decisions),
                f1_score(labels, decisions, average="macro", zero_division=0.0),
            ]
