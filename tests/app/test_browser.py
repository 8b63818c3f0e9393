"""`udc app` in a real browser: images, costs, and a review with the keyboard only."""

import socket
import threading
import zipfile

import pytest
from tests.browser import needs_browser, open_page

from udc_model.data.corrections import read_corrections
from udc_model.data.packed import PackedDataset
from udc_model.stages.prepare import prepare

pytestmark = needs_browser
CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")


@pytest.fixture(scope="module")
def address(application):
    """The address of the page, which is served in a thread."""
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/secret/"
    server.should_exit = True
    thread.join()


def _is_own(url, address):
    return url.startswith((address, "data:", "blob:"))


def test_images_are_decided_again_when_costs_change(address, png, tmp_path, workspace):
    files = {"a.png": png(1), "b.png": png(2), "text.txt": b"text", "damaged.png": png(3)[:100]}
    for name, contents in files.items():
        (tmp_path / name).write_bytes(contents)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "<b>x</b>.png")
        archive.write(tmp_path / "text.txt", "text.txt")
    with open_page(address, *CAMERA, accept_downloads=True) as (page, requested):
        page.set_input_files("#files", [tmp_path / name for name in files])
        page.locator("#decide-status", has_text="2 images decided").wait_for()
        problems = page.locator("#decide-problems li").all_text_contents()
        assert [text.partition(":")[0] for text in problems] == ["text.txt", "damaged.png"]
        before = page.locator(".decision strong").all_text_contents()
        page.locator("#costs summary").press("Enter")
        page.locator("#refer").fill("0")
        page.locator("#refer").press("Enter")
        page.locator(".decision strong", has_text="refer").nth(1).wait_for()
        assert "refer" not in before
        assert "refer: 0" in page.locator("#params-text").text_content()
        page.get_by_label("true bar, decided dot").fill("-1")
        page.get_by_label("true bar, decided dot").press("Enter")
        page.locator("#costs-problem", has_text="less than the right decision").wait_for()
        page.locator("#costs-reset").click()
        page.locator("#costs-problem").wait_for(state="hidden")
        page.locator(".decision strong", has_text="refer").nth(0).wait_for(state="detached")
        assert page.locator(".decision strong").all_text_contents() == before
        page.set_input_files("#files", tmp_path / "c.zip")
        page.locator("#decide-status", has_text="1 image decided").wait_for()
        assert page.locator("#table tbody th").all_text_contents() == ["<b>x</b>.png"]
        assert page.locator("#decide-problems li").all_text_contents()[0].startswith("text.txt: ")
        with page.expect_download() as download:
            page.locator("#csv").click()
        assert len(download.value.path().read_text().splitlines()) == 4
        page.locator("#camera-start").click()
        page.locator("#camera-take:enabled").click()
        page.locator("h2", has_text="camera.png").wait_for()
        too_many = [{"name": f"{k}.png", "mimeType": "image/png", "buffer": b"x"} for k in range(200)]
        page.set_input_files("#files", too_many)
        page.locator("#decide-problems li", has_text="200 files: at most 100 at once").wait_for()
        assert [url for url in requested if not _is_own(url, address)] == []


def test_removed_images_do_not_return_with_a_late_answer(address, png, workspace):
    with open_page(address) as (page, _):
        first, second = ({"name": name, "mimeType": "image/png", "buffer": png(1)} for name in ("a.png", "b.png"))
        page.set_input_files("#files", first)
        page.locator("#decide-status", has_text="1 image decided").wait_for()
        late = []  # the requests for decisions of images and of members of archives
        page.route("**/api/decisions", lambda route: late.append(route) if len(late) < 2 else route.continue_())
        with page.expect_request(lambda request: '"is_brief":true' in (request.post_data or "")):
            page.set_input_files("#files", second)
        page.locator("#clear").click()
        page.locator("#results article").wait_for(state="detached")
        for route in late:
            route.continue_()
        page.locator("#decide-status", has_text="1 image decided").wait_for()
        assert page.locator("#results article").count() == 0


