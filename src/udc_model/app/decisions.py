"""The model behind the page: images to outputs of the network, and outputs to decisions under the session's costs."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from udc_model.app.archives import MOST_FILES
from udc_model.app.costs import params_lines, under_session_costs
from udc_model.decisions.decision import expected_costs
from udc_model.decisions.session_costs import SessionCosts
from udc_model.errors import UdcError
from udc_model.evaluation.report_images import thumbnail_uri
from udc_model.evaluation.tables import read_predictions
from udc_model.files import Workspace
from udc_model.inference.decoding import NamedImage, prepared_frames
from udc_model.inference.inputs import BadInput, Input
from udc_model.inference.outputs import Outputs
from udc_model.inference.prediction import Row, decided_rows, in_batches, named_outputs, write_predictions
from udc_model.inference.stored_model import open_stored

MOST_FRAMES = 64  # of an uploaded image
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet reads a value that begins with one of these as a formula


@dataclass(frozen=True)
class NamedOutputs:
    """What the network computes of an image.

    Parameters
    ----------
    name : of the image.
    outputs : logits and, if the policy has familiarity, the distance: base64 text of float32 numbers. The page returns
        it when costs change, so that the server stores nothing.
    image : what the network gets, as a data URI; empty for the images of archives.
    """

    name: str
    outputs: str
    image: str = ""


class Decider:
    """A trained model with its policy.

    Parameters
    ----------
    workspace : with ``model/`` and ``evaluation/``.

    Raises
    ------
    UdcError
        A file is missing or damaged.
    """

    def __init__(self, workspace: Workspace) -> None:
        stored = open_stored(workspace)
        self.policy, self.preprocessing = stored.policy, stored.preprocessing
        self.classifier = stored.load()
        path = workspace.evaluation / "calibration" / "predictions.csv"
        self._calibration: pd.DataFrame | None = read_predictions(path) if path.is_file() else None
        self._params_file = workspace.root / "params.yaml"
        self._network = threading.Lock()  # one forward pass at a time

    @property
    def width(self) -> int:
        """Numbers that the network computes of an image."""
        return len(self.policy.classes) + (self.policy.familiarity is not None)

    def outputs_of(self, each: Input) -> tuple[list[NamedOutputs], list[BadInput]]:
        """The outputs of the frames of an image, and why it, or a frame, cannot be used."""
        bad: list[BadInput] = []
        frames = list(islice(prepared_frames(each, self.preprocessing, bad.append), MOST_FRAMES + 1))
        if len(frames) > MOST_FRAMES:
            frames.pop()
            bad.append(BadInput(each.name, f"has more than {MOST_FRAMES} frames; only these are decided"))
        return [NamedOutputs(of.name, of.outputs, thumbnail_uri(pixels))
                for of, (_, pixels) in zip(self._computed(frames), frames, strict=True)], bad  # fmt: skip

    def outputs_of_all(
        self, inputs: Iterable[Input], report: Callable[[BadInput], None]
    ) -> Iterator[list[NamedOutputs]]:
        """Yield the outputs of images in batches; ``report`` is called with each input that cannot be used.

        Raises
        ------
        UdcError
            The images have too many frames.
        """
        count = 0
        for batch in in_batches(
            image for each in inputs for image in prepared_frames(each, self.preprocessing, report)
        ):
            count += len(batch)
            if count > 2 * MOST_FILES:
                raise UdcError(f"the images have more than {2 * MOST_FILES:,} frames; decide them with udc score")
            yield self._computed(batch)

    def _computed(self, frames: list[NamedImage]) -> list[NamedOutputs]:
        if not frames:
            return []
        with self._network:
            ((names, outputs),) = named_outputs([frames], self.classifier)
        numbers = outputs.logits if outputs.distances is None else np.column_stack([outputs.logits, outputs.distances])
        return [NamedOutputs(name, base64.b64encode(row.astype("<f4").tobytes()).decode("ascii"))
                for name, row in zip(names, numbers, strict=True)]  # fmt: skip

    def _decoded(self, texts: Sequence[str]) -> Outputs:
        """The outputs in texts that `NamedOutputs` had; :class:`UdcError` if one is damaged."""
        try:
            rows = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in texts]
        except ValueError:
            rows = []
        if len(rows) != len(texts) or any(len(row) != self.width for row in rows):
            raise UdcError("the outputs are damaged, or of another model; load the page and the images again")
        numbers = np.array(rows, dtype=np.float32).reshape(-1, self.width)
        k = len(self.policy.classes)
        if not np.isfinite(numbers[:, :k]).all():
            raise UdcError("the outputs of the network are not finite; train the model again (dvc repro -f train)")
        return Outputs(numbers[:, :k], numbers[:, k] if self.width > k else None)

    def decide(self, texts: Sequence[str], costs: SessionCosts, is_brief: bool = False) -> dict[str, Any]:
        """The decisions for images under the costs of the session.

        Parameters
        ----------
        texts : the outputs of the images.
        is_brief : without probabilities, and without the expected cost of each decision.

        Returns
        -------
        ``rows``, see `decided_rows`, each with ``costs``, the expected cost of each decision by name; and ``params``,
        the lines for params.yaml if the costs are not the stored ones, see `params_lines`.
        """
        policy = under_session_costs(self.policy, costs, self._calibration)
        outputs = self._decoded(texts)
        rows = decided_rows(outputs, policy)
        if is_brief:
            rows = [row | {"probabilities": {}, "probability": row["probabilities"].get(row["class"])} for row in rows]
        elif rows:
            expected = expected_costs(policy.probabilities(outputs.logits), policy.outcome_costs)
            rows = [row | {"costs": dict(zip(policy.outcomes, values, strict=True))}
                    for row, values in zip(rows, expected.tolist(), strict=True)]  # fmt: skip
        return {"rows": rows, "params": "" if policy is self.policy else params_lines(policy, self._params_file)}

    def table(self, names: Sequence[str], texts: Sequence[str], costs: SessionCosts) -> str:
        """The decisions as ``udc predict --csv`` writes them; no name is a formula for a spreadsheet."""
        policy = under_session_costs(self.policy, costs, self._calibration)
        rows: list[Row] = [
            {"path": f"'{name}" if name.startswith(_FORMULA) else name} | row
            for name, row in zip(names, decided_rows(self._decoded(texts), policy), strict=True)
        ]
        text = io.StringIO(newline="")
        write_predictions([rows], "csv", text)
        return text.getvalue()
