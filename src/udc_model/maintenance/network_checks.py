"""Checks over the network, with bounded waits: the tracker, DVC's remote, the Hugging Face hub, the clock."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import udc_model
from udc_model.maintenance.findings import Finding, Status

if TYPE_CHECKING:
    from requests import Response

WAIT = 3.0  # seconds for one answer
_SKEW = 60.0  # seconds; signatures of S3 fail from 15 minutes on
_HUB = "https://huggingface.co"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_LATER = "stages run anyway, and `udc sync` delivers what they recorded"


def hub_address() -> str:
    """The address of the Hugging Face hub."""
    return os.environ.get("HF_ENDPOINT") or _HUB


def hub() -> list[Finding]:
    """Whether the Hugging Face hub answers; no stage needs it unless ``model.download`` is true."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return [Finding("hub", Status.NOTE, "HF_HUB_OFFLINE is set: only the local cache is used")]
    has_token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    token = "a token is set" if has_token else "no token in HF_TOKEN"
    error = _error_of(hub_address())
    if error:
        text = (f"{hub_address()} does not answer ({error}): `udc weights fetch`, `udc fetch huggingface:…` and "
                "model.download need it")  # fmt: skip
        return [Finding("hub", Status.NOTE, text, "use files that are here, as model.weights=PATH")]
    return [Finding("hub", Status.OK, f"{hub_address()} answers; {token}")]


def _error_of(address: str) -> str:
    """Why an address does not answer; empty if it does."""
    import requests

    try:
        _get(address, head=True)
    except requests.RequestException as error:
        return _reason(error)
    return ""


def _get(address: str, *, head: bool = False, **options: Any) -> Response:
    import requests

    request = requests.head if head else requests.get
    return request(address, timeout=(WAIT, WAIT), **options)


def _reason(error: Exception) -> str:
    """The kind of a network error: its text has addresses with queries, and objects of Python."""
    text = str(error)
    for pattern, reason in (
        ("Name or service|resolve|getaddrinfo", "its name cannot be resolved"),
        ("refused", "the connection is refused"),
        ("timed out|Timeout", "no answer"),
        ("certificate|SSL", "its certificate is not accepted"),
        ("unreachable", "the network is unreachable"),
        ("[Pp]roxy", "the proxy fails"),
    ):
        if re.search(pattern, text):
            return reason
    return type(error).__name__


def clock(server: str | None) -> list[Finding]:
    """The clock, against the time of a server that answers; otherwise against the files of this package.

    Parameters
    ----------
    server : address; None without network.
    """
    now = time.time()
    text = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if Path(udc_model.__file__).stat().st_mtime > now + _SKEW:
        return clock_findings(text, None, is_behind_files=True)
    return clock_findings(text, None if server is None else _skew(server), is_behind_files=False)


def clock_findings(text: str, skew: float | None, *, is_behind_files: bool) -> list[Finding]:
    """The clock's time and how it differs.

    Parameters
    ----------
    skew : seconds by which the clock is ahead of a server; None if it is not known.
    is_behind_files : whether files of the package are from the future.
    """
    advice = "set the clock: sudo timedatectl set-ntp true"
    if is_behind_files:
        return [Finding("clock", Status.WARNING, f"{text}, which is before this package was installed", advice)]
    if skew is None:
        return [Finding("clock", Status.NOTE, f"{text}; not compared with a server")]
    if abs(skew) > _SKEW:
        side = "ahead of" if skew > 0 else "behind"
        return [Finding("clock", Status.WARNING, f"{text}, {abs(skew):.0f} seconds {side} a server's: object stores "
                        "refuse requests, and runs have wrong times", advice)]  # fmt: skip
    return [Finding("clock", Status.OK, f"{text}; within {_SKEW:.0f} seconds of a server's")]


def _skew(server: str) -> float | None:
    import requests

    try:
        date = _get(server, head=True).headers.get("Date")
        return None if date is None else time.time() - parsedate_to_datetime(date).timestamp()
    except (requests.RequestException, ValueError, TypeError):
        return None


def tracker(uri: str, *, is_offline: bool = False) -> list[Finding]:
    """The MLflow store: its version against the installed one, and whether it accepts the credentials."""
    if uri.startswith("sqlite:///"):
        return database_findings(Path(uri.removeprefix("sqlite:///")))
    if is_offline:
        return [Finding("tracker", Status.NOTE, f"{uri}: not asked (--offline)")]
    if uri.startswith(("http://", "https://")):
        return _server(uri.rstrip("/"))
    parts = urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.split("+")[0])
    if not parts.hostname or port is None:
        return [Finding("tracker", Status.NOTE, f"{uri}: stores of this kind are not examined")]
    try:
        socket.create_connection((parts.hostname, port), timeout=WAIT).close()
    except OSError as error:
        return [Finding("tracker", Status.WARNING, f"{uri} does not answer ({_reason(error)}): {_LATER}")]
    return [Finding("tracker", Status.OK, f"{uri} accepts connections")]


