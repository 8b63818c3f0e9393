"""What `udc ui` starts, without a server."""

from types import SimpleNamespace

import pytest

from udc_model.experiments import pages

URI = "postgresql+psycopg://ada:Secret-1@host/runs"


@pytest.fixture
def started(monkeypatch):
    """The commands and environments of servers that were started, and the pages that were opened."""
    started = []

    class Server:
        def __init__(self, command, env):
            started.append((command, env))

        def wait(self):
            return 0

        terminate = wait

    monkeypatch.setattr(pages, "open_complete_store", lambda: ["7"])
    monkeypatch.setattr(pages, "tracking_uri", lambda: URI)
    monkeypatch.setattr(pages, "describe_experiment", lambda *_: None)
    monkeypatch.setattr(pages, "_wait_for", lambda *_: None)
    monkeypatch.setattr("mlflow.MlflowClient", lambda: None)
    monkeypatch.setattr(pages, "subprocess", SimpleNamespace(Popen=Server))
    return started


def test_a_password_is_in_no_list_of_processes(started, capsys):
    pages.show_pages(0)
    ((command, env),) = started
    assert not any("Secret-1" in part for part in command)
    assert env["MLFLOW_BACKEND_STORE_URI"] == URI
    port = command[command.index("--port") + 1]
    assert int(port) > 0
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out
