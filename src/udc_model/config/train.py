"""Section ``train``: optimisation, augmentation, and how the training run is executed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from udc_model.config.section import Positive, Section, Share

MAX_MEMBERS = 20
WITHOUT_EFFECT = ("checkpoint_minutes", "loader_workers", "engine")  # they change no bit of the result


class TrainParams(Section):
    """Optimisation, augmentation, and how the training run is executed."""

    epochs: Positive = Field(20, description="Passes over the training images.")
    members: Annotated[int, Field(ge=1, le=MAX_MEMBERS)] = Field(
        1,
        description="Networks of an ensemble, each with another seed, whose probabilities are averaged: training and "
        "prediction take this many times as long.",
    )
    batch_size: Positive | Literal["auto"] = Field(
        64,
        description="Images per step, at most the training images or 1,024; auto is the largest power of two that fits "
        "into the GPU's memory.",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Largest learning rate, that of the head.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.05, description="Weight decay of all weights but norms, biases and layer scales."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of sgd.")
    schedule: Literal["cosine", "linear", "constant", "step", "one_cycle"] = Field(
        "cosine", description="Learning rate after the warm-up."
    )
    warmup_ratio: Share = Field(0.1, description="Share of all steps in which the learning rate rises.")
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Epochs in which the learning rate rises; null uses warmup_ratio."
    )
    step_epochs: Positive = Field(30, description="Epochs after which schedule step lowers the learning rate.")
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1, description="Factor by which schedule step lowers the learning rate."
    )
    accumulation: Positive = Field(
        1,
        description="Parts of a batch, at most batch_size, whose gradients are added up before a step: less memory, "
        "the same gradient.",
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of an exponential moving average of the weights (0.999 is common); null is no average."
    )
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the gradient; null is no limit."
    )
    num_frozen_stages: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0, description="Number of first stages that are frozen, and the stem with them; all trains the head only."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor on the learning rate from each layer to the one before it."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute each stage twice instead of storing it: less memory, a third more time."
    )
    sampling_power: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0,
        description="A class of n images gets a share of each epoch proportional to n to this power: 1 uses each image "
        "once, 0 balances the classes (Kang 2020).",
    )
    augment: Literal["none", "light", "standard", "strong"] = Field(
        "none",
        description="Random crops: light of 80 % of the area or more, standard of 35 % or more; strong adds "
        "TrivialAugment and random erasing.",
    )
    horizontal_flip: bool = Field(False, description="Mirror half of the training images.")
    quarter_turns: bool = Field(
        False, description="Rotate training images by 0, 90, 180 or 270 degrees, for images without an up and down."
    )
    auto_augment: Literal["none", "randaugment", "trivialaugment"] | None = Field(
        None, description="Automatic augmentation; null is as set by augment."
    )
    color_jitter: Share = Field(0.0, description="Largest relative change of brightness, contrast and saturation.")
    random_erasing: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Share of the images that lose a rectangle; null is as set by augment."
    )
    mixup: Annotated[float, Field(ge=0)] = Field(0.0, description="Alpha of MixUp; 0 switches it off.")
    cutmix: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Alpha of CutMix; 0 switches it off. With MixUp, each takes half of the batches."
    )
    monitor: Literal["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "normalised_cost"] = Field(
        "log_loss",
        description="Metric on the validation split that chooses the epoch; normalised_cost is that of the policy "
        "which will be deployed.",
    )
    early_stopping_patience: Positive | None = Field(
        None, description="Epochs without improvement after which training ends; null trains all epochs."
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Training of a network ends after the epoch that reaches this time in minutes; null sets no limit.",
    )
    checkpoint_minutes: Annotated[float, Field(gt=0)] = Field(
        10.0, description="Minutes between two checkpoints within an epoch; each epoch ends with one."
    )
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Processes that load and augment images ahead, at most four per core; their number changes no "
        "result.",
    )
    processes: Positive = Field(
        1, description="Processes that share each batch, at most four per core of this machine; on GPUs, one per GPU."
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="What starts the processes: local on this machine; ray on the cluster in the environment variable "
        "RAY_ADDRESS, or on one that is started here.",
    )
    sync_batchnorm: bool = Field(False, description="BatchNorm statistics over all processes; GPUs only.")
    sharded: bool = Field(
        False, description="Each process stores a part of the model (FSDP), for models larger than a GPU's memory."
    )
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    deterministic: bool = Field(True, description="Same bits on every run; false is faster on some GPUs.")
    tf32: bool = Field(False, description="TF32 for fp32 products on GPUs: faster, less exact.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of the forward pass; auto is bf16 where the hardware computes it fast, else fp32.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Device; auto prefers a GPU.")

    @model_validator(mode="after")
    def _parts_have_images(self) -> TrainParams:
        if isinstance(self.batch_size, int) and self.accumulation > self.batch_size:
            raise ValueError(f"accumulation: got {self.accumulation:,} parts of a batch, but batch_size is "
                             f"{self.batch_size:,}; at most as many as batch_size are allowed")  # fmt: skip
        return self
