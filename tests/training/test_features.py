"""Features of a frozen network: those of the network itself, computed once, stored by all that determines them."""

import json
import logging
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from udc_model.config import ConvNextParams, LossParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedSplit
from udc_model.data.transforms import Preprocessing
from udc_model.models import ConvNextModel, ResNetModel, build_model
from udc_model.training import features, session
from udc_model.training.checkpoints import open_checkpoints
from udc_model.training.features import FeatureCache, num_features, why_features_change
from udc_model.training.hardware import pick_hardware
from udc_model.training.loop import best_validation_logits, train_model
from udc_model.training.members import train_members
from udc_model.training.profiling import profile_steps
from udc_model.training.range_test import range_test
from udc_model.training.session import CostMonitor, TrainingSession
from udc_model.training.training_loss import TrainingLoss

CLASSES = ["a", "b"]
COSTS = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
MODELS = {
    "resnet": ModelParams(
        resnet=ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "convnext": ModelParams(
        model_type="convnext",
        convnext=ConvNextParams(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], drop_path_rate=0.2,
                                layer_scale_init_value=0.1),
    ),
}  # fmt: skip
FROZEN = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "num_frozen_stages": "all", "device": "cpu",
          "precision": "fp32"}  # fmt: skip


def _split(n, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 100, (n, 16, 16, 3), dtype=np.uint8)
    images[labels == 1, 4:12, 4:12] += 120
    return PackedSplit(images, labels, [f"{i}.png" for i in range(n)], [""] * n, [""] * n)


def _session(kind="resnet", loss=None, cache=None, seed=1, has_costs=False, **options):
    params = Params(train=TrainParams(**FROZEN | options), seed=seed)
    monitor = CostMonitor(_split(20, 4), lambda calibration, logits: float(calibration.mean() + logits.std()))
    return TrainingSession(
        build_model(MODELS[kind], CLASSES, seed), TrainingLoss(loss or LossParams(), COSTS, [20, 30]), _split(50, 0),
        _split(30, 9), Preprocessing(16), params, pick_hardware(params.train),
        cost_monitor=monitor if has_costs else None, feature_cache=cache,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "features", {"data": "d", "code": {"a.py": "1"}})


@pytest.fixture
def passes(monkeypatch):
    """The number of images in each pass of a network below its head."""
    sizes = []

    def count(model, embed):
        monkeypatch.setattr(model, "embed", lambda self, images: (sizes.append(len(images)), embed(self, images))[1])

    for model in (ResNetModel, ConvNextModel):
        count(model, model.embed)
    return sizes


