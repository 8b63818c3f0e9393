"""Networks that do not fit into memory are refused before anything is allocated."""

import math
import resource
from types import SimpleNamespace

import pytest

from udc_model.config import ModelParams, Params, ResNetParams, TrainParams, validate_params
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import setup
from udc_model.training.optimisation import freeze_stages
from udc_model.training.setup import check_disk, check_memory


def _params(optimizer="adamw", **sizes):
    return Params(
        model=ModelParams(resnet=ResNetParams(layer_type="basic", **sizes)), train=TrainParams(optimizer=optimizer)
    )


def test_a_network_larger_than_the_memory_is_one_line_with_its_size_and_largest_layer():
    params = _params(hidden_sizes=[60_000, 60_000], depths=[1, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UdcError) as error:
        check_memory(params, ["a", "b"], 24 * 2**30)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2**28
    # 3 x 3 kernels of 60,000 by 60,000 channels: each 32.4e9 parameters
    assert "but there are 24.0 GiB; the largest layer is resnet.encoder.stages." in str(error.value)
    assert "with 32,400,000,000. Lower hidden_sizes or depths" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("train", "is_cpu", "world", "of_all", "of_trained"), [
    ({}, True, 1, 1, 4), ({}, False, 1, 1, 3),  # best weights are on the CPU
    ({"optimizer": "sgd"}, True, 1, 1, 3), ({"optimizer": "sgd", "momentum": 0}, True, 1, 1, 2),
    ({"ema_decay": 0.9}, True, 1, 2, 4), ({"ema_decay": 0.9}, False, 1, 2, 3),
    ({"members": 4}, True, 1, 4, 4), ({"members": 4}, False, 1, 1, 3),
    ({}, False, 8, 1, 3), ({"sharded": True, "ema_decay": 0.9}, False, 8, 2 / 8, 3 / 8),
    ({"sharded": True}, True, 2, 1 / 2 + 2, 3 / 2),  # the complete model and its best weights
])  # fmt: skip
@pytest.mark.parametrize("frozen", [0, 1, "all"])
def test_memory_holds_all_weights_and_the_gradients_and_states_of_trained_ones(
    train, is_cpu, world, of_all, of_trained, frozen
):
    params = _params(hidden_sizes=[8, 16], depths=[1, 1])
    params = params.model_copy(update={"train": TrainParams(num_frozen_stages=frozen, **train)})
    model = build_model(params.model, ["a", "b"], 0)
    count = sum(parameter.numel() for parameter in model.parameters())
    freeze_stages(model, frozen)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (trained == count) == (frozen == 0)
    needed = 4 * math.ceil(of_all * count + of_trained * trained)
    check_memory(params, ["a", "b"], needed, is_cpu, world)
    with pytest.raises(UdcError, match=f"{count:,} parameters need"):
        check_memory(params, ["a", "b"], needed - 1, is_cpu, world)


def test_a_sharded_network_that_does_not_fit_into_one_gpu_fits_into_several():
    params = _params(hidden_sizes=[2_000, 4_000], depths=[1, 1])
    params = params.model_copy(update={"train": TrainParams(processes=8, sharded=True)})
    gpu = 2**30
    check_memory(params, ["a", "b"], gpu, is_cpu=False, world=8)
    with pytest.raises(UdcError, match="GiB to train in each of 2 processes"):
        check_memory(params, ["a", "b"], gpu, is_cpu=False, world=2)


@pytest.mark.parametrize(("train", "copies"), [
    ({"optimizer": "adamw"}, 3 * 4 + 2), ({"optimizer": "sgd"}, 3 * 3 + 2), ({"ema_decay": 0.9}, 3 * 5 + 2),
    ({"members": 5}, 3 * 4 + 4 * 4 + 5 * 2),
])  # fmt: skip
def test_the_disk_must_hold_checkpoints_and_the_model(train, copies, tmp_path, monkeypatch):
    params = Params(model=_params(hidden_sizes=[8], depths=[1]).model, train=TrainParams(**train))
    session = SimpleNamespace(params=params, model=build_model(params.model, ["a", "b"], 0))
    state = session.model.state_dict().values()
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in state)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    check_disk(session, tmp_path)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(
        UdcError, match=rf"^{tmp_path}: checkpoints and the model need .* GiB are free; free disk space"
    ):
        check_disk(session, tmp_path)


@pytest.mark.parametrize(
    ("block", "name"),
    [({"embedding_size": 10**12}, "embedding_size"), ({"hidden_sizes": [100_000, 8, 8, 8]}, "hidden_sizes.0"),
     ({"depths": [10**9, 1, 1, 1]}, "depths.0"), ({"depths": [1] * 17, "hidden_sizes": [8] * 17}, "hidden_sizes")],
)  # fmt: skip
def test_sizes_are_bounded(block, name):
    with pytest.raises(UdcError, match=rf"model\.resnet\.{name}"):
        validate_params({"model": {"resnet": block}}, "params.yaml")
