"""The common structure of ResNet and ConvNeXt: embedding, stages, pooling and a linear head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udc_model.models.base import CustomPreTrainedModel
from udc_model.models.layouts import LAYOUTS, KeyLayout
from udc_model.models.outputs import (
    BaseModelOutputWithNoAttention,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)


class StagedEncoder(nn.Module):
    """A sequence of stages.

    With ``gradient_checkpointing``, training stores only the input of each stage and computes the stage again for the
    gradients (Chen et al. 2016). The gradients are the same, the time is about a third longer, and the memory for
    activations is a fraction.
    """

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gradient_checkpointing = False

    def forward(
        self, features: Tensor, output_hidden_states: bool = False, return_dict: bool = True
    ) -> BaseModelOutputWithNoAttention | tuple[Any, ...]:
        """Apply all stages to (N, C, H, W); the hidden states are the input and the output of each stage."""
        hidden_states = [features]
        for stage in self.stages:
            if self.gradient_checkpointing and self.training:
                features = checkpoint(
                    stage, features, use_reentrant=False, context_fn=partial(_checkpoint_contexts, stage)
                )
            else:
                features = stage(features)
            hidden_states.append(features)
        output = BaseModelOutputWithNoAttention(features, tuple(hidden_states) if output_hidden_states else None)
        return output if return_dict else output.to_tuple()


def _checkpoint_contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and the second computation of a stage."""
    return nullcontext(), _frozen_running_statistics(stage)


@contextmanager
def _frozen_running_statistics(stage: nn.Module) -> Iterator[None]:
    """Prevent the second computation from updating BatchNorm's running statistics again."""
    norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(norm.momentum, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).copy_(count)


class StagedModel(CustomPreTrainedModel):
    """Embedding, encoder and pooling; subclasses define embedding and pooling."""

    encoder: StagedEncoder

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to the input of the first stage (N, C, H', W')."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the input of the head."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Map (N, num_channels, H, W) to features (N, C, H', W') and pooled features."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoded = self.encoder(self.embed(pixel_values), output_hidden_states=output_hidden_states)
        features = encoded.last_hidden_state
        output = BaseModelOutputWithPoolingAndNoAttention(features, self.pool(features), encoded.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class ImageClassifier(CustomPreTrainedModel):
    """A staged model, stored in the attribute ``base_model_prefix``, with a linear head ``classifier``."""

    base_model_prefix: ClassVar[str]
    classifier: nn.Module

    def key_layouts(self) -> list[KeyLayout]:
        """The layouts of checkpoints that the model can load."""
        return LAYOUTS[self.config.model_type]

    @property
    def base_model(self) -> StagedModel:
        """The model without its head."""
        return cast(StagedModel, getattr(self, self.base_model_prefix))

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Map (N, num_channels, H, W) to logits (N, num_labels), and to a loss if there are ``labels``."""
        encoded = self.base_model(pixel_values, output_hidden_states, return_dict=True)
        logits = self.classifier(encoded.pooler_output)
        loss = None if labels is None else self.loss(logits, labels)
        output = ImageClassifierOutputWithNoAttention(loss, logits, encoded.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map (N, num_channels, H, W) to the input of the head (N, D)."""
        return cast(Tensor, self.base_model(pixel_values, return_dict=True).pooler_output.flatten(1))

    def logits_and_features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N, num_channels, H, W) to logits (N, num_labels) and, in a list, `features` (N, D), in one pass."""
        features = self.features(pixel_values)
        return self.head(features), [features]

    def head(self, features: Tensor) -> Tensor:
        """Map `features` (N, D) to logits (N, num_labels)."""
        return cast(Tensor, self.classifier(features))

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing, see `StagedEncoder`."""
        self.base_model.encoder.gradient_checkpointing = enable

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of each stage, with the embedding in the first; ``num_frozen_stages`` counts these."""
        modules: list[list[nn.Module]] = [[stage] for stage in self.base_model.encoder.stages]
        modules[0].insert(0, self.embedding)
        return modules

    @property
    def embedding(self) -> nn.Module:
        """The layers before the first stage."""
        return next(iter(self.base_model.children()))

    def layers(self) -> list[list[nn.Module]]:
        """Return the modules by depth, for layer-wise learning rates.

        These are the embedding, each block (the first one of a stage with its downsampling), and the head with the
        norm before it.
        """
        layers: list[list[nn.Module]] = [[self.embedding]]
        for stage in self.base_model.encoder.stages:
            *downsampling, blocks = stage.children()
            first_block, *further_blocks = cast(nn.Sequential, blocks)
            layers += [[*downsampling, first_block], *([block] for block in further_blocks)]
        head = [m for m in self.base_model.children() if m not in (self.embedding, self.base_model.encoder)]
        return [*layers, [*head, self.classifier]]
