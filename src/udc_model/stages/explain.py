"""What ``udc explain`` writes: a page of explained images, outside of the outputs that DVC versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np

from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.evaluation.explanations import shown_rows
from udc_model.evaluation.report_explanations import Explained, Section, explained_sections, pictures, render_page
from udc_model.evaluation.tables import logits_of, read_predictions
from udc_model.evaluation.verdict import cost_text
from udc_model.files import Workspace, write_atomically
from udc_model.inference.decoding import prepared_frames
from udc_model.inference.inputs import BadInput, Input
from udc_model.inference.prediction import Row, decided_rows
from udc_model.inference.stored_model import open_stored
from udc_model.stages.explanations import explainer_of, explanations_of

MOST_IMAGES = 100  # of a page; they are in memory together


def explain_evaluation(workspace: Workspace, target: Path) -> int:
    """Write a page about all images that the report shows in its section on why; returns their number.

    Raises
    ------
    UdcError
        The model, the evaluation or the prepared data is missing, or they do not belong together.
    """
    stored, dataset = open_stored(workspace), PackedDataset.open(workspace.prepared)
    folder, test = workspace.evaluation / "test", dataset.split("test")
    table = read_predictions(folder / "predictions.csv")
    if list(table["sha256"]) != test.digests:
        raise UdcError(f"{folder}: has other images than {workspace.prepared}; run evaluate (dvc repro)")
    rows = shown_rows(folder)
    if not len(rows):
        raise UdcError(f"{folder}: has no mistake that costs, and no referred or unfamiliar image; name image files, "
                       "as in `udc explain photo.jpg`")  # fmt: skip
    explainer, classes = explainer_of(stored, workspace), stored.policy.classes
    logits, labels = logits_of(table.iloc[rows], classes), test.labels[rows]
    decided = [classes.index(name) if name in classes else label
               for name, label in zip(table["predicted"].iloc[rows], labels, strict=True)]  # fmt: skip
    needed = np.stack([np.array(decided, np.int64), labels], axis=1)
    explanations = explanations_of(explainer, rows, np.asarray(test.images[rows]), logits, needed)
    training = dataset.split("train").images
    sections = explained_sections(folder, classes, explanations, test.images, training)
    write_atomically(target, render_page("Explanations of the evaluation", sections, explanations.method))
    return len(rows)


def explain_images(
    inputs: Iterable[Input], workspace: Workspace, report: Callable[[BadInput], None], target: Path
) -> int:
    """Write a page about image files: decisions, maps for the decided or the most probable class, similar images.

    Parameters
    ----------
    inputs : the images, at most `MOST_IMAGES`.
    report : is called with each input that cannot be used.

    Returns
    -------
    The number of images on the page; without any, there is no page.

    Raises
    ------
    UdcError
        The model, the evaluation or the prepared data is missing, or there are too many images.
    """
    stored, dataset = open_stored(workspace), PackedDataset.open(workspace.prepared)
    frames = chain.from_iterable(prepared_frames(each, stored.preprocessing, report) for each in inputs)
    named = list(islice(frames, MOST_IMAGES + 1))
    if len(named) > MOST_IMAGES:
        raise UdcError(f"udc explain: explains {MOST_IMAGES} images on a page; name fewer")
    if not named:
        return 0
    names, images = [name for name, _ in named], np.stack([image for _, image in named])
    explainer, classes = explainer_of(stored, workspace), stored.policy.classes
    outputs = explainer.classifier.outputs_of_stored(images)
    decided = decided_rows(outputs, stored.policy)
    best = outputs.logits.argmax(axis=1)
    labels = np.array([classes.index(row["class"]) if row["class"] in classes else best[i]
                       for i, row in enumerate(decided)])  # fmt: skip
    explanations = explanations_of(explainer, np.arange(len(images)), images, outputs.logits, labels[:, None])
    training = dataset.split("train").images
    explained = []
    for i, row in enumerate(decided):
        other = next((int(each) for each in explanations.classes[i] if each != labels[i]), int(labels[i]))
        shown = pictures(images[i], i, int(labels[i]), other, classes, explanations, training)
        explained.append(Explained(names[i], f"{names[i]}: {_text(row)}", shown))
    write_atomically(target, render_page("Explanations", [Section("Images", explained)], explanations.method))
    return len(images)


def _text(row: Row) -> str:
    """The decision about an image, its expected cost, and the most probable class."""
    name, probability = max(row["probabilities"].items(), key=lambda item: item[1])
    text = f"decided {row['class']}, expected cost {cost_text(row['expected_cost'])}; {name} has p = {probability:.2f}"
    return f"{text}; familiarity {row['familiarity']:.2g}" if "familiarity" in row else text
