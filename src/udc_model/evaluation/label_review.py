"""Review of suspicious labels in a terminal: shows one after the other, and writes each decision at once."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from udc_model.data.corrections import Correction, read_corrections, record_correction, without_reviewed
from udc_model.data.sources import join_for_message, printable
from udc_model.errors import UdcError
from udc_model.evaluation.label_quality import LABEL_QUALITY
from udc_model.evaluation.verdict import cost_text
from udc_model.files import Workspace, read_bytes

_MAX_BYTES = 256 * 2**20
_ADVICE = "run evaluate first (dvc repro), or restore the folder with `dvc checkout evaluation`"
_KEYS = {"d": "drop", "k": "keep"}
_DONE = {"relabel": "relabelled", "drop": "dropped", "keep": "confirmed", "skip": "skipped"}


@dataclass(frozen=True)
class Suspect:
    """A row of ``evaluation/label_quality.csv``."""

    path: str
    sha256: str
    label: str
    suggested_label: str
    score: float
    expected_cost: float
    split: str
    is_suspicious: bool

    @classmethod
    def parse(cls, row: dict[str, str]) -> Suspect:
        """A row of the table; `KeyError` or `ValueError` if a value is missing or not valid."""
        score, cost = float(row["score"]), float(row["expected_cost"])
        if not (math.isfinite(score) and math.isfinite(cost)):
            raise ValueError(f"score and expected_cost are {score:g} and {cost:g}")
        is_suspicious = {"True": True, "False": False}[row["is_suspicious"]]
        return cls(row["path"], row["sha256"], row["label"], row["suggested_label"], score, cost, row["split"],
                   is_suspicious)  # fmt: skip

    def to_text(self) -> str:
        """Two lines for a person."""
        path, label, suggested = map(printable, (self.path, self.label, self.suggested_label))
        return (f"{path} ({self.split})\n  labelled {label}, more likely {suggested}; probability of the label "
                f"{self.score:.2g}, expected cost {cost_text(self.expected_cost)}")  # fmt: skip


@dataclass(frozen=True)
class Reviewer:
    """Who reviews, and how questions are asked.

    Parameters
    ----------
    author, reason : recorded with each correction.
    ask : prints a text and returns the answer; None at the end of the input.
    """

    author: str
    reason: str
    ask: Callable[[str], str | None]


def read_suspects(evaluation: Path, *, with_others: bool = False) -> list[Suspect]:
    """The suspicious labels of an evaluation, those with the largest expected cost first.

    Parameters
    ----------
    with_others : whether to return the other labels of the table too.

    Raises
    ------
    UdcError
        The table is missing or damaged.
    """
    path = evaluation / LABEL_QUALITY
    try:
        text = read_bytes(path, _ADVICE, _MAX_BYTES).decode("utf-8")
        suspects = [Suspect.parse(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
    except (UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise UdcError(f"{path}: is damaged ({error!r}); {_ADVICE}") from None
    chosen = [each for each in suspects if each.is_suspicious or with_others]
    return sorted(chosen, key=lambda each: -each.expected_cost)


def review(suspects: Sequence[Suspect], classes: Sequence[str], workspace: Workspace, reviewer: Reviewer) -> str:
    """Ask about each suspect that has no correction, and write each answer; returns what was done, for a person.

    Parameters
    ----------
    classes : that an image can be relabelled with.

    Raises
    ------
    UdcError
        The file of corrections is not valid, or cannot be written.
    """
    pending = without_reviewed(suspects, read_corrections(workspace.corrections))
    if not pending:
        return "no suspicious label is left to review\n"
    counts: Counter[str] = Counter()
    for number, suspect in enumerate(pending, 1):
        decision = _decision(f"[{number} of {len(pending)}] {suspect.to_text()}", suspect, classes, reviewer)
        if decision is None:
            break
        action, value = decision
        if action != "skip":
            record_correction(workspace, Correction(suspect.path, suspect.sha256, action, value, reviewer.author,
                                                    date.today().isoformat(), reviewer.reason))  # fmt: skip
        counts[action] += 1
    done = ", ".join(f"{counts[action]:,} {text}" for action, text in _DONE.items() if counts[action])
    return f"{done or 'nothing changed'}; {workspace.corrections} has the corrections, and dvc repro applies them\n"


def _decision(
    text: str, suspect: Suspect, classes: Sequence[str], reviewer: Reviewer
) -> tuple[str, str] | None:  # fmt: skip
    """Action and value for a suspect; None ends the review."""
    keys = f"  r: relabel {printable(suspect.suggested_label)}, r CLASS, d: drop, k: keep, s: skip, q: quit > "
    prompt = f"{text}\n{keys}"
    while True:
        answer = reviewer.ask(prompt)
        if answer is None or answer.strip() == "q":
            return None
        key, _, value = answer.strip().partition(" ")
        value = value.strip()
        if key in _KEYS and not value:
            return _KEYS[key], ""
        if key == "s" and not value:
            return "skip", ""
        if key == "r" and (value or suspect.suggested_label) in classes:
            return "relabel", value or suspect.suggested_label
        shown = join_for_message(classes)
        problem = f"{printable(value)} is no class; the classes are {shown}" if key == "r" else "answer r, d, k, s or q"
        prompt = f"  {problem}\n{keys}"
