"""Names and shapes of a network's weights, computed without allocating them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from udc_model.model_files.settings import (
    Architecture,
    StoredConvNext,
    StoredEnsemble,
    StoredResNet,
    StoredTimm,
)
from udc_model.model_files.timm_networks import shapes_and_features

Shape = tuple[int, ...]
Shapes = Iterator[tuple[str, Shape]]


def expected_shapes(architecture: Architecture) -> Shapes:
    """Yield name and shape of each weight of the classifier, as in its ``state_dict``; the order is another one."""
    match architecture:
        case StoredEnsemble():
            for number in range(len(architecture.temperatures)):
                for name, shape in expected_shapes(architecture.member):
                    yield f"members.{number}.{name}", shape
        case StoredResNet():
            yield from _resnet(architecture)
        case StoredConvNext():
            yield from _convnext(architecture)
        case StoredTimm():
            yield from _timm(architecture)


def head_shapes(architecture: Architecture) -> list[Shape]:
    """The shape (num_labels, D) of the last layer of each network, which gets D features."""
    head = re.compile(r"(members\.\d+\.)?classifier\.(1\.)?weight")
    return [shape for name, shape in expected_shapes(architecture) if head.fullmatch(name)]


def _resnet(settings: StoredResNet) -> Shapes:
    yield from _conv_norm("resnet.embedder.embedder", settings.num_channels, settings.embedding_size, 7)
    channels = settings.embedding_size
    for i, (size, depth) in enumerate(zip(settings.hidden_sizes, settings.depths, strict=True)):
        for j in range(depth):
            block = f"resnet.encoder.stages.{i}.layers.{j}"
            halves = j == 0 and (i > 0 or settings.downsample_in_first_stage)
            if channels != size or halves:
                yield from _conv_norm(f"{block}.shortcut", channels, size, 1)
            if settings.layer_type == "basic":
                convolutions = [(channels, size, 3), (size, size, 3)]
            else:
                convolutions = [(channels, size // 4, 1), (size // 4, size // 4, 3), (size // 4, size, 1)]
            for n, (inner, outer, kernel) in enumerate(convolutions):
                yield from _conv_norm(f"{block}.layer.{n}", inner, outer, kernel)
            channels = size
    yield from _affine("classifier.1", (len(settings.id2label), channels))


def _convnext(settings: StoredConvNext) -> Shapes:
    first, patch = settings.hidden_sizes[0], settings.patch_size
    yield from _affine("convnext.embeddings.patch_embeddings", (first, settings.num_channels, patch, patch))
    yield from _affine("convnext.embeddings.layernorm", (first,))
    channels = first
    for i, (size, depth) in enumerate(zip(settings.hidden_sizes, settings.depths, strict=True)):
        stage = f"convnext.encoder.stages.{i}"
        if i > 0:
            yield from _affine(f"{stage}.downsampling_layer.0", (channels,))
            yield from _affine(f"{stage}.downsampling_layer.1", (size, channels, 2, 2))
        for j in range(depth):
            block = f"{stage}.layers.{j}"
            yield from _affine(f"{block}.dwconv", (size, 1, 7, 7))
            yield from _affine(f"{block}.layernorm", (size,))
            yield from _affine(f"{block}.pwconv1", (4 * size, size))
            yield from _affine(f"{block}.pwconv2", (size, 4 * size))
            if settings.layer_scale_init_value > 0:
                yield f"{block}.layer_scale_parameter", (size,)
        channels = size
    yield from _affine("convnext.layernorm", (channels,))
    yield from _affine("classifier", (len(settings.id2label), channels))


def _timm(settings: StoredTimm) -> Shapes:
    shapes, features = shapes_and_features(settings.name, settings.num_channels, settings.drop_path_rate)
    for name, shape in shapes.items():
        yield f"timm.network.{name}", shape
    yield from _affine("classifier", (len(settings.id2label), features))


def _affine(name: str, weight: Shape) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _conv_norm(name: str, inner: int, outer: int, kernel: int) -> Shapes:
    """A convolution without bias, and its BatchNorm."""
    yield f"{name}.convolution.weight", (outer, inner, kernel, kernel)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.normalization.{part}", (outer,)
    yield f"{name}.normalization.num_batches_tracked", ()
