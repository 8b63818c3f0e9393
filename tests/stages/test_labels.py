"""Wrong labels from training to their correction, with the stages: found, reviewed, corrected, reported."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from udc_model.cli import main
from udc_model.config import Params, override_params
from udc_model.data.applied_corrections import read_applied
from udc_model.data.corrections import Correction, read_corrections, write_corrections
from udc_model.data.margins import MARGINS
from udc_model.data.packed import PackedDataset
from udc_model.data.quality.group_patterns import PATTERNS
from udc_model.files import Workspace
from udc_model.stages.evaluate import evaluate
from udc_model.stages.prepare import prepare
from udc_model.stages.resolve import resolve
from udc_model.stages.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, shapes_at):
    """The current folder, with a model of images of which two training labels and a test label are wrong; the latter is
    corrected."""
    root = tmp_path_factory.mktemp("project")
    shapes = sorted(shapes_at(root / "shapes").glob("*/*.png"))
    for k, file in enumerate(shapes):
        split = ("train", "train", "train", "validation", "calibration", "test")[k % 6]
        label = {0: "stripe", 6: "stripe", 29: "bar"}.get(k, file.parent.name)
        target = root / "images" / split / label / f"{file.parent.name}_{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    corrected = next((root / "images/test/bar").glob("dot_*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UDC_SENDER", "off")
        patch.chdir(root)
        workspace, params = Workspace(Path()), _params(root / "images")
        write_corrections(workspace.corrections, [Correction(f"test/bar/{corrected.name}", "", "relabel", "dot")])
        resolved = resolve(params, prepare(params, workspace))
        train(resolved.train, workspace, resolved.evaluate.costs)
        evaluate(resolved.evaluate, workspace)
        yield workspace


def _params(images: Path) -> Params:
    return override_params(["data.source=folder", f"data.path={images}", "data.image_size=16",
                            "costs.entries=[{actual: bar, predicted: stripe, cost: 7}]", "model.preset=resnet-mini",
                            "train.epochs=8", "train.batch_size=12", "train.device=cpu", "train.precision=fp32",
                            "train.augment=light", "evaluate.resamples=100"])  # fmt: skip


def test_wrong_labels_are_ranked_first_with_their_cost(workspace):
    assert (workspace.training / MARGINS).stat().st_size < 4 * 8 * 60 + 1000
    record = json.loads((workspace.training / "record.json").read_text())
    assert record["margins"] == "logits of each training step, before its update: augmented images"
    with (workspace.evaluation / "label_quality.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["path", "sha256", "label", "suggested_label", "score", "expected_cost", "split",
                             "is_suspicious"]  # fmt: skip
    assert len(rows) == 60
    assert {row["split"] for row in rows[:2]} == {"train"}
    for row in rows[:2]:
        assert "/stripe/bar_" in row["path"]
        assert (row["label"], row["suggested_label"], row["is_suspicious"]) == ("stripe", "bar", "True")
        assert float(row["expected_cost"]) == pytest.approx(7 * (1 - float(row["score"])))
    assert [row for row in rows[2:] if row["is_suspicious"] == "True"] == []


def test_report_and_card_show_them(workspace):
    page = (workspace.evaluation / "report.html").read_text()
    section = page.partition("<h2>Labels that may be wrong</h2>")[2].partition("<h2>")[0]
    assert "<strong>2 of 60 labels are suspicious.</strong>" in section
    assert section.count("<img src=") == 2
    assert section.count("labelled <strong>stripe</strong>, more likely <strong>bar</strong>") == 2
    before, after = re.search(
        r"1 test label\(s\) were corrected: mean cost (\S+) before and (\S+) after", section
    ).groups()
    assert float(before) > float(after)
    assert "logits of each training step, before its update: augmented images" in section
    card = (workspace.evaluation / "README.md").read_text()
    assert "Labels: 2 of 60 labels are suspicious. 1 test label(s) were corrected: mean cost " in card
    assert "corrected by data/corrections.csv: 1 relabelled" in card
    assert "corrected by data/corrections.csv: 1 relabelled" in page


def test_objects_of_training_in_the_test_split_are_reported(workspace, monkeypatch, caplog):
    def opened(folder):
        dataset = PackedDataset.open(folder)
        dataset.info["group_proposal"] = PATTERNS[4]  # groups bar, dot and stripe
        return dataset

    monkeypatch.setattr("udc_model.stages.evaluate.PackedDataset", SimpleNamespace(open=opened))
    params = _params(Path("images").resolve())
    evaluate(params, workspace)
    sentence = "By their file names, all 10 test images show objects that the network was trained on"
    assert sentence in (workspace.evaluation / "report.html").read_text()
    assert sentence in caplog.text
    monkeypatch.undo()
    evaluate(params, workspace)
    assert sentence not in (workspace.evaluation / "report.html").read_text()


def test_review_corrects_them_and_the_next_data_has_the_right_labels(workspace, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("r\nk\n"))
    assert main(["labels", "review", "--author", "Ada"]) == 0
    assert "1 relabelled, 1 confirmed" in capsys.readouterr().out
    before, *corrections = read_corrections(workspace.corrections)
    assert (before.action, before.value) == ("relabel", "dot")
    assert [(each.action, each.value, each.author) for each in corrections] == [("relabel", "bar", "Ada"),
                                                                               ("keep", "", "Ada")]  # fmt: skip
    manifest = pd.read_csv(workspace.prepared / "manifest.csv").set_index("path")
    assert [manifest.loc[each.path, "sha256"] for each in corrections] == [each.sha256 for each in corrections]
    info = prepare(_params(Path("images").resolve()), workspace)
    assert info["corrections"] == {"relabel": 2}
    applied = read_applied(workspace.prepared)
    assert {(each.path, each.action, each.after) for each in applied} == {
        (before.path, "relabel", "dot"), (corrections[0].path, "relabel", "bar"),
        (corrections[1].path, "keep", "stripe"),
    }  # fmt: skip
