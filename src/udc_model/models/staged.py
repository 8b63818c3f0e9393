"""What a ResNet and a ConvNeXt have in common: an embedding, stages, pooling, and a linear head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udc_model.models.base import CustomPreTrainedModel
from udc_model.models.outputs import (
    BaseModelOutputWithNoAttention,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)


class StagedEncoder(nn.Module):
    """The stages, one after the other.

    With ``gradient_checkpointing`` a stage keeps only its input in training and is computed again for its gradients
    (Chen et al. 2016): about a third more time for a fraction of the memory, and the same gradients.
    """

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gradient_checkpointing = False

    def forward(
        self, features: Tensor, output_hidden_states: bool = False, return_dict: bool = True
    ) -> BaseModelOutputWithNoAttention | tuple[Any, ...]:
        """Run all stages on (N, C, H, W), keeping the input and each stage's output if asked to."""
        hidden_states = [features]
        for stage in self.stages:
            if self.gradient_checkpointing and self.training:
                features = checkpoint(stage, features, use_reentrant=False, context_fn=partial(_contexts, stage))
            else:
                features = stage(features)
            hidden_states.append(features)
        output = BaseModelOutputWithNoAttention(features, tuple(hidden_states) if output_hidden_states else None)
        return output if return_dict else output.to_tuple()


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of a stage's first computation and of its second, which must not count in BatchNorm's running statistics."""
    return nullcontext(), _resting_statistics(stage)


@contextmanager
def _resting_statistics(stage: nn.Module) -> Iterator[None]:
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
    """Embedding, encoder, pooling; the architectures say what the first and the last are."""

    encoder: StagedEncoder

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(N, num_channels, H, W) to the first features."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to what the head takes."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """(N, num_channels, H, W) to features (N, C, H', W') and their pooled form."""
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        encoded = self.encoder(self.embed(pixel_values), output_hidden_states=keep)
        features = encoded.last_hidden_state
        output = BaseModelOutputWithPoolingAndNoAttention(features, self.pool(features), encoded.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class ImageClassifier(CustomPreTrainedModel):
    """A staged model, under the attribute ``base_model_prefix``, with a linear head, ``classifier``."""

    base_model_prefix: ClassVar[str]
    classifier: nn.Module

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
        """(N, num_channels, H, W), and labels for a loss, to logits (N, num_labels)."""
        encoded = self.base_model(pixel_values, output_hidden_states, return_dict=True)
        logits = self.classifier(encoded.pooler_output)
        loss = None if labels is None else self.loss(logits, labels)
        output = ImageClassifierOutputWithNoAttention(loss, logits, encoded.hidden_states)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Compute each stage again for its gradients instead of keeping its intermediate results."""
        self.base_model.encoder.gradient_checkpointing = enable

    def stages(self) -> list[list[nn.Module]]:
        """Modules by depth, the embedding with the first stage; what ``num_frozen_stages`` counts."""
        own: list[list[nn.Module]] = [[stage] for stage in self.base_model.encoder.stages]
        own[0].insert(0, self.embedding)
        return own

    @property
    def embedding(self) -> nn.Module:
        """The first layers, before all stages."""
        return next(iter(self.base_model.children()))

    def layers(self) -> list[list[nn.Module]]:
        """Modules by depth for layer-wise learning rates: the embedding, each block (a stage's downsampling goes with
        its first), and the head with the norm before it.
        """
        depths: list[list[nn.Module]] = [[self.embedding]]
        for stage in self.base_model.encoder.stages:
            *before, blocks = stage.children()
            first, *others = cast(nn.Sequential, blocks)
            depths += [[*before, first], *([block] for block in others)]
        head = [m for m in self.base_model.children() if m not in (self.embedding, self.base_model.encoder)]
        return [*depths, [*head, self.classifier]]
