"""A model folder and its policy, read and checked together before PyTorch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import POLICY_FILE, Policy, policy_path
from udc_model.errors import UdcError
from udc_model.files import Workspace, read_consistently
from udc_model.inference.feature_statistics import FAMILIARITY_FILE, FeatureStatistics
from udc_model.model_files.folder import ModelFolder
from udc_model.model_files.settings import check_channels
from udc_model.model_files.shapes import head_shapes

if TYPE_CHECKING:
    from udc_model.inference.classifier import TrainedClassifier

_POLICY_BYTES = 2**20  # of a policy of few classes
_BYTES_PER_COST = 128  # of a policy, for each pair of classes: its cost and the weight of a calibration


@dataclass(frozen=True)
class StoredModel:
    """The contents of a model folder and a policy file that belong together.

    ``statistics`` are those of features, from the file beside the policy; None if the policy has no familiarity.
    """

    model: ModelFolder
    preprocessing: Preprocessing
    policy: Policy
    statistics: FeatureStatistics | None = None

    @classmethod
    def open(cls, model: Path, policy: Path) -> StoredModel:
        """Read a model folder, and a policy file or the one in a folder.

        Parameters
        ----------
        policy : path of the file, or a folder with it.

        Raises
        ------
        UdcError
            A file is missing or damaged, a value is not allowed, or the files do not belong together.
        """
        folder = policy if policy.is_dir() else policy.parent
        return read_consistently([model, folder], lambda: cls._read(model, policy))

    @classmethod
    def _read(cls, folder: Path, path: Path) -> StoredModel:
        model, preprocessing = ModelFolder.open(folder), Preprocessing.load(folder)
        check_channels(model.architecture, preprocessing.channels, str(folder))
        policy = Policy.load(path, _POLICY_BYTES + _BYTES_PER_COST * len(model.classes) ** 2)
        check_policy_fits(policy, model, str(policy_path(path)))
        statistics = None
        if policy.familiarity is not None:
            statistics = FeatureStatistics.read(policy_path(path).parent / FAMILIARITY_FILE, policy.familiarity)
        return cls(model, preprocessing, policy, statistics)

    def load(self) -> TrainedClassifier:
        """The model on the best available device."""
        from udc_model.inference.classifier import TrainedClassifier

        return TrainedClassifier.of(self.model, self.preprocessing, self.policy.flip_averaging,
                                    self.policy.precision, self.statistics)  # fmt: skip


def open_stored(workspace: Workspace) -> StoredModel:
    """The model and the policy of a workspace; see :meth:`StoredModel.open`."""
    return StoredModel.open(workspace.model, workspace.evaluation / POLICY_FILE)


def check_policy_fits(policy: Policy, model: ModelFolder, origin: str) -> None:
    """Check that a policy has the classes of the model, and was fitted on its logits; ``origin`` names the policy.

    Raises
    ------
    UdcError
        They do not belong together.
    """
    if model.classes != policy.classes:
        raise UdcError(f"{origin} is for the classes {_names(policy.classes)}, "
                       f"but the model has the classes {_names(model.classes)}")  # fmt: skip
    expected = policy.model_sha256
    if expected is not None and (digest := model.weights_sha256) != expected:
        raise UdcError(f"{origin}: was fitted for another model ({expected[:12]}) than the one in {model.folder} "
                       f"({digest[:12]}); run evaluate (dvc repro)")  # fmt: skip
    familiarity = policy.familiarity
    if familiarity is None:
        return
    heads = head_shapes(model.architecture)
    if [familiarity.features] * familiarity.networks != [features for _, features in heads]:
        raise UdcError(f"{origin}: its familiarity is of {familiarity.networks} network(s) with "
                       f"{familiarity.features:,} features, but {model.folder} has {len(heads)} with "
                       f"{heads[0][1]:,}; run evaluate (dvc repro)")  # fmt: skip


def _names(classes: list[str]) -> str:
    shown = ", ".join(classes[:20])
    return (shown if len(classes) <= 20 else f"{shown} and {len(classes) - 20} more")[:2000]
