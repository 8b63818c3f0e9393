"""The hashes of DVC's objects that runs name: those in MLflow, and those in journals that are not delivered yet."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.journal import DAMAGED, pending_journals, read_entries
from udc_model.tracking.store import default_uri, open_store, reason_of, tracking_uri
from udc_model.tracking.tags import DATA, OUTS, read_tag, tags_below

_PAGE = 1000  # runs of one request


def named_by_runs(root: Path, unused: Container[str] = ()) -> set[str]:
    """The hashes of data and outputs that runs have as tags.

    Parameters
    ----------
    unused : ids of runs that do not count.

    Raises
    ------
    UdcError
        The store cannot be read, or a journal is damaged, so that a name could be missed.
    """
    return {name for tags in (*_of_store(root, unused), *_of_journals(root)) for name in _named(tags)}


def _named(tags: Mapping[str, str]) -> Iterator[str]:
    yield from tags_below(tags, OUTS).values()
    with suppress(ValueError, AttributeError):  # written by something else
        yield from (str(value) for value in json.loads(read_tag(tags, DATA) or "{}").values())


def _of_store(root: Path, unused: Container[str]) -> Iterator[Mapping[str, str]]:
    """The tags of all runs of the store, also of deleted ones, which can be restored."""
    uri = tracking_uri()
    if uri == default_uri(root) and not (root / "mlflow.db").is_file():
        return
    import mlflow
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    open_store()
    client = mlflow.MlflowClient()
    try:
        experiments, token = list[str](), None
        while True:
            page = client.search_experiments(ViewType.ALL, page_token=token)
            experiments += [experiment.experiment_id for experiment in page]
            if not (token := page.token):
                break
        while True:
            runs = client.search_runs(experiments, "", ViewType.ALL, _PAGE, page_token=token)
            yield from (run.data.tags for run in runs if run.info.run_id not in unused)
            if not (token := runs.token):
                break
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        raise UdcError(f"{without_credentials(uri)}: {reason_of(error)}") from error


def _of_journals(root: Path) -> Iterator[Mapping[str, str]]:
    for folder in pending_journals(root):
        try:
            for entry, position in read_entries(folder):
                if entry["kind"] == DAMAGED:
                    raise ValueError(f"the line before byte {position}")
                yield entry.get("tags", {})
        except FileNotFoundError:  # delivered meanwhile
            continue
        except (OSError, ValueError, AttributeError) as error:
            raise UdcError(f"{folder}: the journal is damaged ({error}), so it is not known which objects it "
                           "names") from error  # fmt: skip
