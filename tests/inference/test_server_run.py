"""The socket of `udc serve`, without processes."""

import socket

import pytest

from udc_model.inference.server import run


def test_connections_are_limited_and_answers_do_not_wait_for_acknowledgements(tmp_path, monkeypatch):
    supervisors = pytest.importorskip("uvicorn.supervisors")
    options = []

    class Processes:
        def __init__(self, config, sockets):
            self.sockets = sockets
            options.append(config.limit_concurrency)

        def run(self):
            listener = self.sockets[0]
            listener.listen()
            with listener, socket.create_connection(listener.getsockname()):
                accepted, _ = listener.accept()
                with accepted:
                    options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(supervisors, "Multiprocess", Processes)
    monkeypatch.setattr(run, "open_stored", lambda workspace: None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    run.serve(tmp_path, "127.0.0.1", 0, 1)
    assert options == [4096, 1]
