"""The class of each architecture, by ``model_type``."""

from __future__ import annotations

from udc_model.models.convnext import ConvNextForImageClassification
from udc_model.models.resnet import ResNetForImageClassification
from udc_model.models.staged import ImageClassifier
from udc_model.models.timm_classifier import TimmForImageClassification

CLASSIFIERS: dict[str, type[ImageClassifier]] = {
    kind.config_class.model_type: kind
    for kind in (ResNetForImageClassification, ConvNextForImageClassification, TimmForImageClassification)
}
