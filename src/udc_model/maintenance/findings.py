"""What checks find: one line each, without secrets; checks run side by side, and none can hide another."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from udc_model.errors import without_credentials

FORMAT = 1  # of the JSON; raised when a field changes its meaning or goes
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_MIN_SECRET = 6  # characters; shorter values occur in texts by chance


class Status(Enum):
    """How good or bad something is, the best first."""

    OK = "ok"
    NOTE = "note"  # a fact that is neither good nor bad
    WARNING = "warning"  # something is slower, or a command other than the stages fails
    FAILURE = "failure"  # a stage fails


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Parameters
    ----------
    text : what is, in one line.
    advice : what to do, in one line, with the command; empty if nothing is to be done.
    """

    check: str
    status: Status
    text: str
    advice: str = ""
    part: str = ""


@dataclass(frozen=True)
class Check:
    """A function that examines one thing, and the seconds that it may take.

    Parameters
    ----------
    part : ``machine`` or ``project``.
    """

    part: str
    name: str
    examine: Callable[[], Sequence[Finding]]
    seconds: float = 20.0


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in their order. They run in threads, which are not waited for beyond their time.

    A check that raises an exception or takes too long is a finding of its own.
    """
    results: list[list[Finding] | None] = [None] * len(checks)

    def run(number: int) -> None:
        results[number] = _examined(checks[number])

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(checks))]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for check, thread in zip(checks, threads, strict=True):
        thread.join(max(0.0, started + check.seconds - time.monotonic()))
    findings = [_late(check) if result is None else result for check, result in zip(checks, list(results), strict=True)]
    return [replace(_cleaned(finding), part=check.part)
            for check, found in zip(checks, findings, strict=True) for finding in found]  # fmt: skip


def _examined(check: Check) -> list[Finding]:
    try:
        return list(check.examine())
    except (Exception, SystemExit) as error:  # of any library; the other checks must not suffer
        reason = " ".join(str(error).split()) or "no message"
        return [Finding(check.name, Status.WARNING, f"could not be examined: {type(error).__name__}: {reason[:300]}")]


def _late(check: Check) -> list[Finding]:
    return [Finding(check.name, Status.WARNING, f"no answer within {check.seconds:.0f} seconds")]


def _cleaned(finding: Finding) -> Finding:
    return replace(finding, text=without_secrets(finding.text), advice=without_secrets(finding.advice))


def without_secrets(text: str) -> str:
    """A text in one line without credentials and queries of addresses, values of secret variables, and home folder."""
    text = " ".join(text.split())
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET:
            text = text.replace(value, "***")
    text = without_credentials(text)
    text = re.sub(r"(://[^\s?#]*)[?#][^\s;,)]*", r"\1", text)
    home = str(Path("~").expanduser())
    return re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", text) if len(home) > 1 else text


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status of the findings."""
    order = list(Status)
    return max((finding.status for finding in findings), key=order.index, default=Status.OK)


def to_text(findings: Sequence[Finding]) -> str:
    """One line for each finding, in its part: status, check, what is, and what to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for part in dict.fromkeys(finding.part for finding in findings):
        lines.append(part)
        for finding in (each for each in findings if each.part == part):
            advice = f"; {finding.advice}" if finding.advice else ""
            lines.append(f"  {finding.status.value:<7}  {finding.check:<{width}}  {finding.text}{advice}")
    return "\n".join(lines) + "\n"


def to_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON: ``format``, the worst ``status``, and ``findings`` with the fields of each."""
    entries = [asdict(finding) | {"status": finding.status.value} for finding in findings]
    return json.dumps({"format": FORMAT, "status": worst(findings).value, "findings": entries}, indent=2,
                      ensure_ascii=False) + "\n"  # fmt: skip