def test_each_frame_is_explained_by_its_number(address, png, workspace):
    with open_page(address) as (page, requested):

        def twice(route):
            answer = route.fetch().json()
            route.fulfill(json=answer | {"images": 2 * answer["images"]})

        page.route("**/api/outputs*", twice)
        page.set_input_files("#files", {"name": "a.tif", "mimeType": "image/tiff", "buffer": png(1)})
        page.locator("#decide-status", has_text="2 images decided").wait_for()
        for place in (0, 1):
            with page.expect_response("**/api/explanation*"):
                page.get_by_role("button", name="Why?").nth(place).click()
    asked = [url.rpartition("&")[2] for url in requested if "/api/explanation" in url]
    assert asked == ["frame=2", "frame=1"]


def test_images_for_which_there_is_no_room_leave_the_others(address, png, tmp_path, workspace, monkeypatch):
    monkeypatch.setattr("udc_model.app.routes.MOST_IMAGES", 5)
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for number in range(3):
                archive.writestr(f"{name}{number}.png", png(number))
    image = {"name": "c.png", "mimeType": "image/png", "buffer": png(1)}
    problem = "is left out: with it there would be more than 5 images on this page; choose Remove all before it"
    with open_page(address, accept_downloads=True) as (page, _):
        for added, count, refused in ((tmp_path / "a.zip", 3, None), (image, 1, None), (tmp_path / "b.zip", 0, "b.zip"),
                                      (image, 1, None), (image, 0, "c.png")):  # fmt: skip
            page.set_input_files("#files", added)
            page.locator("#decide-status", has_text=f"{count} image{'' if count == 1 else 's'} decided").wait_for()
            problems = page.locator("#decide-problems li").all_text_contents()
            assert [text.partition(", or")[0] for text in problems] == ([f"{refused}: {problem}"] if refused else [])
        assert page.locator("#table tbody tr").count() == 3
        with page.expect_download() as download:
            page.locator("#csv").click()
        assert len(download.value.path().read_text().splitlines()) == 6


def test_a_review_with_the_keyboard_only_is_what_prepare_applies(address, workspace, params):
    with open_page(address) as (page, requested):
        page.wait_for_selector("body[data-ready]")
        press = page.keyboard.press
        press("Tab")
        press("ArrowRight")
        press("Enter")
        page.locator("#item-title", has_text="1 of 8").wait_for()
        if not page.locator("#author").input_value():
            page.keyboard.type("Ada")
            press("Enter")
        name = page.locator("#author").input_value()
        press("w")
        page.keyboard.type("looked at it")
        press("Enter")
        answers = (["r"], ["k"], ["d"], ["x", "s", "ArrowLeft", "r"], ["c", *"stripe", "Enter"])
        for number, keys in enumerate(answers, 1):
            for key in keys:
                press(key)
            page.locator("#review-status", has_text=f"{number} of 8 reviewed").wait_for()
        press("u")
        page.locator("#review-status", has_text="4 of 8 reviewed").wait_for()
        press("k")
        page.locator("#review-status", has_text="5 of 8 reviewed").wait_for()
        assert page.locator("#review-command").text_content() == f"cd {workspace.root} && dvc repro"
        assert [url for url in requested if not _is_own(url, address)] == []
    corrections = read_corrections(workspace.corrections)
    assert [each.action for each in corrections] == ["relabel", "keep", "drop", "relabel", "keep"]
    assert {(each.author, each.reason) for each in corrections} == {(name, "looked at it")}
    before = PackedDataset.open(workspace.prepared).manifest.set_index("path")
    again = type(workspace)(workspace.root / "again")
    again.corrections.parent.mkdir(parents=True)
    again.corrections.write_bytes(workspace.corrections.read_bytes())
    prepare(params, again)
    after = PackedDataset.open(again.prepared).manifest.set_index("path")
    for each in corrections:
        if each.action == "drop":
            assert each.path not in after.index
        else:
            label = before.label[each.path] if each.action == "keep" else each.value
            assert after.label[each.path] == label
