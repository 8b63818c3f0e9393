"""Networks that do not fit into memory are refused before anything is allocated."""

import resource
from types import SimpleNamespace

import pytest

from udc_model.config import ModelParams, Params, ResNetParams, TrainParams, validate_params
from udc_model.errors import UdcError
from udc_model.models import build_model
from udc_model.training import setup
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


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 5), ("sgd", 4)])
def test_the_limit_is_that_of_weights_gradients_and_optimiser(optimizer, copies):
    params = _params(optimizer, hidden_sizes=[8], depths=[1])
    count = sum(p.numel() for p in build_model(params.model, ["a", "b"], 0).parameters())
    check_memory(params, ["a", "b"], 4 * copies * count)
    with pytest.raises(UdcError, match=f"{count:,} parameters need"):
        check_memory(params, ["a", "b"], 4 * copies * count - 1)


def test_the_best_weights_of_all_members_are_in_the_memory_of_the_cpu():
    params = _params(hidden_sizes=[8], depths=[1])
    params = params.model_copy(update={"train": TrainParams(members=4)})
    count = sum(p.numel() for p in build_model(params.model, ["a", "b"], 0).parameters())
    check_memory(params, ["a", "b"], 4 * 8 * count)
    check_memory(params, ["a", "b"], 4 * 5 * count, is_cpu=False)
    with pytest.raises(UdcError, match=f"{count:,} parameters need"):
        check_memory(params, ["a", "b"], 4 * 8 * count - 1)


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
