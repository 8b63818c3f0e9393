"""Saliency maps: the same by other means, where the evidence is known, and with random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from udc_model.config import ConvNextParams, ModelParams, ResNetParams, TimmParams
from udc_model.data.transforms import Preprocessing
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.saliency import saliency, uses_grad_cam
from udc_model.models import build_model
from udc_model.models.ensemble import Ensemble

CLASSES = ["a", "b", "c"]
RESNET = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
MODELS = {
    "resnet": ModelParams(resnet=RESNET),
    "convnext": ModelParams(model_type="convnext", convnext=ConvNextParams(
        num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], layer_scale_init_value=0.5)),
    "timm": ModelParams(model_type="timm", timm=TimmParams(name="resnet10t")),
    "vit": ModelParams(model_type="timm", timm=TimmParams(name="test_vit")),
}  # fmt: skip
SIZES = {"timm": 128, "vit": 160}  # pixels; the network of timm has features of an input of 1/32


@pytest.fixture
def classifier_of():
    """A function that returns a classifier of random weights, of one of the models."""

    def build(name, size=None, seed=0, **options):
        if name in SIZES:
            pytest.importorskip("timm")
        model = build_model(MODELS[name], CLASSES, seed).eval()
        return TrainedClassifier(
            model, Preprocessing(size or SIZES.get(name, 48)), torch.device("cpu"), **options
        )  # fmt: skip

    return build


@pytest.fixture
def images_for(rng):
    """A function that returns two random images for a classifier."""
    return lambda classifier: rng.integers(0, 256, (2, *[classifier.preprocessing.size] * 2, 3), dtype=np.uint8)


def inputs_of(classifier, images):
    return classifier.preprocessing.to_input(torch.from_numpy(images))


def by_hooks(model, stage, inputs, label):
    """Grad-CAM and HiResCAM as their authors' code computes them: with hooks, and the gradient of the network."""
    seen = {}
    forward = stage.register_forward_hook(lambda module, args, output: seen.update(a=output))
    backward = stage.register_full_backward_hook(lambda module, gradients, outputs: seen.update(g=outputs[0]))
    model.zero_grad()
    model(inputs.requires_grad_()).logits[:, label].sum().backward()
    forward.remove()
    backward.remove()
    model.zero_grad()
    weights = seen["g"].mean(dim=(2, 3), keepdim=True), seen["g"]
    return [scaled((seen["a"] * each).sum(dim=1).relu().detach().numpy()) for each in weights]


def scaled(maps):
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


@pytest.mark.parametrize(("name", "size", "stage", "cells"), [
    ("resnet", 48, 1, 6), ("resnet", 24, 0, 6), ("convnext", 48, 1, 6), ("convnext", 16, 0, 4),
])  # fmt: skip
def test_maps_are_those_of_hooks_on_the_last_stage_with_enough_cells(
    name, size, stage, cells, classifier_of, images_for
):
    classifier = classifier_of(name, size)
    images = images_for(classifier)
    maps = saliency(classifier, images, np.tile(np.arange(3), (2, 1)))
    assert maps.shape == (2, 3, cells, cells)
    assert maps.dtype == np.float32
    module = classifier.model.base_model.encoder.stages[stage]
    for label in range(3):
        grad_cam, expected = by_hooks(classifier.model, module, inputs_of(classifier, images), label)
        np.testing.assert_allclose(maps[:, label], expected, atol=1e-5)
        if stage == 1:  # the last one, after which is the mean over all cells
            np.testing.assert_allclose(expected, grad_cam, atol=1e-5)
        np.testing.assert_array_equal(saliency(classifier, images, np.full(2, label)), maps[:, label])
    assert uses_grad_cam(classifier)


def test_of_a_resnet_the_map_is_its_features_weighted_by_the_head(classifier_of, images_for):
    """Class activation mapping (Zhou et al. 2016), which Grad-CAM generalises."""
    classifier = classifier_of("resnet")
    images = images_for(classifier)
    with torch.no_grad():
        features = classifier.model.base_model(inputs_of(classifier, images)).last_hidden_state.numpy()
    weights = classifier.model.classifier[1].weight.detach().numpy()[[2, 0]]
    expected = np.maximum(np.einsum("nchw,nc->nhw", features, weights), 0)
    np.testing.assert_allclose(saliency(classifier, images, np.array([2, 0])), scaled(expected), atol=1e-5)


def test_networks_of_timm_have_a_map_of_their_features_or_by_gradients(classifier_of, images_for):
    convolutional, transformer = classifier_of("timm"), classifier_of("vit")
    images = images_for(convolutional)
    network = convolutional.model.base_model.network
    with torch.no_grad():
        features = network.forward_features(inputs_of(convolutional, images))
    expected = torch.einsum("nchw,c->nhw", features, convolutional.model.classifier.weight[1]).relu()
    np.testing.assert_allclose(
        saliency(convolutional, images, np.array([1, 1])), scaled(expected.detach().numpy()), atol=1e-5
    )
    assert (uses_grad_cam(convolutional), uses_grad_cam(transformer)) == (True, False)
    maps = saliency(transformer, images_for(transformer), np.array([0, 1]))
    assert maps.shape == (2, 14, 14)
    assert ((maps >= 0) & (maps <= 1)).all()
    np.testing.assert_allclose(maps.max(axis=(1, 2)), 1)


