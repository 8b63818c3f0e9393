"""Why: the images of the report with a saliency map and similar training images of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from udc_model.data.stored_images import StoredImages
from udc_model.evaluation.explanations import SHOWN, Explanations
from udc_model.evaluation.overlay import network_view, overlay
from udc_model.evaluation.report_images import thumbnail_uri
from udc_model.evaluation.tables import REFERRED
from udc_model.evaluation.unfamiliar import LEAST_FAMILIAR
from udc_model.evaluation.verdict import cost_text

SIDE = 112  # pixels of an image; a map has few cells, and needs no more
_TABLES = {  # by title
    "Costliest mistakes": "costliest_mistakes.csv",
    "Referred, or decided as another action": REFERRED,
    "Least familiar": LEAST_FAMILIAR,
}
Images = StoredImages | NDArray[np.uint8]


@dataclass(frozen=True)
class Explained:
    """One image: text, and for each picture a caption and a data URI, the image itself first."""

    path: str
    text: str
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """Images of one kind; ``unexplained`` counts those without a map."""

    title: str
    images: list[Explained] = field(default_factory=list)
    unexplained: int = 0


def explained_sections(
    folder: Path, classes: Sequence[str], explanations: Explanations, images: Images, training: Images
) -> list[Section]:
    """The images that are explained, by kind; kinds without images are left out.

    Parameters
    ----------
    folder : of the test split in an evaluation folder.
    classes : names of the classes.
    explanations : of test images.
    images, training : prepared images of the test split and of the training split.
    """
    sections = []
    for title, name in _TABLES.items():
        if not (folder / name).is_file():
            continue
        text = dict.fromkeys(("true", "decided", "most_probable", "path"), str)
        table = pd.read_csv(folder / name, dtype=text, keep_default_na=False, nrows=SHOWN)
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        shown = [_explained(row, classes, explanations, images, training) for row in rows]
        if shown:
            missing = sum(len(each.pictures) == 1 for each in shown)
            sections.append(Section(title, shown, missing))
    return sections


def _explained(
    row: Mapping[str, Any], classes: Sequence[str], explanations: Explanations, images: Images, training: Images
) -> Explained:
    true, decided = classes.index(row["true"]), row["decided"]
    shown, compared = classes.index(decided) if decided in classes else None, true
    place = explanations.place(row["row"])
    if shown is None and place is not None and explanations.classes[place] == true:
        compared = int(explanations.classes[place[0], :2][-1])  # the class from which it was hard to tell
    shown_pictures = pictures(np.array(images[row["row"]]), row["row"], shown, compared, classes, explanations,
                              training)  # fmt: skip
    return Explained(row["path"], _text(row), shown_pictures)


def pictures(
    image: NDArray[np.uint8], row: int, shown: int | None, compared: int, classes: Sequence[str],
    explanations: Explanations, training: Images,
) -> list[tuple[str, str]]:  # fmt: skip
    """Caption and data URI of an image, its map, and similar training images; of the image alone if it has no map.

    Parameters
    ----------
    image : (S, S, C) prepared image.
    row : of the image in ``explanations``.
    shown : class index of the map; None for the most probable class.
    compared : class index of another similar training image.
    classes : names of the classes.
    training : prepared images of the training split.
    """
    view = network_view(image, explanations.size)
    of_image = [("image", thumbnail_uri(view, SIDE))]
    place = explanations.place(row, shown)
    if place is None:
        return of_image
    label = int(explanations.classes[place])
    of_map = [(f"for {classes[label]}", thumbnail_uri(overlay(view, explanations.maps[place]), SIDE))]
    similar = []
    for each in dict.fromkeys((label, compared)):
        found = explanations.place(row, each)
        neighbour = -1 if found is None else int(explanations.neighbours[found])
        if neighbour >= 0:
            pixels = network_view(np.array(training[neighbour]), explanations.size)
            similar.append((f"training image of {classes[each]}", thumbnail_uri(pixels, SIDE)))
    return of_image + of_map + similar


def _text(row: Mapping[str, Any]) -> str:
    """True class and decision, and what the kind of image adds."""
    text = f"{row['true']} decided {row['decided']}"
    if "expected_cost" in row:
        return f"{text}; {row['most_probable']} is most probable, expected cost {cost_text(row['expected_cost'])}"
    if "familiarity" in row:
        return f"{text}, familiarity {row['familiarity']:.2g}"
    return f"{text}, cost {cost_text(row['cost'])}"


def render_page(title: str, sections: Sequence[Section], method: str) -> str:
    """A page of explained images by themselves, as HTML; ``method`` is that of the maps."""
    environment = Environment(
        loader=PackageLoader("udc_model.evaluation", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("explanations_page.html.j2")
    return page.render(title=title, sections=sections, method=method)
