"""Parameter groups, frozen stages, schedules, averages and drop path, compared with timm and transformers."""

import pytest
import timm
import torch
import transformers
from timm.optim import param_groups_layer_decay

from udc_model.config import ConvNextParams, ModelParams, ResNetParams, TrainParams
from udc_model.config.presets import PRESETS
from udc_model.errors import UdcError
from udc_model.models import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    build_model,
)
from udc_model.models.convnext import ConvNextDropPath
from udc_model.models.layouts import LAYOUTS, to_our_layout
from udc_model.training.optimisation import (
    averaged_model,
    build_optimizer,
    freeze_stages,
    learning_rate_factor,
    parameter_groups,
    set_learning_rates,
    train_mode,
)

CLASSES = ["a", "b"]
MODELS = {
    "resnet": ModelParams(
        resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": ModelParams(
        model_type="convnext",
        convnext=ConvNextParams(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], drop_path_rate=0.3),
    ),
}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [{"warmup_ratio": 0.1}, {"warmup_epochs": 2.0, "warmup_ratio": 0.5}])
def test_schedules_equal_transformers(schedule, warmup):
    params = TrainParams(schedule=schedule, learning_rate=1.0, epochs=20, **warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(schedule, optimizer, num_warmup_steps=10, num_training_steps=100)
    for step in range(100):
        assert learning_rate_factor(step, 5, params) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["one_cycle", "step"])
def test_schedules_equal_torch(schedule):
    params = TrainParams(schedule=schedule, learning_rate=1.0, epochs=20, warmup_ratio=0.3 * (schedule == "one_cycle"),
                         step_epochs=6, step_factor=0.2)  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = {
        "one_cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=100, cycle_momentum=False),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 6 * 5, 0.2),
    }[schedule]()
    for step in range(99):
        assert learning_rate_factor(step, 5, params) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_learning_rates_scale_by_the_same_factor_in_all_groups():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}], lr=1.0)
    for factor in (0.5, 0.25):
        set_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.4 * factor]


def test_averaged_weights_equal_timm():
    """With a decay of 0.1 the warm-up has no effect, so that weights and statistics are the same."""
    model = build_model(MODELS["resnet"], CLASSES, 1).train()
    averaged, timm_averaged = averaged_model(model, 0.1), timm.utils.ModelEmaV3(model, decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        torch.manual_seed(step)
        model(torch.randn(4, 3, 16, 16), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        timm_averaged.update(model) if step else timm_averaged.set(model)
    expected = timm_averaged.module.state_dict()
    for key, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)


def test_decay_of_the_average_warms_up():
    """After n updates the decay is (1 + n) / (10 + n), at most ``ema_decay``."""
    model = torch.nn.Linear(1, 1, bias=False)
    averaged, expected = averaged_model(model, 0.5), 0.0
    for n in range(30):
        with torch.no_grad():
            model.weight.fill_(float(n))
        averaged.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * n
        assert averaged.module.weight.item() == pytest.approx(expected)


def test_vectors_have_no_weight_decay():
    model = build_model(MODELS["convnext"], CLASSES, 1)
    decayed, undecayed = parameter_groups(model, TrainParams(weight_decay=0.05))
    assert decayed["weight_decay"] == 0.05
    assert undecayed["weight_decay"] == 0
    names = {id(p): key for key, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in undecayed["params"]} == {"weight", "bias", "layer_scale_parameter"}
    assert all(p.ndim == 1 for p in undecayed["params"])
    assert all(p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(model.parameters()))


def test_build_optimizer_selects_adamw_or_nesterov_sgd():
    model = build_model(MODELS["resnet"], CLASSES, 1)
    assert isinstance(build_optimizer(model, TrainParams()), torch.optim.AdamW)
    sgd = build_optimizer(model, TrainParams(optimizer="sgd"))
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.9


def test_too_many_frozen_stages_raises():
    with pytest.raises(UdcError, match=r"train\.num_frozen_stages: is 3, but the model has 2 stages"):
        freeze_stages(build_model(MODELS["resnet"], CLASSES, 1), 3)


def test_drop_path_preserves_the_expectation_and_is_off_in_evaluation():
    torch.manual_seed(0)
    drop = ConvNextDropPath(0.3).train()
    factors = drop(torch.ones(20_000, 1))
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)
    assert factors.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert drop.eval()(torch.ones(3, 1)) is None


def test_drop_path_rates_rise_linearly():
    model = build_model(
        ModelParams(
            model_type="convnext",
            convnext=ConvNextParams(num_stages=2, hidden_sizes=[8, 16], depths=[2, 3], drop_path_rate=0.4),
        ),
        CLASSES,
        1,
    )
    rates = [layer.drop_path.p for stage in model.convnext.encoder.stages for layer in stage.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_layer_decay_equals_timm():
    """Learning rate and weight decay of each parameter of a ResNet-18."""
    timm_model = timm.create_model("resnet18", num_classes=1000)
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **PRESETS["resnet-18"].settings))
    _, renamed = to_our_layout(timm_model.state_dict(), LAYOUTS["resnet"])
    timm_names = {id(parameter): renamed[key][0] for key, parameter in timm_model.named_parameters()}
    expected = {
        timm_names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(timm_model, weight_decay=0.05, layer_decay=0.8)
        for parameter in group["params"]
    }
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, TrainParams(learning_rate=1.0, weight_decay=0.05, layer_decay=0.8))
        for parameter in group["params"]
    }
    assert groups.keys() == expected.keys()
    for key, values in groups.items():
        assert values == pytest.approx(expected[key]), key


def test_layer_decay_of_a_convnext_falls_by_block():
    model = ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[2, 1], num_labels=2)
    )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(model, TrainParams(learning_rate=1.0, layer_decay=0.5))
        for parameter in group["params"]
    }
    assert len(rates) == len(names)
    for key, rate in {
        "convnext.embeddings.layernorm.weight": 0.5**4,
        "convnext.encoder.stages.0.layers.0.dwconv.weight": 0.5**3,
        "convnext.encoder.stages.0.layers.1.layer_scale_parameter": 0.5**2,
        "convnext.encoder.stages.1.downsampling_layer.1.weight": 0.5,
        "convnext.encoder.stages.1.layers.0.pwconv2.bias": 0.5,
        "convnext.layernorm.weight": 1.0,
        "classifier.weight": 1.0,
    }.items():
        assert rates[key] == rate, key


@pytest.mark.parametrize("kind", MODELS)
def test_frozen_all_trains_the_head_only(kind):
    model = build_model(MODELS[kind], CLASSES, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_mode(model, freeze_stages(model, "all"))
    optimizer = build_optimizer(model, TrainParams(learning_rate=0.1, layer_decay=0.5))
    loss = model(torch.randn(4, 3, 16, 16), labels=torch.tensor([0, 1, 1, 0])).loss
    loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("classifier.")}


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_checkpointing_changes_no_bit(kind):
    """Neither gradients nor BatchNorm's statistics, which a plain second forward pass would update twice."""
    results = []
    images, labels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 1, 0])
    for enabled in (False, True):
        model = build_model(MODELS[kind], CLASSES, 1).train()
        model.gradient_checkpointing_enable(enabled)
        torch.manual_seed(5)  # drop path
        calls = []
        model.base_model.encoder.stages[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(images, labels=labels).loss.backward()
        assert len(calls) == 1 + enabled
        results.append({key: p.grad for key, p in model.named_parameters()} | model.state_dict())
        assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
