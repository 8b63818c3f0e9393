"""Section ``costs``: what each decision costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator

from udc_model.config.section import ClassName, Section

LARGEST_COST = 1e9  # expected costs stay exact to 1e-7 of a cost of 1
MOST_ACTIONS = 16
SHARE_TOLERANCE = 1e-6  # of the sum of costs.prior
Cost = Annotated[float, Field(ge=-LARGEST_COST, le=LARGEST_COST)]


class CostEntry(Section):
    """Cost of deciding ``predicted`` if the true class is ``true``.

    YAML reads a bare ``true`` as a boolean, in keys too, so it needs quotes: ``{'true': a, predicted: b, cost: 10}``. A
    key cannot be quoted on DVC's command line; write ``actual`` there.
    """

    true: ClassName = Field(validation_alias=AliasChoices("true", "actual"), description="True class.")
    predicted: ClassName = Field(description="Decision.")
    cost: Cost = Field(description="Cost of the decision.")


class CostParams(Section):
    """The cost matrix by class name: true class by decision.

    It is built from ``preset``, or ``matrix`` if that is set; ``entries`` then replace single costs. ``refer`` and
    ``actions`` are decisions other than a class.
    """

    preset: Literal["uniform", "absolute_difference"] = Field(
        "uniform",
        description="uniform: every mistake costs default; absolute_difference: default times the distance of the "
        "classes to the power.",
    )
    default: Annotated[float, Field(ge=0, le=LARGEST_COST)] = Field(
        1.0, description="Cost of a mistake; under absolute_difference per unit of distance."
    )
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="Exponent of the distance under absolute_difference.")
    order: list[ClassName] | None = Field(
        None, description="Order of the classes under absolute_difference; null reads their names as numbers."
    )
    entries: list[CostEntry] = Field([], description="Single costs, as {actual: a, predicted: b, cost: 10}.")
    matrix: dict[str, dict[str, Cost]] | list[list[Cost]] | None = Field(
        None,
        description="All costs by name, as {a: {a: 0, b: 10}, b: {a: 1, b: 0}}, or as rows in the sorted order of the "
        "classes; replaces preset.",
    )
    refer: Annotated[float, Field(ge=0, le=LARGEST_COST)] | None = Field(
        None, description="Cost of referring an image to a person; null means that referral is not available."
    )
    actions: dict[str, Annotated[float, Field(ge=0, le=LARGEST_COST)] | dict[str, Cost]] | None = Field(
        None,
        description="Decisions other than a class with their costs by true class, as {retest: {a: 1, b: 2}, discard: "
        "5}. A number is the cost for every class; a negative cost by class is a gain; of two decisions that cost the "
        "same, the first one is taken.",
    )
    unfamiliar: Literal["warn", "refer"] = Field(
        "warn",
        description="What is done with an image that is farther from the training images than 99 in 100 held-out ones: "
        "warn flags it; refer also refers it to a person, and needs refer.",
    )
    prior: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None,
        description="Class frequencies in deployment, as {a: 0.9, b: 0.1}; classes that are not named share the rest "
        "in proportion to training; null takes those of training.",
    )

    @field_validator("actions")
    @classmethod
    def _are_few(
        cls, actions: dict[str, float | dict[str, float]] | None, info: ValidationInfo
    ) -> dict[str, float | dict[str, float]] | None:
        if actions is not None and len(actions) > MOST_ACTIONS:
            raise ValueError(f"has {len(actions)} actions; at most {MOST_ACTIONS} are possible")
        if actions is not None and "refer" in actions and info.data.get("refer") is not None:
            raise ValueError("names refer, which costs.refer is too; remove one of them")
        return actions

    @field_validator("prior")
    @classmethod
    def _adds_up(cls, prior: dict[str, float] | None) -> dict[str, float] | None:
        if prior is not None and not prior:
            raise ValueError("names no class; null takes the frequencies of training")
        if prior is not None and sum(prior.values()) > 1.0 + SHARE_TOLERANCE:
            raise ValueError(f"the shares add up to {sum(prior.values()):g}; they must add up to 1, or to less if "
                             "classes are not named")  # fmt: skip
        return prior
