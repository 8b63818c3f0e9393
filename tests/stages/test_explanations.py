"""Stage ``evaluate`` and explanations: the same page with and without stored ones; ``udc explain``."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from udc_model.cli import main
from udc_model.data.packed import PackedDataset
from udc_model.evaluation.explanations import Explanations
from udc_model.inference.classifier import TrainedClassifier
from udc_model.inference.neighbours import TrainingFeatures
from udc_model.inference.saliency import saliency
from udc_model.inference.stored_model import open_stored
from udc_model.stages import explanations as stage
from udc_model.stages.evaluate import evaluate
from udc_model.stages.explanations import explainer_of

pytestmark = pytest.mark.slow


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stored_in(workspace, kind):
    (path,) = (workspace.root.parent / ".udc/explanations").glob(f"{kind}-*.npz")
    return path


def with_refer(params, cost):
    return params.model_copy(update={"costs": params.costs.model_copy(update={"refer": cost})})


def test_stored_explanations_are_those_of_the_model(project):
    workspace, params = project
    evaluate(params, workspace)
    found = Explanations.load(stored_in(workspace, "explanations"))
    dataset, classifier = PackedDataset.open(workspace.prepared), TrainedClassifier.load(workspace.model)
    test = dataset.split("test")
    assert found.rows.tolist() == list(range(12))
    assert found.size == 16
    logits = classifier.logits_of_stored(test.images)
    assert (found.classes[:, 0] == logits.argmax(axis=1)).all()
    maps = np.rint(255 * saliency(classifier, test.images, found.classes))
    assert np.abs(found.maps - maps).max() <= 1
    references = TrainingFeatures.load(stored_in(workspace, "features"))
    train = dataset.split("train")
    assert references.rows.tolist() == list(range(len(train)))
    assert (train.labels[found.neighbours] == found.classes).all()


def test_evaluation_is_the_same_whether_explanations_are_stored_or_not(project, monkeypatch):
    workspace, params = project
    evaluate(params, workspace)
    other = with_refer(params, 0.2)

    def never(*args, **kwargs):
        raise AssertionError("the model runs")

    with monkeypatch.context() as patch:
        patch.setattr(TrainedClassifier, "of", never)
        evaluate(other, workspace)
    before = digests(workspace.evaluation)
    stored_in(workspace, "explanations").write_bytes(b"damaged")
    evaluate(other, workspace)
    assert digests(workspace.evaluation) == before
    for folder in ("explanations", "logits"):
        for path in (workspace.root.parent / ".udc" / folder).iterdir():
            path.unlink()
    evaluate(other, workspace)
    assert digests(workspace.evaluation) == before
    page = (workspace.evaluation / "report.html").read_text()
    assert "Why: regions and similar training images" in page
    assert "Least familiar" in page
    assert "no map" not in page


def test_images_beyond_the_explained_ones_are_left_to_a_command(project, monkeypatch, capsys):
    workspace, params = project
    monkeypatch.setattr(stage, "MOST_IMAGES", 2)
    stored_in(workspace, "explanations").unlink()
    evaluate(params, workspace)
    assert "10 of the 12 images have no map" in (workspace.evaluation / "report.html").read_text()
    before = digests(workspace.evaluation)
    assert main(["explain", "--root", str(workspace.root), "--out", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html: 12 image(s) explained\n"
    page = (workspace.root.parent / "page.html").read_text()
    assert "no map" not in page
    assert page.count("<figcaption>for ") >= 12
    assert digests(workspace.evaluation) == before
    stored_in(workspace, "explanations").unlink()


def test_udc_explain_explains_files(project, tmp_path, capsys, caplog, rng):
    workspace, _ = project
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "a&b.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "page.html"
    command = ["explain", str(tmp_path / "a&b.png"), str(tmp_path / "broken.png"), "--root", str(workspace.root),
               "--out", str(out)]  # fmt: skip
    assert main(command) == 1
    output = capsys.readouterr()
    assert "1 image(s) explained" in output.out
    assert "broken.png" in output.err
    assert "1 image(s) could not be used" in caplog.text
    page = out.read_text()
    assert "a&amp;b.png: decided" in page
    assert page.count("<img") == 4
    assert main(["explain", str(tmp_path / "a&b.png"), "--out", str(tmp_path / "page.txt")]) == 1
    assert "the name of the file must end in .html" in caplog.text


def test_features_of_training_images_are_computed_once(project, monkeypatch):
    workspace, params = project
    evaluate(params, workspace)
    stored = open_stored(workspace)
    calls = []
    monkeypatch.setattr(stage, "compute_training_features", lambda *args: calls.append(args))
    explainer = explainer_of(stored, workspace)
    assert calls == []
    assert explainer.exact.precision == "fp32"
