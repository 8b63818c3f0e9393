"""udc score: the same rows as predict, in parts that do not depend on kills or processes; bad images are listed."""

import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from udc_model.cli import main
from udc_model.data.transforms import Decoding
from udc_model.decisions.policy import Policy
from udc_model.inference import decoding, scored_parts, scoring
from udc_model.inference.inputs import list_inputs
from udc_model.inference.prediction import predict
from udc_model.inference.scoring_progress import ScoringProgress
from udc_model.inference.stored_model import open_stored


@pytest.fixture
def project(scoring_folder, rng):
    """The current folder: a model that can refer, and images/ with 20 images and two bad ones; parts have 8 inputs."""
    folder = scoring_folder(8)
    for k in range(20):
        _image(Path(f"images/{k % 3}/{k:02d}.png"), rng)
    Path("images/1/bad.jpg").write_bytes(b"\xff\xd8\xff none")
    Path("images/lost.png").symlink_to("nowhere.png")
    return folder


def _image(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(rng.integers(0, 256, 3, dtype=np.uint8), (8, 8, 1))).save(path)  # of one random colour


def _contents(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _score(*arguments):
    return main(["score", "--out", "out", *arguments])


def _predicted(*paths):
    bad = []
    rows = [row for batch in predict(list_inputs(list(paths)), open_stored_here(), bad.append) for row in batch]
    return pd.DataFrame(
        [{key: row[key] for key in ("path", "class", "expected_cost")}
         | {f"p_{name}": p for name, p in row["probabilities"].items()} for row in rows]
    ), bad  # fmt: skip


def open_stored_here():
    from udc_model.files import Workspace

    return open_stored(Workspace())


def test_rows_are_those_of_predict_and_bad_images_are_listed(project, capsys, caplog):
    assert _score("images") == 1
    assert capsys.readouterr().out.startswith("20 rows and 2 bad image(s) in out, ")
    assert "error: 2 image(s) could not be used; out/_bad_images.csv lists them" in caplog.text
    table = pd.read_parquet("out")
    expected, bad = _predicted("images")
    assert list(table) == [*expected, "cost_a", "cost_b", "cost_refer"]
    assert table["path"].tolist() == expected["path"].tolist()
    assert table["class"].tolist() == expected["class"].tolist()
    assert set(table["class"]) == {"a", "b", "refer"}
    for column in ("expected_cost", "p_a", "p_b"):
        np.testing.assert_allclose(table[column], expected[column], rtol=1e-5)
    np.testing.assert_allclose(table["cost_a"], table["p_b"], rtol=1e-6)  # the cost of a mistake is 1
    assert set(table["cost_refer"]) == {np.float32(0.2)}
    assert (table.dtypes.iloc[2:] == np.float32).all()
    listed = pd.read_csv("out/_bad_images.csv")
    assert sorted(zip(listed["path"], listed["reason"], strict=True)) == sorted(
        (each.name, each.reason) for each in bad
    )
    assert [pq.read_metadata(f"out/part-{k:05d}.parquet").num_rows for k in range(3)] == [8, 7, 5]


def test_missing_and_damaged_parts_are_computed_again_to_the_same_bytes(project, monkeypatch):
    _score("images")
    before = _contents()
    Path("out/part-00000.parquet").unlink()
    Path("out/part-00001.parquet").write_bytes(before["part-00001.parquet"][:-9])
    Path("out/.part-00001.parquet.99999999.partial").write_bytes(b"of a killed writer")
    Path("out/_bad_images.csv").unlink()
    _score("images")
    assert _contents() == before
    monkeypatch.setattr(scoring.StoredModel, "load", lambda stored: pytest.fail("a complete output needs no model"))
    assert _score("images") == 1  # the bad images are still bad
    assert _contents() == before


def test_the_number_of_processes_does_not_change_a_byte(project):
    _score("images", "--processes", "1")
    before = _contents()
    _score("images", "--processes", "2", "--restart")
    assert _contents() == before


@pytest.mark.parametrize("processes", [1, 2])
def test_every_input_counts_once_also_bad_ones_and_of_continued_outputs(project, processes):
    shown = []

    def scored():
        shown.clear()
        return scoring.score(list_inputs(["images"]), open_stored_here(), Path("out"), processes=processes,
                             progress=lambda *numbers: shown.append(numbers))  # fmt: skip

    totals = scored()
    assert (totals.rows, totals.bad, totals.inputs) == (20, 2, 22)
    assert shown == [(k, 22, k) for k in range(23)]
    Path("out/part-00001.parquet").unlink()
    totals = scored()
    assert (totals.rows, totals.bad, totals.inputs) == (20, 2, 8)
    assert shown == [(14 + k, 22, k) for k in range(9)]
    assert scored().inputs == 0


def test_another_output_is_not_continued(project, caplog):
    _score("images")
    before = _contents()
    Path("images/0/00.png").rename("images/0/renamed.png")
    assert _score("images") == 1
    assert "out: the parts in it were scored with other values of inputs_sha256 (" in caplog.text
    assert "; name another folder with --out, or score everything again with --restart" in caplog.text
    caplog.clear()
    policy = Path("evaluation/policy.json")
    policy.write_text(Policy(["a", "b"], [[0, 5], [1, 0]], refer=0.2).to_json())
    assert _score("images") == 1
    assert "policy_sha256 (" in caplog.text
    assert _contents() == before
    _score("images", "--restart")
    table = pd.read_parquet("out")
    assert "images/0/renamed.png" in set(table["path"])
    np.testing.assert_allclose(table["cost_b"], 5 * table["p_a"], rtol=1e-6)


def test_a_changed_size_of_an_image_is_another_input(project, rng, caplog):
    _score("images")
    Image.new("RGB", (8, 8)).save("images/0/00.png")
    assert _score("images") == 1
    assert "other values of inputs_sha256" in caplog.text


def test_the_arithmetic_of_another_machine_is_another_output(project, caplog, monkeypatch):
    """Parts of different last bits are not mixed."""
    _score("images")
    before = _contents()
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert _score("images") == 1
    assert f"other values of device (cpu, {torch.backends.cpu.get_cpu_capability()}, {threads} threads" in caplog.text
    assert _contents() == before


def test_a_folder_of_something_else_stays_as_it_is(project, caplog):
    Path("out").mkdir()
    Path("out/part-00000.parquet").write_text("mine")
    for arguments in ([], ["--restart"]):
        assert _score("images", *arguments) == 1
        assert "error: out: is not empty and has no _score.json; name a new or empty folder" in caplog.text
    assert sorted(path.name for path in Path("out").iterdir()) == ["part-00000.parquet"]


def test_a_second_writer_is_refused(project, caplog):
    from udc_model.files import Workspace, only_writer

    with only_writer(Workspace(Path("out"))):
        assert _score("images") == 1
    assert "is writing to" in caplog.text


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "nothing to score: name images, folders, tables or tar files, or --from-list FILE"),
    (["-"], "-: an image on standard input cannot be read again"),
    (["images", "images/0"], "images/0: is in the folder images; name one of them"),
    (["images", "./images/"], "./images/: is named twice; name it once"),
    (["images", "--column", "x"], "--column: no input is a table"),
    (["missing.csv"], "missing.csv: no such file"),
    (["images", "--processes", "0"], "--processes: got 0; at least 1 is needed"),
    (["images", "--processes", "9999"], "--processes: got 9,999, but this machine has"),
])  # fmt: skip
def test_arguments_that_cannot_be_used_write_nothing(project, arguments, message, caplog):
    assert _score(*arguments) == 1
    assert f"error: {message}" in caplog.text
    assert not Path("out").exists()


