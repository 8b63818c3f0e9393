"""The loop: same bits for the same session, weights of the best epoch, frozen stages, errors that name the images."""

import functools

import numpy as np
import pytest
import torch

from udc_model.config import ConvNextParams, LossParams, ModelParams, ResNetParams, TrainParams
from udc_model.data.logits import compute_logits
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training.distribution import Ranks
from udc_model.training.hardware import Hardware, pick_hardware
from udc_model.training.loop import train_model
from udc_model.training.losses import TrainingLoss
from udc_model.training.session import CostMonitor, TrainingSession, check_sharding

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


def _train(kind="resnet", seed=1, train=None, **options):
    params = TrainParams(**DEFAULTS | {"augment": "standard", "horizontal_flip": True} | options)
    model = build_model(MODELS[kind], CLASSES, seed)
    loss = TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1])
    data = train or _split(50, 0)
    session = TrainingSession(model, data, _split(30, 9), PREPROCESSING, loss, params, seed, pick_hardware(params))
    result = train_model(session)
    return model, result


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_same_arguments_same_bits(kind):
    _, one = _train(kind)
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 (global generators must not matter)
    _, two = _train(kind)
    assert one.curves == two.curves
    assert all(torch.equal(one.best_state[key], two.best_state[key]) for key in one.best_state)
    _, other = _train(kind, seed=2)
    assert one.curves != other.curves


def test_the_stored_weights_are_those_of_the_best_epoch():
    model, result = _train(epochs=6, learning_rate=0.05)
    losses = [row["validation_log_loss"] for row in result.curves]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    model.load_state_dict(result.best_state)
    split = _split(30, 9)
    logits = compute_logits(lambda x: model.eval()(x).logits, split.images, PREPROCESSING, 7)
    again = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(split.labels))
    assert again.item() == pytest.approx(min(losses), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_compiled_model_trains_alike(monkeypatch):
    """With the backend aot_eager; inductor would compile C++ for a minute or two."""
    compiled_by = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiled_by)
    _, plain = _train(epochs=2)
    model, compiled = _train(epochs=2, compile=True)
    assert model._compiled_call_impl is not None
    assert compiled.best_state.keys() == plain.best_state.keys()
    for row, expected in zip(compiled.curves, plain.curves, strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_sharding_refuses_unsupported_settings():
    for options, ranks, precision, message in (
        ({}, Ranks(), "fp32", "needs several processes"),
        ({}, Ranks(0, 2), "fp16", "the loss scaler of fp16"),
        ({"compile": True}, Ranks(0, 2), "fp32", "does not work with train.compile"),
    ):
        params = TrainParams(sharded=True, **options)
        with pytest.raises(UdcError, match=message):
            check_sharding(params, Hardware(torch.device("cpu"), precision), ranks)


def test_a_trained_model_can_be_exported_in_the_same_process():
    """The arithmetic settings of a training run do not break torch.export."""
    model, _ = _train(epochs=1)
    image = torch.zeros(1, 3, 16, 16)
    exported = torch.export.export(model.eval(), (image,)).module()
    torch.testing.assert_close(exported(image).logits, model(image).logits)


def test_it_learns():
    _, result = _train(epochs=8, augment="none", learning_rate=3e-3)
    assert result.curves[-1]["validation_accuracy"] > 0.9


def test_early_stopping():
    _, result = _train(epochs=40, early_stopping_patience=2, learning_rate=1e-9, monitor="accuracy")
    assert len(result.curves) < 40
    assert len(result.curves) >= result.best_epoch + 2


def test_the_cost_monitor_chooses_the_epoch_of_least_cost():
    """Its cost is computed from the calibration split's logits and the validation split's, in this order."""
    calibration, costs, seen = _split(20, 4), iter([0.7, 0.2, 0.5]), []

    def cost(calibration_logits, logits):
        seen.append((calibration_logits.shape, logits.shape))
        return next(costs)

    params = TrainParams(**DEFAULTS, monitor="normalised_cost")
    model = build_model(MODELS["resnet"], CLASSES, 1)
    loss = TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1])
    session = TrainingSession(model, _split(50, 0), _split(30, 9), PREPROCESSING, loss, params, 1,
                              pick_hardware(params), CostMonitor(calibration, cost))  # fmt: skip
    result = train_model(session)
    assert result.best_epoch == 2
    assert seen == [((20, 2), (30, 2))] * 3
    assert [row["validation_normalised_cost"] for row in result.curves] == [0.7, 0.2, 0.5]


