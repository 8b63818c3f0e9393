"""The real command on data as people have it: an archive with a table, deep images, files of a Mac, split names."""

import csv
import json
import zipfile

import numpy as np
import pytest
from PIL import Image


@pytest.mark.pipeline
def test_prepare_reads_an_archive_with_a_table_and_deep_images(by_hand):
    shapes = by_hand.root / "data/raw/shapes"
    table = ["file;class;split"]
    with zipfile.ZipFile(by_hand.root / "data/raw/set.zip", "w") as archive:
        for i, path in enumerate(sorted(shapes.rglob("*.png"))):
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
            Image.fromarray(grey).save(path)
            archive.write(path, f"set/img/{path.parent.name}-{path.name}")
            table.append(f"{path.parent.name}-{path.stem};{path.parent.name};{'testing' if i % 5 == 0 else 'training'}")
        archive.writestr("set/labels.csv", "\n".join(table))
        archive.writestr("__MACOSX/set/img/._a.png", b"\0")
    by_hand.set_params(data={"source": "auto", "path": "data/raw/set.zip"})
    printed = by_hand.run("udc", "prepare").stderr
    for line in (
        "found table set/labels.csv (image: file; class: class; split: split)",
        "60 images of 3 classes: bar 20, dot 20, stripe 20",
        "splits as found: train 48, test 12",
        "left out: 1 × hidden or system file (__MACOSX)",
        "data.intensity: in 60 file(s) with more than 8 bits, 0 becomes black and 4095 white",
        "the data has no split validation and calibration: carved from train, by data.splits",
    ):
        assert line in printed
    prepared = by_hand.root / "data/prepared"
    info = json.loads((prepared / "dataset.json").read_text())
    assert sum(info["counts"]["test"].values()) == 12
    with (prepared / "manifest.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["split"] == "test"]
    stored = np.load(prepared / "test.npy")
    with zipfile.ZipFile(by_hand.root / "data/raw/set.zip") as archive:
        original = np.asarray(Image.open(archive.open(rows[0]["path"])))
    eight_bits = Image.fromarray(np.rint(original * (255 / 4095)).astype(np.uint8)).convert("RGB")
    assert np.abs(stored[0].astype(int) - np.asarray(eight_bits.resize((16, 16), Image.Resampling.BICUBIC))).max() <= 1


@pytest.mark.pipeline
def test_other_subgroups_do_not_train_again(by_hand):
    project, table = by_hand, "evaluation/test/subgroups.csv"
    project.run("dvc", "repro", "-q")
    assert not (project.root / table).exists()
    weights = (project.root / "model/model.safetensors").stat().st_mtime_ns
    project.set_params(data={"subgroups": ["/(?P<site>g[0-9])_"]})
    done = project.run("dvc", "repro")
    stages = [name for name in ("prepare", "resolve", "train", "evaluate") if f"Running stage '{name}'" in done.stdout]
    assert stages == ["prepare", "resolve", "evaluate"]
    assert (project.root / "model/model.safetensors").stat().st_mtime_ns == weights
    with (project.root / table).open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["division"] for row in rows} == {"site"}
    assert sum(int(row["images"]) for row in rows) == 9
    costs = [float(row["mean_cost"]) for row in rows]
    assert costs == sorted(costs, reverse=True)
    assert "test: no subgroup is shown to differ in cost from the rest (smallest p = " in done.stderr
    assert "Subgroups</h2>" in (project.root / "evaluation/report.html").read_text(encoding="utf-8")
