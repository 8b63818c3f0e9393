"""The addresses of `udc app`: decisions, costs of the session, archives, tables, and who may ask."""

import asyncio
import base64
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from udc_model.app import archives
from udc_model.app.decisions import Decider
from udc_model.app.explanations import UploadExplainer
from udc_model.app.guard import request_problem
from udc_model.app.routes import Limits
from udc_model.cli import main
from udc_model.data.packed import PackedDataset
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.inference.inputs import ImageInput

STORED = {"cells": [], "refer": 0.9}
ADDRESS = "http://127.0.0.1:8070/secret"


@pytest.fixture
def client(application):
    with TestClient(application, base_url=ADDRESS, raise_server_exceptions=False) as client:
        yield client


def _outputs(client, contents, name="a.png"):
    answer = client.post(f"/api/outputs?name={name}", content=contents)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _decide(client, outputs, costs=STORED, **more):
    answer = client.post("/api/decisions", json={"outputs": outputs, "costs": costs} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _zip(members, kind=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return file.getvalue()


def _archive(client, contents):
    answer = client.post("/api/archive", content=contents)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_decisions_are_those_of_predict(client, png, workspace, tmp_path, capsys):
    (image,) = _outputs(client, png(1))["images"]
    assert image["image"].startswith("data:image/png;base64,")
    (row,) = _decide(client, [image["outputs"]])["rows"]
    (tmp_path / "a.png").write_bytes(png(1))
    assert main(["predict", "--json", "--root", str(workspace.root), str(tmp_path / "a.png")]) == 0
    (expected,) = json.loads(capsys.readouterr().out)
    for name in ("class", "expected_cost", "probabilities"):
        assert row[name] == expected[name]
    assert min(row["costs"].values()) == row["expected_cost"] == row["costs"][row["class"]]
    (brief,) = _decide(client, [image["outputs"]], is_brief=True)["rows"]
    assert (brief["class"], brief["probabilities"]) == (row["class"], {})


def test_costs_of_the_session_decide_again_and_give_the_lines_that_keep_them(client, png, workspace):
    outputs = [_outputs(client, png(seed))["images"][0]["outputs"] for seed in range(3)]
    stored = _decide(client, outputs)
    assert stored["params"] == ""
    free_referral = _decide(client, outputs, {"cells": [], "refer": 0.0})
    assert {row["class"] for row in free_referral["rows"]} == {"refer"}
    assert "refer: 0.0" in free_referral["params"]
    cells = [{"true": true, "decided": "stripe", "cost": 0.0} for true in ("bar", "dot")]
    answer = _decide(client, outputs, {"cells": cells, "refer": None})
    assert {row["class"] for row in answer["rows"]} == {"stripe"}  # costs nothing, whatever is true
    assert "- {actual: bar, predicted: stripe, cost: 0.0}" in answer["params"]
    assert Policy.load(workspace.evaluation).refer == 0.9


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"cells": [{"true": "bar", "decided": "dot", "cost": -1}], "refer": None}, "less than the right decision"),
        ({"cells": [{"true": "baz", "decided": "dot", "cost": 1}], "refer": None}, "'baz'; did you mean 'bar'"),
        ({"cells": [{"true": "bar", "decided": "refer", "cost": 1}], "refer": 1}, "'refer' is no decision with a cost"),
        ({"cells": [], "refer": -1}, "refer"),
        ({"cells": [], "refer": 1e10}, "refer"),
        ({"cells": 7}, "cells"),
    ],
)
def test_costs_that_cannot_be_are_one_sentence(client, costs, message):
    answer = client.post("/api/decisions", json={"outputs": [], "costs": costs})
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_an_explanation_has_the_map_and_similar_training_images(client, png, workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)  # where features are stored
    answer = client.post("/api/explanation?class=dot", content=png(1)).json()
    assert answer["saliency"].startswith("data:image/png;base64,")
    distances = [each["distance"] for each in answer["similar"]]
    assert len(distances) == 4
    assert distances == sorted(distances)
    manifest = PackedDataset.open(workspace.prepared).manifest.set_index("path")
    for each in answer["similar"]:
        assert (manifest.split[each["path"]], manifest.label[each["path"]]) == ("train", each["label"])
    for query, contents, message in (("dog", png(1), "'dog' is no class"), ("dot", b"x", "not an image")):
        answer = client.post(f"/api/explanation?class={query}", content=contents)
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def test_an_explanation_is_of_the_frame_that_is_asked_for(client, png, workspace, monkeypatch):
    monkeypatch.chdir(workspace.root)  # where features are stored
    decider = Decider(workspace)
    decoding = replace(decider.preprocessing.decoding, frames="each")
    decider.preprocessing = replace(decider.preprocessing, decoding=decoding)
    explainer = UploadExplainer(workspace, decider)
    first, second = (Image.open(io.BytesIO(png(seed))).convert("L") for seed in (1, 2))
    frames = io.BytesIO()
    first.save(frames, "TIFF", save_all=True, append_images=[second])
    of_second = io.BytesIO()
    second.save(of_second, "PNG")
    two, alone = ImageInput("two.tif", frames.getvalue()), ImageInput("b.png", of_second.getvalue())
    assert explainer.explain(two, "dot", 2) == explainer.explain(alone, "dot") != explainer.explain(two, "dot")
    with pytest.raises(UdcError, match="the image has no frame 3"):
        explainer.explain(two, "dot", 3)
    for frame, message in (("0", "frame 0 is none of the 64"), ("65", "frame 65 is none"), ("x", "got 'x'; allowed")):
        answer = client.post(f"/api/explanation?class=dot&frame={frame}", content=png(1))
        assert (answer.status_code, message in answer.json()["error"]) == (400, True)