@pytest.fixture
def on_images(monkeypatch):
    """A function that trains without stored features, as if the images were augmented."""

    def train(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(session, "why_features_change", lambda *_: "a test")
            return train_model(_session(*arguments, **options))

    return train


@pytest.mark.parametrize("kind", MODELS)
def test_head_of_features_is_the_network(kind):
    model, images = build_model(MODELS[kind], CLASSES, 1).eval(), torch.randn(5, 3, 16, 16)
    assert model.features(images).shape == (5, num_features(model)) == (5, 16)
    assert torch.equal(model.head(model.features(images)), model(images).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_stored_features_are_those_of_the_network(kind):
    """Of each image alone, in the order of the split, also of the split on which the policy is fitted."""
    started = _session(kind, has_costs=True)
    started.start()
    splits = {"train": started.train_split, "validation": started.validation_split,
              "calibration": started.cost_monitor.calibration}  # fmt: skip
    assert list(started.features) == list(splits)
    for name, split in splits.items():
        images = started.preprocessing.to_input(torch.from_numpy(split.images))
        with torch.inference_mode():
            alone = torch.cat([started.model.eval().features(image[None]) for image in images])
        assert started.features[name].dtype == torch.float32
        torch.testing.assert_close(started.features[name], alone, rtol=1e-5, atol=1e-6)


OPTIONS = {
    "defaults": {},
    "averaged": {"ema_decay": 0.9, "sampling_power": 0.5, "accumulation": 2},
    "sgd": {"optimizer": "sgd", "layer_decay": 0.5, "clip_grad_norm": 1.0, "loader_workers": 1},
    "bf16": {"precision": "bf16"},
    "class weights": {"loss": LossParams(class_weights="balanced", label_smoothing=0.1)},
    "expected cost": {"loss": LossParams(name="expected_cost", warmup_epochs=1)},
    "cost": {"has_costs": True, "monitor": "normalised_cost", "early_stopping_patience": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_training_on_features_is_training_on_images(kind, name, on_images):
    """The loss and metrics of each epoch and the weights, to rounding; BatchNorm and drop path stay in eval mode."""
    expected, result = on_images(kind, **OPTIONS[name]), train_model(_session(kind, **OPTIONS[name]))
    assert result.best_epoch == expected.best_epoch
    for row, other in zip(result.curves, expected.curves, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert list(result.best_state) == list(expected.best_state)
    for key, value in expected.best_state.items():
        torch.testing.assert_close(result.best_state[key], value, rtol=1e-4, atol=1e-5)
    assert result.curves[-1]["train_loss"] < result.curves[0]["train_loss"]


def test_network_runs_once_for_each_image(passes, on_images):
    train_model(_session())
    assert passes == [16, 16, 16, 2, 16, 14]
    passes.clear()
    on_images()
    assert sum(passes) == 3 * (50 + 30)


def test_batches_of_one_pass_are_bounded(passes):
    train_model(_session(batch_size=50, epochs=1))
    assert passes == [32, 18, 30]


def test_second_training_run_does_not_run_the_network(cache, passes, caplog):
    """Whatever changes the head only: rate, loss, epochs, sampling. Equal parameters give equal bits."""
    caplog.set_level(logging.INFO)
    first = train_model(_session(cache=cache))
    assert sum(passes) == 80
    assert [path.name for path in sorted(cache.folder.glob("*/*"))] == ["checksums.json", "features.npy"] * 2
    passes.clear()
    again = train_model(_session(cache=cache))
    assert again.curves == first.curves
    assert all(torch.equal(again.best_state[key], value) for key, value in first.best_state.items())
    other = _session(cache=cache, loss=LossParams(name="cost_weighted"), learning_rate=0.01, epochs=5, ema_decay=0.9,
                     sampling_power=0.0, optimizer="sgd")  # fmt: skip
    assert train_model(other).curves != first.curves
    assert passes == []
    assert "features of split train: stored by an earlier training run" in caplog.messages
    assert train_model(_session()).curves == first.curves  # without the cache
    monitored = _session(cache=cache, has_costs=True, monitor="normalised_cost")
    passes.clear()
    train_model(monitored)
    assert sum(passes) == 20  # of the calibration split, which no training run has read


CHANGES = {
    "weights": lambda s: {"model": build_model(MODELS["resnet"], CLASSES, 2)},
    "statistics": lambda s: {"model": _with_other_statistics(s.model)},
    "activation": lambda s: {"model": build_model(_with_activation("gelu"), CLASSES, 1)},
    "size": lambda s: {"preprocessing": replace(s.preprocessing, size=14, crop_pct=0.875)},
    "normalisation": lambda s: {"preprocessing": replace(s.preprocessing, mean=(0.4, 0.5, 0.5))},
    "resampling": lambda s: {"preprocessing": replace(s.preprocessing, resample="bilinear")},
    "precision": lambda s: {"hardware": replace(s.hardware, precision="bf16")},
    "data": lambda s: {"feature_cache": replace(s.feature_cache, inputs={"data": "e", "code": {"a.py": "1"}})},
    "code": lambda s: {"feature_cache": replace(s.feature_cache, inputs={"data": "d", "code": {"a.py": "2"}})},
}


def _with_other_statistics(model):
    model.resnet.embedder.embedder.normalization.running_mean[0] += 1e-6
    return model


def _with_activation(name):
    params = MODELS["resnet"]
    return params.model_copy(update={"resnet": params.resnet.model_copy(update={"hidden_act": name})})


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_features_computes_them_again(name, cache, passes):
    first = _session(cache=cache)
    first.start()
    passes.clear()
    second = _session(cache=cache)
    replace(second, **CHANGES[name](second)).start()
    assert sum(passes) == 80
    assert len(list(cache.folder.iterdir())) == 4


def test_whatever_changes_the_head_only_does_not(cache, passes):
    _session(cache=cache).start()
    passes.clear()
    second = _session(cache=cache)
    with torch.no_grad():
        second.model.classifier[1].weight.zero_()
    second.start()
    assert passes == []


def _cut(entry):
    path = entry / "features.npy"
    path.write_bytes(path.read_bytes()[:-9])


def _flip(entry):
    contents = bytearray((entry / "features.npy").read_bytes())
    contents[-1] ^= 1
    (entry / "features.npy").write_bytes(contents)


def _of_other_shape(entry):
    np.save(entry / "features.npy", np.zeros((2, 16), np.float32))
    features.write_checksums(entry, ["features.npy"])


def _pickled(entry):
    np.save(entry / "features.npy", np.array([{}] * 3), allow_pickle=True)
    features.write_checksums(entry, ["features.npy"])


def _larger(entry):
    with (entry / "features.npy").open("ab") as handle:
        handle.truncate(2**20)


def _file(entry):
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("")


DAMAGES = {
    "cut": (_cut, "differs from its checksum"),
    "flipped bit": (_flip, "differs from its checksum"),
    "other shape": (_of_other_shape, r"contains float32 \(2, 16\)"),
    "pickle": (_pickled, "allow_pickle=False"),
    "too large": (_larger, "has 1,048,576 bytes, more than"),
    "no array": (lambda entry: (entry / "features.npy").unlink(), "no such file; it is computed again"),
    "no checksum": (lambda entry: (entry / "checksums.json").unlink(), "has no checksum of features.npy"),
    "damaged checksum": (lambda entry: (entry / "checksums.json").write_text("{"), "checksums.json"),
    "file": (_file, "Not a directory"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_entry_is_computed_again(name, cache, passes, caplog):
    first = train_model(_session(cache=cache))
    damage, message = DAMAGES[name]
    for entry in cache.folder.iterdir():
        damage(entry)
    passes.clear()
    second = train_model(_session(cache=cache))
    assert second.curves == first.curves
    assert sum(passes) == 80
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all(text.startswith("stored features cannot be used: ") for text in warnings)
    assert all(re.search(message, text) for text in warnings), warnings
    train_model(_session(cache=cache))
    assert sum(passes) == 80  # the entries were written again


def test_oldest_entries_are_deleted(cache, monkeypatch):
    array, checksums = 4 * 50 * 16 + 128, 180
    monkeypatch.setattr(features, "_MAX_BYTES", 3 * (array + checksums))
    rows = np.zeros((50, 16), np.float32)
    for number, key in enumerate("abc"):
        cache.write(key, rows + number)
        os.utime(cache.folder / key, (number, number))
    assert cache.read("a", (50, 16)) is not None  # used last
    cache.write("d", rows)
    assert sorted(entry.name for entry in cache.folder.iterdir()) == ["a", "c", "d"]


def test_features_that_cannot_be_stored_are_a_warning(tmp_path, caplog):
    (tmp_path / "features").write_text("")
    result = train_model(_session(cache=FeatureCache(tmp_path / "features", {})))
    assert result.curves == train_model(_session()).curves
    assert f"{tmp_path / 'features'}: features cannot be stored (" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"augment": "light"}, {"augment": "strong"}, {"horizontal_flip": True}, {"quarter_turns": True},
     {"auto_augment": "randaugment"}, {"color_jitter": 0.1}, {"random_erasing": 0.1}, {"mixup": 0.2}, {"cutmix": 1.0}],
    ids=str,
)  # fmt: skip
def test_augmented_images_have_other_features_in_every_epoch(options, cache, passes, caplog):
    caplog.set_level(logging.INFO)
    train_model(_session(cache=cache, epochs=2, **options))
    assert sum(passes) == 2 * 80
    assert not cache.folder.exists()
    message = "train.num_frozen_stages: the frozen network runs in every epoch, because of random augmentation"
    assert caplog.messages.count(message) == 1


def test_several_processes_and_large_features_train_on_images():
    params = TrainParams(num_frozen_stages="all", augment="none", random_erasing=0.0, auto_augment="none")
    assert why_features_change(params, 1, 2**31) is None
    assert why_features_change(params, 2, 1) == "train.processes"
    assert why_features_change(params, 1, 2**31 + 1) == "the size of its features (2.0 GiB)"


def test_trained_stages_train_on_images(passes, caplog):
    caplog.set_level(logging.INFO)
    train_model(_session(num_frozen_stages=2, epochs=1))
    assert sum(passes) == 80
    assert "frozen network" not in caplog.text


@pytest.mark.parametrize("frozen", [1, "all"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_checkpoints_leave_out_frozen_weights_and_resume_to_the_same_bits(frozen, ema_decay, tmp_path, cache):
    options = {"num_frozen_stages": frozen, "ema_decay": ema_decay, "epochs": 4}
    expected = train_model(_session(**options))
    with pytest.raises(KeyboardInterrupt), open_checkpoints(tmp_path, {}, 1) as opened:  # noqa: PT012
        killed = _session(cache=cache, **options)
        killed.checkpoints = opened
        train_model(killed, lambda record: record.epoch == 2 and _interrupt())
    with open_checkpoints(tmp_path, {}, 1) as opened:
        resumed = _session(cache=cache, **options)
        resumed.checkpoints = opened
        stored = _names_of_tensors(opened.last)
        result = train_model(resumed)
    frozen_part = "resnet" if frozen == "all" else r"resnet\.(embedder|encoder\.stages\.0)"
    trained = {key for key in expected.best_state if not re.match(rf"{frozen_part}\.", key)}
    prefixes = ["model", "best", *(["averaged.module"] if ema_decay else [])]
    weights = {name for name in stored
               if not name.startswith(("optimizer.", "loss.", "margins.", "averaged.n_averaged"))}  # fmt: skip
    assert weights == {f"{prefix}.{key}" for prefix in prefixes for key in trained}
    assert result.curves == expected.curves
    np.testing.assert_array_equal(result.margins.values, expected.margins.values)
    assert result.best_state.keys() == expected.best_state.keys()
    assert all(torch.equal(result.best_state[key], value) for key, value in expected.best_state.items())


def _interrupt():
    raise KeyboardInterrupt


def _names_of_tensors(path):
    """Of a checkpoint."""
    contents = path.read_bytes()
    length = int.from_bytes(contents[:8], "little")
    return json.loads(contents[8 : 8 + length]).keys() - {"__metadata__"}


def test_members_of_an_ensemble_share_the_features_of_equal_weights(cache, passes):
    """As of pretrained weights; random ones differ by the seed of the member."""

    def session_of(number, has_equal_weights=True):
        member = _session(cache=cache, seed=number + 1, members=2, epochs=1)
        if has_equal_weights:
            member.model.base_model.load_state_dict(build_model(MODELS["resnet"], CLASSES, 7).base_model.state_dict())
        return member

    results = train_members(session_of, 2)
    assert sum(passes) == 80
    assert torch.equal(results[0].best_state["resnet.embedder.embedder.convolution.weight"],
                       results[1].best_state["resnet.embedder.embedder.convolution.weight"])  # fmt: skip
    assert not torch.equal(results[0].best_state["classifier.1.weight"], results[1].best_state["classifier.1.weight"])
    passes.clear()
    train_members(lambda number: session_of(number, has_equal_weights=False), 2)
    assert sum(passes) == 160


def test_logits_of_the_best_weights_are_those_of_the_network():
    trained = _session()
    train_model(trained)
    logits = best_validation_logits(trained)
    images = trained.preprocessing.to_input(torch.from_numpy(trained.validation_split.images))
    with torch.inference_mode():
        np.testing.assert_allclose(logits, trained.model.eval()(images).logits.numpy(), rtol=1e-5, atol=1e-6)


def test_range_test_and_profile_use_features(passes):
    table = range_test(_session(), highest=0.01, steps=12)
    assert len(table) == 12
    assert sum(passes) == 80
    assert "udc: load" not in profile_steps(_session())
    assert sum(passes) == 160