def test_tables_name_images_relative_to_their_folder(project, rng, caplog):
    rows = ["0/00.png", "1/01.png", "../secret.png", "/etc/passwd", "", "0/none.png"]
    _image(Path("secret.png"), rng)
    frame = pd.DataFrame({"file": ["x"] * 6, "picture": rows, "n": range(6)})
    frame.to_csv("images/a.csv", index=False)
    frame.rename(columns={"picture": "path"}).drop(columns="file").to_parquet("images/b.parquet")
    assert _score("images/a.csv", "--column", "picture") == 1
    assert pd.read_parquet("out")["path"].tolist() == rows[:2]
    first = pd.read_csv("out/_bad_images.csv")
    assert first["path"].tolist() == ["../secret.png", "/etc/passwd", "images/a.csv:6", "0/none.png"]
    assert first["reason"].tolist() == [
        "leaves the data folder (contains ..)",
        "is an absolute path; paths must be relative to the folder of the table",
        "has no image",
        "no such file in images",
    ]  # fmt: skip
    assert main(["score", "images/b.parquet", "--out", "out2"]) == 1
    pd.testing.assert_frame_equal(pd.read_parquet("out2"), pd.read_parquet("out"))
    assert _score("images/a.csv", "--column", "none", "--restart") == 1
    assert "images/a.csv: has no column 'none'; its columns are file, picture, n" in caplog.text