def test_outputs_that_are_damaged_are_refused(client):
    infinite = np.full(3, np.inf, "<f4").tobytes()
    for text, message in (("!", "damaged"), ("AAAA", "damaged"), (base64.b64encode(infinite).decode(), "not finite")):
        answer = client.post("/api/decisions", json={"outputs": [text], "costs": STORED})
        assert message in answer.json()["error"]


@pytest.mark.parametrize("contents", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_what_is_no_image_is_a_reason(client, contents):
    answer = _outputs(client, contents)
    assert answer["images"] == []
    (reason,) = answer["problems"]
    assert len(reason) > 10
    assert "\n" not in reason


def test_an_image_that_is_too_large_is_not_read(client, application, monkeypatch):
    monkeypatch.setattr("udc_model.inference.server.bodies.MEBI", 10)
    answer = client.post("/api/outputs", content=b"x" * 641)
    assert (answer.status_code, answer.json()["error"]) == (413, "the body has more than 64 MiB")
    monkeypatch.setattr("udc_model.app.routes.MEBI", 0)
    answer = client.post("/api/archive", content=b"x")
    assert (answer.status_code, answer.json()["error"]) == (413, "the archive has more than 1,024 MiB")


def test_an_archive_gives_rows_problems_and_a_table_without_formulas(client, png):
    names = ["=1+1.png", "../../up.png", "folder/b.png", "note.txt", "__MACOSX/x.png", ".DS_Store", "empty/"]
    contents = _zip([(name, b"text" if name.endswith(("txt", "/")) else png(k)) for k, name in enumerate(names)])
    lines = _archive(client, contents)
    images = [image for line in lines for image in line["images"]]
    assert [image["name"] for image in images] == names[:3]
    assert [problem["name"] for line in lines for problem in line["problems"]] == ["note.txt"]
    outputs = [image["outputs"] for image in images]
    table = client.post("/api/table", json={"names": names[:3], "outputs": outputs, "costs": STORED}).text.splitlines()
    assert table[0] == "path,class,expected_cost,p_bar,p_dot,p_stripe"
    assert [line.partition(",")[0] for line in table[1:]] == ["'=1+1.png", "../../up.png", "folder/b.png"]
    alone = _outputs(client, png(0))["images"][0]["outputs"]  # a batch of another size has other last bits
    costs = [row["expected_cost"] for row in _decide(client, [outputs[0], alone])["rows"]]
    assert costs[0] == pytest.approx(costs[1], rel=1e-5)
    answer = client.post("/api/table", json={"names": [], "outputs": outputs, "costs": STORED})
    assert "0 names and 3 outputs" in answer.json()["error"]


def test_an_archive_that_cannot_be_used_is_one_sentence(client, png, monkeypatch):
    good = _zip([("a.png", png())])
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[good.index(b"PK\1\2") + 8] |= 1
    assert _archive(client, bytes(encrypted))[-1]["problems"] == [{"name": "a.png", "reason": "is encrypted"}]
    for contents, message in (
        (b"text", "cannot be read as a zip archive"),
        (good[: len(good) // 2], "cannot be read as a zip archive"),
        (_zip([]), "has no files"),
        (_zip([(f"{k}.png", b"") for k in range(archives.MOST_FILES + 1)]), "2,001 files, at most 2,000"),
    ):
        assert message in _archive(client, contents)[-1]["error"]


def test_a_bomb_is_not_unpacked(client, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_BYTES_OF_FILE", 1000)
    monkeypatch.setattr(archives, "_CHUNK", 100)
    lines = _archive(client, _zip([("zeros.png", b"\0" * 10**6)]))
    assert lines[-1]["problems"] == [{"name": "zeros.png", "reason": "has more than 0 MiB"}]
    monkeypatch.setattr(archives, "_MOST_BYTES", 1500)
    lines = _archive(client, _zip([(f"{k}.png", b"\0" * 900) for k in range(3)]))
    assert "the files of the archive have more than" in lines[-1]["error"]
    monkeypatch.setattr(archives, "_LARGEST_READ", 40)
    assert "lists more than" in _archive(client, _zip([("a.png", b"")]))[-1]["error"]


def test_more_images_than_the_page_has_are_one_sentence(client):
    limits = client.get("/api/state").json()["limits"]
    for address, values in (("decisions", {}), ("table", {"names": []})):
        values |= {"outputs": [""] * (limits["kept"] + 1), "costs": STORED}
        answer = client.post(f"/api/{address}", json=values)
        assert (answer.status_code, answer.json()["error"]) == (
            400, "the request: outputs: are of 4,001 images; at most 4,000 are decided at once; load the page again",
        )  # fmt: skip


def test_the_outputs_of_all_images_of_the_page_are_one_request(application, monkeypatch):
    monkeypatch.setattr(Decider, "width", 10_000)
    with TestClient(application, base_url=ADDRESS) as client:
        limits = client.get("/api/state").json()["limits"]
    assert limits["kept"] * len(base64.b64encode(bytes(4 * 10_000))) < limits["json_mebibytes"] * 2**20


def test_an_error_of_the_program_shows_no_traceback(client, monkeypatch, caplog):
    monkeypatch.setattr("udc_model.app.decisions.decided_rows", lambda *arguments: 1 / 0)
    answer = client.post("/api/decisions", json={"outputs": [], "costs": STORED})
    assert answer.status_code == 500
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_addresses_without_the_secret_are_unknown_and_answers_forbid_other_servers(client, application):
    with TestClient(application, base_url="http://127.0.0.1:8070") as outside:
        for path in ("/", "/api/state", "/other/api/state", "/page/app.js"):
            assert outside.get(path).status_code == 404
    for path in ("/", "/page/app.js", "/page/app.css", "/api/state"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.get("/page/../routes.py").status_code == 404
    assert client.get("/api/state").json()["limits"]["images"] == Limits().images


@pytest.mark.parametrize(
    ("method", "headers", "is_refused"),
    [
        ("POST", {"host": "127.0.0.1:8070"}, False),
        ("POST", {"host": "localhost:8070", "origin": "http://localhost:8070", "sec-fetch-site": "same-origin"}, False),
        ("POST", {"host": "[::1]:8070", "origin": "http://[::1]:8070"}, False),
        ("GET", {"host": "192.168.0.7:8070", "sec-fetch-site": "cross-site"}, False),  # a link in a mail
        ("GET", {"host": "evil.example:8070"}, True),
        ("GET", {"host": "127.0.0.1.evil.example"}, True),
        ("GET", {"host": "[localhost"}, True),
        ("GET", {}, True),
        ("POST", {"host": "127.0.0.1:8070", "origin": "http://evil.example"}, True),
        ("POST", {"host": "127.0.0.1:8070", "origin": "http://127.0.0.1:9000"}, True),
        ("POST", {"host": "127.0.0.1:8070", "origin": "null"}, True),
        ("POST", {"host": "127.0.0.1:8070", "sec-fetch-site": "cross-site"}, True),
    ],
)  # fmt: skip
def test_requests_of_other_sites_and_rebound_names_are_refused(method, headers, is_refused):
    assert (request_problem(method, headers) is not None) == is_refused


def test_a_refused_request_writes_nothing(client, workspace):
    before = workspace.corrections.read_bytes()
    path = client.get("/api/review").json()["items"][0]["path"]
    answer = client.post("/api/review/answer", json={"path": path, "action": "drop", "author": "x"},
                         headers={"Origin": "http://evil.example"})  # fmt: skip
    assert answer.status_code == 403
    assert workspace.corrections.read_bytes() == before


@pytest.mark.parametrize("address", ["outputs", "archive", "decisions"])
def test_an_upload_that_ends_early_is_no_error_of_the_program(application, address, caplog):
    messages = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    path = f"/secret/api/{address}"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": "", "scheme": "http", "http_version": "1.1", "headers": [(b"host", b"127.0.0.1")],
             "client": None, "server": None, "asgi": {"version": "3.0"}}  # fmt: skip
    with caplog.at_level("WARNING"):
        asyncio.run(application(scope, receive, send))
    assert not caplog.records
    assert sent[0]["status"] == 499