def _server(uri: str) -> list[Finding]:
    import requests

    headers, user = {}, os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    options: dict[str, Any] = {"headers": headers, "verify": _verification()}
    if user:
        options["auth"] = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    try:
        stated = _get(f"{uri}/version", **options)
        listing = _get(f"{uri}/api/2.0/mlflow/experiments/search?max_results=1", **options)
    except requests.RequestException as error:
        return [Finding("tracker", Status.WARNING, f"{uri} does not answer ({_reason(error)}): {_LATER}",
                        "start the server, or unset MLFLOW_TRACKING_URI")]  # fmt: skip
    found = re.fullmatch(r"[\w.+-]{1,30}", stated.text.strip()) if stated.ok else None
    return server_findings(uri, found and found[0], listing.status_code)


def server_findings(uri: str, stated: str | None, status: int) -> list[Finding]:
    """A tracking server that answers: its version, and the HTTP status of a request with the credentials."""
    text = f"{uri}: MLflow {stated or 'of unknown version'}, installed {version('mlflow')}"
    if status in (401, 403):
        return [Finding("tracker", Status.WARNING, f"{text}; it refuses the credentials (HTTP {status}): {_LATER}",
                        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                        "MLFLOW_TRACKING_TOKEN")]  # fmt: skip
    if status >= 400:
        return [Finding("tracker", Status.WARNING, f"{text}; its answer is HTTP {status}: {_LATER}",
                        "see the server's log, or MLFLOW_TRACKING_URI may have a wrong path")]  # fmt: skip
    if stated and stated.split(".")[0] != version("mlflow").split(".")[0]:
        return [Finding("tracker", Status.WARNING, f"{text}: major versions differ, and requests may fail",
                        f"pip install 'mlflow=={stated}'")]  # fmt: skip
    return [Finding("tracker", Status.OK, text)]


def _verification() -> bool | str:
    """Whether and how to verify the server's certificate, as MLflow does."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def database_findings(path: Path) -> list[Finding]:
    """A SQLite store: readable, and of the schema of the installed MLflow."""
    if not path.is_file():
        return [Finding("tracker", Status.OK, f"{path}: created by the first stage")]
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT)) as connection:
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    except (sqlite3.Error, TypeError, ValueError) as error:
        return [Finding("tracker", Status.WARNING, f"{path} cannot be read ({error}): {_LATER}",
                        f"restore it, or move it away: mv {path} {path}.damaged")]  # fmt: skip
    revisions = _revisions()
    if revisions and revision not in revisions:
        return [Finding("tracker", Status.WARNING, f"{path} is of a later MLflow than the installed "
                        f"{version('mlflow')}: {_LATER}", "pip install --upgrade mlflow")]  # fmt: skip
    if revision in revisions.values():  # another revision builds on it
        return [Finding("tracker", Status.WARNING, f"{path} is of an earlier MLflow than {version('mlflow')}",
                        f"cp {path} {path}.bak && mlflow db upgrade sqlite:///{path}")]  # fmt: skip
    return [Finding("tracker", Status.OK, f"{path}: {count} runs; MLflow {version('mlflow')}")]


def _revisions() -> dict[str, str]:
    """The revisions of the schema that the installed MLflow knows, each with the one it builds on."""
    spec = importlib.util.find_spec("mlflow")
    folders = spec.submodule_search_locations if spec is not None else None
    known = dict[str, str]()
    for folder in folders or ():
        for path in (Path(folder) / "store" / "db_migrations" / "versions").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            names = [re.search(rf'^{name} = "(\w+)"', text, re.MULTILINE) for name in ("revision", "down_revision")]
            if names[0]:
                known[names[0][1]] = names[1][1] if names[1] else ""
    return known


def remote(root: Path, *, is_offline: bool = False) -> list[Finding]:
    """DVC's default remote: whether there is one, and whether it can be reached."""
    from dvc.repo import Repo

    with closing(Repo(str(root))) as repo:
        name = repo.config["core"].get("remote")
        if not name:
            return [Finding("dvc remote", Status.NOTE, "none: data and models are on this machine only",
                            "dvc remote add -d storage ADDRESS, then dvc push")]  # fmt: skip
        address = str(repo.config["remote"].get(name, {}).get("url", ""))
        if is_offline and "://" in address:
            return [Finding("dvc remote", Status.NOTE, f"{name}, {address}: not asked (--offline)")]
        try:
            storage = repo.cloud.get_remote(name)
            exists = storage.fs.exists(storage.path)
        except Exception as error:  # of the libraries of all kinds of storage
            return [_unreachable(name, address, error)]
    if exists:
        return [Finding("dvc remote", Status.OK, f"{name}, {address}: can be reached")]
    status = Status.NOTE if "://" in address else Status.WARNING  # object stores have no empty folders
    return [Finding("dvc remote", status, f"{name}, {address}: does not exist",
                    "mount its disk, or run dvc push, which creates it")]  # fmt: skip


def _unreachable(name: str, address: str, error: Exception) -> Finding:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    advice = f"see `dvc remote modify {name} --help`; `dvc push` and `dvc pull` fail"
    if isinstance(error, ImportError) or "requires" in text or "not installed" in text:
        advice = "pip install 'udc-model[cloud]'"
    return Finding("dvc remote", Status.WARNING, f"{name}, {address}: cannot be reached: {text}", advice)
