"""Section ``loss``: the training loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from udc_model.config.section import Section, Share

COST_SENSITIVE_LOSSES = frozenset(
    {
        "expected_cost",
        "cost_regularized",
        "cost_weighted",
        "legacy_logit_adjustment",
        "legacy_logit_adjustment_regularized",
        "legacy_cost_matrix_cross_entropy",
    }
)

# The parameters of the section that each loss uses, besides ``name``.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("label_smoothing", "class_weights"),
    "focal": ("focal_gamma",),
    "class_balanced": ("class_balanced_beta",),
    "ldam": ("ldam_max_margin", "ldam_scale", "class_balanced_beta"),
    "logit_adjusted": ("logit_adjusted_tau",),
    "seesaw": (),
    "expected_cost": ("warmup_epochs",),
    "cost_regularized": ("cost_lambda", "warmup_epochs"),
    "cost_weighted": (),
    "legacy_logit_adjustment": (),
    "legacy_logit_adjustment_regularized": ("cost_lambda", "warmup_epochs"),
    "legacy_cost_matrix_cross_entropy": (),
}


class LossParams(Section):
    """The training loss. Each loss uses some of the parameters; the others have no effect."""

    name: Literal[
        "cross_entropy",
        "focal",
        "class_balanced",
        "ldam",
        "logit_adjusted",
        "seesaw",
        "expected_cost",
        "cost_regularized",
        "cost_weighted",
        "legacy_logit_adjustment",
        "legacy_logit_adjustment_regularized",
        "legacy_cost_matrix_cross_entropy",
    ] = Field("cross_entropy", description="The loss; the legacy ones are for old configurations only.")
    label_smoothing: Share = Field(0.0, description="Label smoothing of cross_entropy.")
    class_weights: Literal["balanced"] | None = Field(
        None, description="Class weights of cross_entropy: balanced is by inverse frequency; null is no weights."
    )
    focal_gamma: Annotated[float, Field(ge=0)] = Field(
        2.0, description="Gamma of focal (Lin 2017); 0 is cross_entropy."
    )
    class_balanced_beta: Share = Field(
        0.999,
        description="Beta of class_balanced (Cui 2019), and of the last fifth of the epochs of ldam; near 1 weights by "
        "inverse frequency.",
    )
    ldam_max_margin: Annotated[float, Field(ge=0)] = Field(
        0.5, description="Margin of the rarest class in ldam (Cao 2019)."
    )
    ldam_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Factor on the logits in ldam; the paper's 30 is for a head with unit vectors."
    )
    logit_adjusted_tau: Annotated[float, Field(ge=0)] = Field(1.0, description="Tau of logit_adjusted (Menon 2021).")
    cost_lambda: Annotated[float, Field(ge=0)] = Field(
        10.0, description="Weight of the expected cost in cost_regularized (Galdran 2020)."
    )
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        5,
        description="Epochs until cost_lambda is reached (cost_regularized), or until the expected cost has replaced "
        "cross entropy (expected_cost).",
    )

    @model_validator(mode="after")
    def _consistent(self) -> LossParams:
        if self.name != "cross_entropy" and (self.label_smoothing or self.class_weights):
            raise ValueError(f"label_smoothing and class_weights belong to cross_entropy, not to {self.name}")
        return self

    @property
    def used(self) -> tuple[str, ...]:
        """The parameters of this section that the loss uses, besides ``name``."""
        return LOSS_OPTIONS[self.name]
