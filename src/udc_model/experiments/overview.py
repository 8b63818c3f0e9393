"""Writes a listing of experiments: as a table of limited width, as CSV, and as one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from udc_model.experiments.listing import COST, LEVEL, NOT_CACHED, OTHER_COSTS, OTHER_IMAGES, Experiment, Listing
from udc_model.experiments.values import value_text

WIDTH = 160  # characters of a line at most
_LONGEST_NAME, _LONGEST_VALUE = 30, 20
_RESULTS = ["cost", "interval", "validation cost", "accuracy", "cheaper than the first"]
_BAR = (f"{COST}_low", COST, f"{COST}_high")
_GAP = "  "


def to_text(listing: Listing, width: int = WIDTH) -> str:
    """The conclusion and a table: with a column for each parameter that differs, or with one column of the changed
    parameters of each experiment if there are too many for ``width``."""
    results = [_RESULTS, *(_results(listing, each) for each in listing.experiments)]
    names = ["experiment", *map(_name, listing.experiments)]
    values = [[_cut(value_text(each.params.get(name)), _LONGEST_VALUE) for name in listing.differing]
              for each in listing.experiments]  # fmt: skip
    changes = [_changes(listing, each) for each in listing.experiments]
    forms = [
        [listing.differing, *values],
        [[_short(name, listing.differing) for name in listing.differing], *values],
        [["changes"], *([text] for text in changes)],
    ]
    tables = (_aligned([[name, *cells, *result] for name, cells, result in zip(names, form, results, strict=True)])
              for form in forms)  # fmt: skip
    table = next((table for table in tables if len(table[0]) <= width), None)
    if table is None:
        room = max(width - len(_aligned([[name, "", *each] for name, each in zip(names, results, strict=True)])[0]), 1)
        cut = ["changes", *(_cut(text, room) for text in changes)]
        table = _aligned([[*row, *result] for *row, result in zip(names, cut, results, strict=True)])
    lines = [*conclusion(listing), "", *table, "", *notes(listing)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def to_csv(listing: Listing) -> str:
    """One row per experiment: all parameters that differ, all numbers of ``metrics.json``, and the comparison."""
    metrics = list(dict.fromkeys(name for each in listing.experiments for name in each.metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["experiment", "commit", *listing.differing, *metrics, "is_first", "has_other_costs", "difference",
                     "p_value", "cheaper_than_first"])  # fmt: skip
    for each in listing.experiments:
        values = [value_text(each.params[name]) if name in each.params else "" for name in listing.differing]
        numbers = [repr(each.metrics[name]) if name in each.metrics else "" for name in metrics]
        test = ["" if number is None else repr(number) for number in (each.difference, each.p_value)]
        writer.writerow([each.name, each.commit, *values, *numbers, each is listing.first, each.has_other_costs, *test,
                         "" if each is listing.first else each.verdict])  # fmt: skip
    return out.getvalue()


def to_html(listing: Listing) -> str:
    """A page without references to other files: the conclusion, the table, and each cost with its interval drawn."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    ends = [each.metrics[name] for each in listing.experiments if not each.has_other_costs
            for name in _BAR if name in each.metrics]  # fmt: skip
    left, right = min([0.0, *ends]), max([0.0, *ends])
    environment = Environment(loader=PackageLoader("udc_model.experiments", "."), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    rows = [
        {
            "name": _name(each),
            "changes": _changes(listing, each),
            "results": _results(listing, each),
            "bar": None if each.has_other_costs or each.cost is None else
            [100 * (each.metrics.get(name, each.cost) - left) / ((right - left) or 1.0) for name in _BAR],
            "is_first": each is listing.first,
            "is_shown": each.verdict == "shown",
        }
        for each in listing.experiments
    ]  # fmt: skip
    page = environment.get_template("experiments.html.j2")
    return page.render(conclusion=conclusion(listing), notes=notes(listing), rows=rows, results=_RESULTS)


def conclusion(listing: Listing) -> list[str]:
    """Sentences: which experiment has the lowest cost, and whether that is shown."""
    first, best = listing.first, listing.experiments[0]
    tested = sum(each.p_value is not None for each in listing.experiments)
    if best is first:
        reasons = {each.untested for each in listing.experiments if each is not first}
        if reasons and reasons <= {OTHER_COSTS, OTHER_IMAGES}:
            return [f"No experiment can be compared with {first.name}: {' or '.join(sorted(reasons))}."]
        return [f"No experiment has a lower mean cost on test than {first.name} ({_number(first.cost)} an image)."]
    costs = f"{_number(best.cost)} an image, {first.name} {_number(first.cost)}"
    sentences = [f"{best.name} has the lowest mean cost on test: {costs}."]
    if best.p_value is None:
        return [*sentences, f"Whether it costs less is not tested: {best.untested}."]
    others = f" after correction for {tested} comparisons" if tested > 1 else ""
    is_shown = "shown" if best.verdict == "shown" else "not shown"
    test = f"paired test, p = {best.p_value:.2g}{others}; level {LEVEL:g}"
    return [*sentences, f"That it costs less than {first.name} is {is_shown} ({test})."]


def notes(listing: Listing) -> list[str]:
    """What the marks in the table mean, those that occur."""
    first, experiments = listing.first, listing.experiments
    lines = []
    if other := next((each for each in experiments if each.has_other_costs), None):
        lines.append(f"* decided under other costs than {first.name}: costs do not compare; "
                     f"`udc compare {_argument(first)} {_argument(other)} --costs {_argument(first)}` decides both "
                     "under the same")  # fmt: skip
    if absent := [each for each in experiments if each.untested == NOT_CACHED]:
        command = f"dvc exp pull origin {_argument(absent[0])}" if first.is_cached else "dvc fetch evaluation"
        lines.append(f"{NOT_CACHED}: DVC's cache lacks predictions that the test needs; "
                     f"`{command}` fetches them from a remote")  # fmt: skip
    if any(each.untested == OTHER_IMAGES for each in experiments):
        lines.append(f"{OTHER_IMAGES}: the test split differs from that of {first.name}")
    return lines


def _changes(listing: Listing, each: Experiment) -> str:
    """The parameters of an experiment that differ from those of the first."""
    return ", ".join(f"{name}={value_text(each.params.get(name))}" for name in listing.differing
                     if each.params.get(name) != listing.first.params.get(name))  # fmt: skip


def _name(experiment: Experiment) -> str:
    return _cut(experiment.name, _LONGEST_NAME) + (" (here)" if experiment.is_workspace else "")


def _argument(experiment: Experiment) -> str:
    """The name of an experiment for another command."""
    return "." if not experiment.commit else experiment.name.split()[0]


def _results(listing: Listing, each: Experiment) -> list[str]:
    low, high = (each.metrics.get(f"{COST}_{end}") for end in ("low", "high"))
    interval = "-" if low is None or high is None else f"{_number(low)} to {_number(high)}"
    verdict = "the first" if each is listing.first else each.verdict
    p_value = f", p = {each.p_value:.2g}" if each.p_value is not None else ""
    return [
        _number(each.cost) + (" *" if each.has_other_costs else ""), interval,
        _number(each.metrics.get("validation/mean_cost")), _number(each.metrics.get("test/accuracy")),
        verdict + p_value,
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of a name if no other of the names ends in it."""
    last = name.rpartition(".")[2]
    return last if sum(each.rpartition(".")[2] == last for each in names) == 1 else name


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, with each cell as wide as the widest of its column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