def test_the_map_of_an_ensemble_is_the_mean_of_its_members(classifier_of, images_for):
    members = [classifier_of("resnet", seed=seed) for seed in range(2)]
    images, classes = images_for(members[0]), np.array([0, 1])
    model = Ensemble.of_members(members[0].model.config, [1.0, 2.0], [each.model.state_dict() for each in members])
    maps = saliency(TrainedClassifier(model, members[0].preprocessing, members[0].device), images, classes)
    mean = np.mean([saliency(each, images, classes) for each in members], axis=0)
    np.testing.assert_allclose(maps, mean / mean.max(axis=(1, 2), keepdims=True), atol=1e-6)


def test_with_flip_averaging_the_mirror_image_has_the_mirrored_map(classifier_of, images_for):
    classifier = classifier_of("resnet", flip_averaging=True)
    images, classes = images_for(classifier), np.array([0, 1])
    maps = saliency(classifier, images, classes)
    mirrored = saliency(classifier, np.ascontiguousarray(images[:, :, ::-1]), classes)
    np.testing.assert_allclose(mirrored[:, :, ::-1], maps, atol=1e-6)
    plain = saliency(classifier_of("resnet"), images, classes)
    assert np.abs(plain - maps).max() > 0.01


def test_other_precisions_are_refused(classifier_of, images_for):
    classifier = classifier_of("resnet", precision="fp32_fused")
    with pytest.raises(ValueError, match="needs a classifier of precision fp32, not fp32_fused"):
        saliency(classifier, images_for(classifier), np.array([0, 1]))


def test_weights_have_no_gradients_afterwards(classifier_of, images_for):
    for name in ("resnet", "convnext"):
        classifier = classifier_of(name)
        saliency(classifier, images_for(classifier), np.array([0, 1]))
        assert all(parameter.grad is None for parameter in classifier.model.parameters())


MARK = 12  # pixels of the side of the planted mark, in images of 48


def with_marks(rng, n):
    """Noise (n, 48, 48, 3), half of it with a bright square somewhere; which; and the pixels of the squares."""
    images = rng.integers(0, 160, (n, 48, 48, 3), dtype=np.uint8)
    is_marked, masks = np.arange(n) % 2 == 1, np.zeros((n, 48, 48), bool)
    for i in np.flatnonzero(is_marked):
        top, left = rng.integers(0, 48 - MARK, 2)
        masks[i, top : top + MARK, left : left + MARK] = True
        images[i][masks[i]] = rng.integers(180, 256, (MARK**2, 3))
    return images, is_marked, masks


def energy_on(masks, maps):
    """Mean share of a map, interpolated to the image, that is on the mark."""
    large = F.interpolate(torch.from_numpy(maps)[:, None], masks.shape[1:], mode="bilinear")[:, 0].numpy()
    return float(((large * masks).sum(axis=(1, 2)) / np.maximum(large.sum(axis=(1, 2)), 1e-12)).mean())


def similarity(first, second):
    """Mean rank correlation between the maps of each image; 0 for a map that is the same everywhere."""
    pairs = [(a.ravel(), b.ravel()) for a, b in zip(first, second, strict=True) if np.ptp(a) and np.ptp(b)]
    return float(sum(spearmanr(a, b).statistic for a, b in pairs)) / len(first)


@pytest.mark.parametrize("name", ["resnet", "convnext"])
def test_maps_are_on_a_planted_mark_and_random_weights_destroy_them(name, classifier_of, rng):
    """The mark covers 6 % of an image (Adebayo et al. 2018: a map must depend on what the network has learned)."""
    classifier = classifier_of(name)
    images, is_marked, masks = with_marks(rng, 64)
    assert learned(classifier, images, is_marked, rng)
    images, masks, area = images[is_marked], masks[is_marked], masks[is_marked].mean()
    classes = np.ones(len(images), int)
    trained = saliency(classifier, images, classes)
    random = [saliency(classifier_of(name, seed=seed), images, classes) for seed in range(1, 5)]
    # the features of a ResNet see a wider surrounding of their cell than those of a ConvNeXt of this size
    assert energy_on(masks, trained) > {"resnet": 2.5, "convnext": 6}[name] * area
    assert np.mean([energy_on(masks, each) for each in random]) < 1.6 * area
    assert np.mean([similarity(trained, each) for each in random]) < 0.2


def learned(classifier, held_out, is_marked, rng):
    """Train until 97 % of other images are decided right; whether that was reached."""
    images, labels, _ = with_marks(rng, 256)
    network, targets = classifier.model, torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(30):
        network.train()
        for rows in torch.from_numpy(rng.permutation(256)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs_of(classifier, images[rows.numpy()])).logits, targets[rows]).backward()
            optimizer.step()
        network.eval()
        if (classifier.logits_of_stored(held_out).argmax(axis=1) == is_marked).mean() > 0.97:
            return True
    return False