def test_a_cost_monitor_without_a_calibration_split():
    params = TrainParams(**DEFAULTS | {"epochs": 1}, monitor="normalised_cost")
    empty = PackedSplit(np.empty((0,), np.uint8), np.empty(0, np.int64), [], [], [])
    monitor = CostMonitor(empty, lambda calibration, logits: float(calibration.shape == (0, 2)))
    model, loss = build_model(MODELS["resnet"], CLASSES, 1), TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1])
    session = TrainingSession(
        model, _split(20, 0), _split(10, 9), PREPROCESSING, loss, params, 1, pick_hardware(params), monitor
    )
    found = train_model(session)
    assert found.curves[0]["validation_normalised_cost"] == 1.0


def test_frozen_stages_do_not_change():
    before = build_model(MODELS["resnet"], CLASSES, 1).state_dict()
    model, _ = _train(num_frozen_stages=1)
    for key, value in model.state_dict().items():
        frozen = key.startswith(("resnet.embedder", "resnet.encoder.stages.0"))
        if value.is_floating_point() and (frozen or "stages.1" in key):
            assert torch.equal(before[key], value) == frozen, key


def test_a_loss_that_is_not_finite_names_the_images():
    with pytest.raises(UdcError, match=r"the loss is (nan|inf) in epoch \d, step \d.*Images: .*\.png"):
        _train(optimizer="sgd", learning_rate=1e30, epochs=5)


def test_a_callback_ends_the_training_run_after_an_epoch():
    params = TrainParams(**DEFAULTS)
    model, loss = build_model(MODELS["resnet"], CLASSES, 1), TrainingLoss(LossParams(), torch.ones(2, 2), [1, 1])
    session = TrainingSession(model, _split(50, 0), _split(30, 9), PREPROCESSING, loss, params, 1,
                              pick_hardware(params), on_epoch=lambda record: record.epoch == 2)  # fmt: skip
    result = train_model(session)
    assert result.is_stopped
    assert len(result.curves) == 2
    assert not _train()[1].is_stopped


def test_a_single_training_image_is_enough():
    _train("convnext", train=_split(1, 0))


def test_hardware_that_is_not_there():
    assert pick_hardware(TrainParams(device="cpu", precision="bf16")).precision == "bf16"
    with pytest.raises(UdcError, match=r"train\.precision: fp16 needs a GPU"):
        pick_hardware(TrainParams(device="cpu", precision="fp16"))
    if not torch.cuda.is_available():
        with pytest.raises(UdcError, match=r"train\.device: cuda is not available"):
            pick_hardware(TrainParams(device="cuda"))


@pytest.mark.parametrize("loss", [{}, {"class_weights": "balanced"}, {"name": "class_balanced"}, {"name": "seesaw"},
                                  {"name": "ldam"}, {"name": "cost_weighted"}])  # fmt: skip
def test_accumulation_is_the_whole_batch(loss):
    """Four parts of 16 give the weights of a batch of 64, for a net without BatchNorm, mixtures and clipping too."""
    plain = MODELS["convnext"].model_copy(
        update={"convnext": MODELS["convnext"].convnext.model_copy(update={"drop_path_rate": 0.0})}
    )
    found = []
    for parts in (1, 4):
        params = TrainParams(**DEFAULTS | {"epochs": 2, "batch_size": 64}, augment="light", mixup=0.5,
                             clip_grad_norm=0.5, accumulation=parts, optimizer="sgd", learning_rate=0.05)  # fmt: skip
        model, costs = build_model(plain, CLASSES, 1), torch.tensor([[0.0, 3.0], [1.0, 0.0]])
        loss_fn = TrainingLoss(LossParams(**loss), costs, [40, 88])
        session = TrainingSession(model, _split(128, 0), _split(30, 9), PREPROCESSING, loss_fn, params, 1,
                                  pick_hardware(params))  # fmt: skip
        result = train_model(session)
        found.append(result)
    assert found[0].curves[-1]["train_loss"] == pytest.approx(found[1].curves[-1]["train_loss"], rel=1e-5)
    for key, value in found[0].best_state.items():
        torch.testing.assert_close(value, found[1].best_state[key], rtol=1e-4, atol=1e-5, msg=key)


def test_averaged_weights_are_validated_and_stored():
    model, result = _train(ema_decay=0.9, learning_rate=0.05)
    assert any(not torch.equal(value, model.state_dict()[key]) for key, value in result.best_state.items())
    model.load_state_dict(result.best_state)
    split = _split(30, 9)
    logits = compute_logits(lambda x: model.eval()(x).logits, split.images, PREPROCESSING, 7)
    again = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(split.labels))
    assert again.item() == pytest.approx(result.curves[result.best_epoch - 1]["validation_log_loss"], rel=1e-4)


def test_the_time_limit_ends_after_an_epoch():
    _, result = _train(epochs=50, max_minutes=1e-9)
    assert len(result.curves) == 1


def test_bf16_trains():
    _, result = _train(precision="bf16")
    assert result.best_epoch
