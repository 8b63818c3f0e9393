"""The values that ``udc tune`` searches for one parameter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from udc_model.config import full_name
from udc_model.errors import UdcError

if TYPE_CHECKING:
    from optuna import Trial

_RANGE = re.compile(r"(?P<kind>log|uniform|int|choice)\((?P<arguments>.*)\)", re.DOTALL)


@dataclass(frozen=True)
class SearchRange:
    """The values of one parameter in a search.

    ``log(a,b)`` draws floats whose logarithm is uniform, ``uniform(a,b)`` floats, ``int(a,b)`` integers from a to b,
    ``choice(x,y,…)`` one of the texts; anything else is the value of all trials.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]

    @classmethod
    def parse(cls, setting: str) -> SearchRange:
        """Parse ``full.name=log(1e-4,1e-2)``; :class:`UdcError` if the text is malformed."""
        name, equals, text = setting.partition("=")
        if not equals:
            raise UdcError(f"{setting}: must be name=value or name=log(a,b), uniform(a,b), int(a,b) or choice(x,y,…)")
        name = full_name(name.strip())
        match = _RANGE.fullmatch(text.strip())
        if match is None:
            return cls(name, "value", (text,))
        arguments = tuple(part.strip() for part in match["arguments"].split(","))
        search_range = cls(name, match["kind"], arguments)
        if search_range.kind != "choice":
            try:
                low, high = search_range.bounds()
            except ValueError:
                raise UdcError(f"{setting}: {search_range.kind}(a,b) takes two numbers") from None
            if not low < high or (search_range.kind == "log" and low <= 0):
                raise UdcError(f"{setting}: the first number must be smaller" + (" and above 0" if low <= 0 else ""))
        elif "" in arguments:
            raise UdcError(f"{setting}: a value of choice(x,y,…) is empty")
        return search_range

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value; :class:`ValueError` if there are not two numbers."""
        low, high = map(float, self.arguments)
        return low, high

    @property
    def extremes(self) -> tuple[str, ...]:
        """All values of a choice, otherwise the lowest and the highest value, as texts for DVC's option ``-S``."""
        if self.kind in ("value", "choice"):
            return self.arguments
        return tuple(str(int(bound)) if self.kind == "int" else repr(bound) for bound in self.bounds())

    def suggest(self, trial: Trial) -> str:
        """The value for a trial, as text for DVC's option ``-S``."""
        match self.kind:
            case "value":
                return self.arguments[0]
            case "choice":
                return str(trial.suggest_categorical(self.name, self.arguments))
            case "int":
                low, high = self.bounds()
                return str(trial.suggest_int(self.name, int(low), int(high)))
            case _:
                low, high = self.bounds()
                return repr(trial.suggest_float(self.name, low, high, log=self.kind == "log"))
