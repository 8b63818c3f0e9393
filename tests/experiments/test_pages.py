"""What `udc ui` starts, without a server."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
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


def test_the_server_on_this_machine_is_asked_without_a_proxy(monkeypatch):
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("urllib.request._opener", None)  # one made before has the proxies of that time
        monkeypatch.setattr(pages, "_START_TIMEOUT", 2.0)
        try:
            pages._wait_for(f"http://127.0.0.1:{server.server_port}", SimpleNamespace(poll=lambda: None))
        finally:
            server.shutdown()