def test_lists_can_name_everything(project):
    with tarfile.open("a.tar", "w") as tar:
        tar.add("images/1", "x")
    Path("list").write_text("images/0\nimages/2/02.png\na.tar\nimages/2/none.png\n")
    assert _score("--from-list", "list") == 1
    paths = pd.read_parquet("out")["path"].tolist()
    assert paths[:8] == [*(f"images/0/{k:02d}.png" for k in range(0, 20, 3)), "images/2/02.png"]
    assert sorted(paths[8:]) == [f"a.tar/x/{k:02d}.png" for k in range(1, 20, 3)]


def test_shards_have_the_rows_of_their_files(project):
    with tarfile.open("shard.tar", "w") as tar:
        for path in sorted(Path("images").rglob("*.*")):
            if path.name != "lost.png":
                tar.add(path, path.relative_to("images"))
        tar.add("evaluation/policy.json", "note.json")
    assert _score("shard.tar") == 1
    assert main(["score", "images", "--out", "out2"]) == 1
    shard, files = pd.read_parquet("out").set_index("path"), pd.read_parquet("out2").set_index("path")
    shard.index = shard.index.str.replace("shard.tar/", "images/")
    pd.testing.assert_frame_equal(shard.loc[files.index], files, rtol=1e-4)
    assert pd.read_csv("out/_bad_images.csv")["path"].tolist() == ["shard.tar/1/bad.jpg"]


def test_files_of_many_frames_have_a_row_for_each(tmp_path, monkeypatch, tiny_workspace, rng):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "_MAX_FRAMES", 4)
    monkeypatch.setattr(scored_parts, "_ROWS", 70)
    tiny_workspace(tmp_path, Decoding(frames="each"))
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(150)]
    frames[0].save("a.tif", save_all=True, append_images=frames[1:])
    frames[0].save("b.tif", save_all=True, append_images=frames[1:4])
    assert _score("a.tif", "b.tif") == 0
    table, (expected, _) = pd.read_parquet("out"), _predicted("a.tif", "b.tif")
    assert table["path"].tolist() == expected["path"].tolist()
    assert table["path"].tolist()[148:] == ["a.tif#149", "a.tif#150", *(f"b.tif#{k}" for k in range(1, 5))]
    np.testing.assert_allclose(table["expected_cost"], expected["expected_cost"], rtol=1e-4)
    assert pq.read_metadata("out/part-00000.parquet").num_row_groups == 2


def test_no_usable_image_is_an_empty_part(project):
    assert _score("images/lost.png") == 1
    assert pd.read_parquet("out").empty
    assert list(pd.read_parquet("out"))[:2] == ["path", "class"]


def test_ctrl_c_says_how_to_continue(project, monkeypatch, caplog):
    _score("images")
    before = _contents()
    write = scored_parts.ScoredParts.write

    def interrupted(parts, number, *arguments):
        if number == 1:
            raise KeyboardInterrupt
        return write(parts, number, *arguments)

    monkeypatch.setattr(scored_parts.ScoredParts, "write", interrupted)
    caplog.clear()
    assert _score("images", "--restart") == 130
    assert "interrupted; 1 of 3 parts are in out; run the same command again to continue" in caplog.text
    monkeypatch.setattr(scored_parts.ScoredParts, "write", write)
    _score("images")
    assert _contents() == before


def test_progress_is_a_line_each_minute_without_a_terminal(caplog):
    caplog.set_level(logging.INFO)
    seconds = iter([0.0, 10.0, 40.0, 70.0, 100.0])
    with ScoringProgress(lambda: next(seconds)) as show:
        show(100, 1000, 0)  # 100 were done before
        show(160, 1000, 60)
        show(220, 1000, 120)
        show(280, 1000, 180)
    assert [record.getMessage() for record in caplog.records] == ["220 of 1,000 images, 2 images/s, about 06:30 left"]


@pytest.mark.slow
def test_a_killed_command_continues_to_the_same_bytes(project, rng):
    """A process with the real part size: killed after its first part; its workers end, and the output is the same."""
    for k in range(1500):
        _image(Path(f"many/{k:04d}.png"), rng)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(out):
        command = [sys.executable, "-m", "udc_model.cli", "score", "many", "--out", out]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start("killed")
    while not Path("killed/part-00000.parquet").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)  # between two looks
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for out in ("killed", "undisturbed"):
        assert start(out).communicate()[0].startswith(f"1,500 rows and 0 bad image(s) in {out}, ")
    assert _contents("killed") == _contents("undisturbed")
    record = json.loads(Path("killed/_score.json").read_text())
    assert (record["inputs"], record["part_size"]) == (1500, 1024)
