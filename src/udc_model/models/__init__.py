"""ResNet and ConvNeXt as in Hugging Face transformers (weight names, outputs, folders), and networks of timm."""

from udc_model.models.base import CustomConfig, CustomPreTrainedModel
from udc_model.models.convnext import (
    ConvNextConfig,
    ConvNextEmbeddings,
    ConvNextEncoder,
    ConvNextForImageClassification,
    ConvNextLayer,
    ConvNextLayerNorm,
    ConvNextModel,
    ConvNextStage,
)
from udc_model.models.ensemble import Ensemble, EnsembleConfig
from udc_model.models.factory import build_model, load_model
from udc_model.models.outputs import (
    BaseModelOutputWithNoAttention,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    ModelOutput,
)
from udc_model.models.resnet import (
    ResNetBasicLayer,
    ResNetBottleNeckLayer,
    ResNetConfig,
    ResNetConvLayer,
    ResNetEmbeddings,
    ResNetEncoder,
    ResNetForImageClassification,
    ResNetModel,
    ResNetShortCut,
    ResNetStage,
)
from udc_model.models.staged import ImageClassifier
from udc_model.models.timm_classifier import TimmConfig, TimmForImageClassification, TimmModel

__all__ = [
    "BaseModelOutputWithNoAttention",
    "BaseModelOutputWithPoolingAndNoAttention",
    "ConvNextConfig",
    "ConvNextEmbeddings",
    "ConvNextEncoder",
    "ConvNextForImageClassification",
    "ConvNextLayer",
    "ConvNextLayerNorm",
    "ConvNextModel",
    "ConvNextStage",
    "CustomConfig",
    "CustomPreTrainedModel",
    "Ensemble",
    "EnsembleConfig",
    "ImageClassifier",
    "ImageClassifierOutputWithNoAttention",
    "ModelOutput",
    "ResNetBasicLayer",
    "ResNetBottleNeckLayer",
    "ResNetConfig",
    "ResNetConvLayer",
    "ResNetEmbeddings",
    "ResNetEncoder",
    "ResNetForImageClassification",
    "ResNetModel",
    "ResNetShortCut",
    "ResNetStage",
    "TimmConfig",
    "TimmForImageClassification",
    "TimmModel",
    "build_model",
    "load_model",
]
