"""Base classes of all architectures: configuration, classification loss, saving and loading.

Class names, attributes and file formats follow Hugging Face transformers, so model folders can be exchanged with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from udc_model.checksums import read_checksums
from udc_model.errors import UdcError
from udc_model.model_files.folder import ADVICE, WEIGHTS, ModelFolder, read_settings
from udc_model.model_files.settings import Architecture, Settings

Loss = Callable[[Tensor, Tensor], Tensor]


class CustomConfig:
    """Base class of configurations: plain attributes, stored in ``config.json``.

    Parameters
    ----------
    num_labels : number of classes, with the names ``LABEL_0``, ``LABEL_1`` and so on.
    id2label : class names by index; overrides ``num_labels``.
    problem_type : ``single_label_classification``, ``multi_label_classification``, ``regression``, or None, see
        `classification_loss`.
    output_hidden_states : return hidden states by default.
    return_dict : return output objects by default, else tuples.
    extra : further keys of a ``config.json``; they have no effect and are written unchanged.
    """

    model_type: ClassVar[str] = ""
    architecture: ClassVar[str] = ""

    def __init__(
        self,
        num_labels: int = 2,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **extra: Any,
    ) -> None:
        names = id2label if id2label is not None else {i: f"LABEL_{i}" for i in range(num_labels)}
        self.id2label = {int(i): str(name) for i, name in names.items()}
        self.problem_type = problem_type
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        self.extra = extra

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Class indices by class name."""
        return {name: i for i, name in self.id2label.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values, in the format of transformers."""
        settings = {key: value for key, value in vars(self).items() if key not in ("extra", "id2label")}
        return self.extra | settings | {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "id2label": {str(i): name for i, name in sorted(self.id2label.items())},
            "label2id": self.label2id,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        settings = {key: value for key, value in settings.items() if key not in _DERIVED}
        return cls(**settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read ``config.json``.

        Raises
        ------
        UdcError
            The file is missing, damaged or describes another architecture.
        """
        folder = Path(folder)
        return cls._of_settings(*read_settings(folder, read_checksums(folder, ADVICE)), folder)

    @classmethod
    def _of_settings(cls, settings: Settings, architecture: Architecture, folder: Path) -> Self:
        kind = settings["model_type"]
        if kind != cls.model_type:
            raise UdcError(f"{folder}/config.json: model_type is {kind!r}, expected {cls.model_type!r}")
        try:
            return cls.from_dict(settings | {"id2label": architecture.id2label})
        except (TypeError, ValueError) as error:
            raise UdcError(f"{folder}/config.json: {error}") from None

    @classmethod
    def of_folder(cls, stored: ModelFolder) -> Self:
        """The configuration of a folder that was read; :class:`UdcError` if it describes another architecture."""
        return cls._of_settings(stored.settings, stored.architecture, stored.folder)


_DERIVED = ("architectures", "model_type", "label2id", "num_labels")


class CustomPreTrainedModel(nn.Module):
    """Base class of models: initialisation, and model folders in Hugging Face's format without pickles."""

    config_class: ClassVar[type[CustomConfig]] = CustomConfig

    def __init__(self, config: CustomConfig) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Initialise all weights, unless they have only shapes; to be called at the end of a model's constructor."""
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; equal weights give equal bytes.

        Raises
        ------
        UdcError
            The weights cannot be written.
        """
        self.config.save_pretrained(folder)
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        path = Path(folder) / "model.safetensors"
        try:
            save_file(state, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UdcError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read a folder written by :meth:`save_pretrained` or its counterpart in transformers.

        Returns
        -------
        The model in eval mode.

        Raises
        ------
        UdcError
            A file is missing or damaged, or the weights do not match the configuration.
        """
        return cls.of_folder(ModelFolder.open(Path(folder)))

    @classmethod
    def of_folder(cls, stored: ModelFolder) -> Self:
        """The model of a folder that was read, in eval mode; see `from_pretrained`."""
        with torch.device("meta"):  # nothing is allocated or drawn: all weights are assigned below
            model = cls(cls.config_class.of_folder(stored))
        try:
            tensors = load(stored.weights)
            types = {name: value.dtype for name, value in model.state_dict().items()}
            model.load_state_dict({name: value.to(types[name]) for name, value in tensors.items()}, assign=True)
        except (SafetensorError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UdcError(f"{stored.folder / WEIGHTS}: cannot be loaded: {reason}; {ADVICE}") from None
        return model.eval()

    def set_loss(self, loss_fn: Loss) -> None:
        """Replace the built-in loss; ``loss_fn`` maps logits (N, K) and labels (N,) to a scalar."""
        self._loss_fn = loss_fn

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of :meth:`set_loss`, by default `classification_loss`."""
        if getattr(self, "_loss_fn", None) is not None:
            return self._loss_fn(logits, labels)
        return classification_loss(logits, labels, self.config)


def classification_loss(logits: Tensor, labels: Tensor, config: CustomConfig) -> Tensor:
    """Compute cross entropy, binary cross entropy or squared error, depending on ``config.problem_type``.

    None means ``single_label_classification``. Unlike transformers, this function never infers another problem type.

    Raises
    ------
    ValueError
        ``problem_type`` is None, but there is only one class or the labels are not integers.
    """
    problem = config.problem_type
    if problem is None:
        if config.num_labels < 2 or labels.dtype not in (torch.long, torch.int):
            raise ValueError(
                f"{config.num_labels} label(s) of type {labels.dtype}: set config.problem_type to 'regression', "
                "'multi_label_classification' or 'single_label_classification'"
            )
        problem = "single_label_classification"
    if problem == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze())
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits.view(-1, config.num_labels), labels.view(-1))
