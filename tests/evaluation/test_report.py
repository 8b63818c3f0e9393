"""Report and model card: the verdict first, right numbers, exact commands, escaped names, no external resources."""

import base64
import html
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from udc_model.config import CostParams, EvaluateParams, Params
from udc_model.data.packed import PackedDataset, PackedSplit, write_packed
from udc_model.data.scratch import PixelScratch
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.evaluation.figures import FigureCache, draw_figures
from udc_model.evaluation.label_findings import LabelFindings
from udc_model.evaluation.metrics import Scored
from udc_model.evaluation.model_card import render_card
from udc_model.evaluation.report import render_report
from udc_model.evaluation.report_images import sheet_uri, thumbnail_uri
from udc_model.evaluation.subgroups import read_subgroup_table
from udc_model.evaluation.tables import (
    logits_of,
    read_metrics,
    read_predictions,
    read_warnings,
    write_curves,
    write_split,
)
from udc_model.evaluation.verdict import cost_text
from udc_model.evaluation.what_if import WhatIf
from udc_model.files import Workspace
from udc_model.stages.train import training_params

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ["<script>alert(1)</script>", "b & c", "plain"]
PROVENANCE = {
    "MLflow run": "0a1b2c",
    "commit": "abc123",
    "with uncommitted changes": "false",
    "weights, SHA-256": "f" * 64,
}
RECORD = {"params": training_params(Params()), "data": {"name": "<b>data", "digest": "d1e2f3a4b5"}, "best_epoch": 1,
          "final_metrics": {"epochs": 2}, "hardware": {"device": "cpu"}}  # fmt: skip


def evaluated(
    root, rng, classes, per_class=4, margin=2.0, side=8, with_figures=False, order=None, subgroups=None, **options
):
    """A workspace with an evaluation; `tables.write_split` and the figures are the real ones."""
    workspace, n = Workspace(root), len(classes)
    policy = Policy(classes, (1 - np.eye(n)).tolist(), **options)
    for folder in (workspace.evaluation, workspace.prepared, workspace.training):
        folder.mkdir(parents=True)
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    labels = np.repeat(np.arange(n), per_class)
    images = rng.integers(0, 255, (len(labels), side, side, 3), dtype=np.uint8)
    names = [f"<i>{i}.png" for i in range(len(labels))]
    _write_prepared(workspace.prepared, images, [classes[label] for label in labels], names, classes)
    split = PackedSplit(images, labels, names, [""] * len(labels), [""] * len(labels))
    logits = (rng.normal(0, 1, (len(labels), n)) + margin * np.eye(n)[labels]).astype(np.float32)
    for name in ("test", "validation"):
        folder, evaluate = workspace.evaluation / name, EvaluateParams(resamples=100)
        scored, *_ = write_split(folder, split, logits, policy, evaluate, order, subgroups)
        if name == "test":
            write_curves(folder, scored, policy, logits, evaluate)
    if with_figures:
        for kind in ("classes", "curves"):
            draw_figures(workspace.evaluation / "test", kind, workspace.prepared, FigureCache(root / "cache"))
    return workspace


def _write_prepared(folder, images, labels, names, classes):
    """Prepared data whose test split has these images; the training split has them too."""
    (folder / "scratch").write_bytes(images.tobytes())
    constants = {"group": "", "width": 8, "height": 8, "sha256": "0" * 64}
    rows = [
        {"split": split, "path": path, "label": label, "scratch_row": row, **constants}
        for split in ("train", "test")
        for row, (path, label) in enumerate(zip(names, labels, strict=True))
    ]
    write_packed(folder, PixelScratch(folder / "scratch"), rows, Preprocessing(len(images[0])), {"classes": classes})


def render(workspace, classes, provenance=PROVENANCE, **options):
    counts = {name: dict.fromkeys(classes, 4) for name in ("train", "validation", "calibration", "test")}
    images = PackedDataset.open(workspace.prepared).split("test").images
    return render_report(workspace.evaluation, workspace.training, images, RECORD, counts=counts,
                         findings=["costs: odd <cost>"], confidence=0.95, provenance=provenance,
                         data_notes=["3 copies <left> out"], **options)  # fmt: skip


def text_of(page):
    """What a reader sees, as one line."""
    body = re.sub(r"<(style|head).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture
def page(tmp_path, rng):
    return render(evaluated(tmp_path, rng, NAMES, refer=0.5), NAMES)


def test_names_are_escaped(page):
    assert "<script" not in page
    assert "<i>" not in page
    assert "<b>data" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "odd &lt;cost&gt;" in page
    assert "3 copies &lt;left&gt; out" in page


def test_page_has_no_external_resources(page):
    assert not re.search(r"https?:|<link|@import|url\(|src=\"(?!data:)", page)


def test_every_image_has_an_alternative_text(tmp_path, rng):
    page = render(evaluated(tmp_path, rng, NAMES, with_figures=True), NAMES)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 9
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def test_the_first_screen_has_the_verdict_with_the_right_numbers(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b", "c"], per_class=40, margin=2.5)
    table = pd.read_csv(workspace.evaluation / "test" / "predictions.csv")
    metrics = pd.read_csv(workspace.evaluation / "test" / "metrics.csv").set_index("metric")
    right = int((table["true"] == table["predicted"]).sum())
    page = text_of(render(workspace, ["a", "b", "c"]))
    cost, constant = metrics.loc["mean_cost"], metrics.loc["constant_mean_cost", "value"]
    verdict = page.index(f"{right} of 120 test images are decided right; {120 - right} mistakes.")
    assert f"Cost {cost['value']:.3g} per image" in page
    assert f"(95% interval {cost['low']:.3g} to {cost['high']:.3g}), against {constant:.3g} for always" in page
    assert "the same data (d1e2f3a4)" in page
    order = [page.index(text) for text in ("Costliest mistakes", "Cost by true class and decision", "Recall by class",
             "Training", "Images by split", "Reproduce")]  # fmt: skip
    assert [verdict, *order] == sorted([verdict, *order])


def test_a_useless_result_is_called_one_first(tmp_path, rng):
    page = text_of(render(evaluated(tmp_path, rng, ["a", "b"], per_class=20, margin=0.0), ["a", "b"]))
    assert "do not rely on it." in page or "do not use this model." in page
    assert page.index("the best decision without a model") < page.index("test images are decided right")


def test_referral_is_mentioned_only_where_it_is_available(tmp_path, rng):
    with_referral = text_of(render(evaluated(tmp_path / "on", rng, NAMES, refer=0.1), NAMES))
    without = text_of(render(evaluated(tmp_path / "off", rng, NAMES), NAMES))
    assert "are referred to a person" in with_referral
    assert "referral rate" in with_referral
    assert "cost of referral 0.1" in with_referral
    assert "referral rate" not in without
    assert "referred to a person" not in without


def test_the_report_counts_and_names_actions(tmp_path, rng):
    classes, actions = ["a", "b", "c"], {"retest": [0.3, 0.2, 0.45], "discard": [0.6, 0.9, 0.05]}
    workspace = evaluated(tmp_path, rng, classes, per_class=40, margin=1.2, refer=0.35, actions=actions)
    table = pd.read_csv(workspace.evaluation / "test/predictions.csv")
    text, counts = text_of(render(workspace, classes)), table["predicted"].value_counts()
    right = int((table["true"] == table["predicted"]).sum())
    mistakes = int(counts[classes].sum()) - right
    assert (f"{right} of 120 test images are decided right; {mistakes} mistakes; {counts['refer']} "
            f"({counts['refer'] / 120:.1%}) are referred to a person; {counts['retest']} "
            f"({counts['retest'] / 120:.1%}) are decided retest; {counts['discard']} ") in text  # fmt: skip
    assert "cost of referral 0.35, other actions: retest, discard" in text
    assert "action rate/retest" in text
    assert "Rows are the true class, columns the decision. a b c refer retest discard a 0 1 1 0.35 0.3 0.6 b" in text
    many = [f"k{i}" for i in range(12)]
    options = {"actions": {"retest": [0.5] * 11 + [2.0], "discard": [0.7] * 12}}
    text = text_of(render(evaluated(tmp_path / "many", rng, many, **options), many))
    assert "The decision retest costs 0.5 to 2. The decision discard costs 0.7." in text
    assert "referr" not in text


def test_recall_by_class_has_its_interval(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b", "c"], per_class=10)
    row = pd.read_csv(workspace.evaluation / "test" / "per_class.csv").iloc[1]
    assert f"b {row.recall:.3f} {row.recall_low:.3f} to {row.recall_high:.3f} {row.precision:.3f} 10" in text_of(
        render(workspace, ["a", "b", "c"])
    )


def test_the_costliest_mistakes_have_their_images(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b", "c"], per_class=30, margin=1.0)
    mistakes = pd.read_csv(workspace.evaluation / "test" / "costliest_mistakes.csv")
    page = render(workspace, ["a", "b", "c"])
    cards = re.findall(r'<li[^>]*><img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(cards) == min(12, len(mistakes)) == 12
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(cards[0][0]))))
    assert np.array_equal(shown, np.load(workspace.prepared / "test.npy")[mistakes["row"][0]])
    assert html.unescape(cards[0][1]) == mistakes["path"][0]


@pytest.mark.parametrize(("provenance", "commands", "absent"), [
    ({"MLflow run": "0a1b2c", "commit": "abc123", "with uncommitted changes": "false"},
     ["udc reproduce 0a1b2c", "git checkout abc123"], ["git/evaluate.patch", "udc reproduce ."]),
    ({"MLflow run": "0a1b2c", "commit": "abc123", "with uncommitted changes": "true", "DVC experiment": "wide"},
     ["udc reproduce 0a1b2c", "git/evaluate.patch", "dvc exp apply wide", "its uncommitted changes"], ["git checkout"]),
    ({"MLflow run": "0a1b2c"}, ["not started in a git repository"], ["git checkout", "udc reproduce"]),
    ({"model folder in dvc.lock": "e1f2.dir"}, ["udc reproduce .", "git log --all --oneline -S e1f2.dir -- dvc.lock"],
     ["git checkout"]),
])  # fmt: skip
def test_commands_that_reproduce_have_no_placeholder(tmp_path, rng, provenance, commands, absent):
    workspace = evaluated(tmp_path, rng, ["a", "b"])
    section = text_of(render(workspace, ["a", "b"], {"weights, SHA-256": "f" * 64} | provenance)).split(" Reproduce ")[
        -1
    ]
    assert all(text in section for text in commands)
    assert not any(text in section for text in [*absent, "COMMIT"])


def test_large_tables_are_lists_of_the_costliest_cells(tmp_path, rng):
    classes = [f"class {k}" for k in range(20)]
    page = render(evaluated(tmp_path, rng, classes), classes)
    assert 'class="matrix"' not in page
    assert "380 of the 380 mistakes cost 1. evaluation/policy.json has all costs." in page
    policy = Policy(classes, (1 - np.eye(20) + 4 * np.eye(20, k=3)).tolist())
    (tmp_path / "evaluation" / "policy.json").write_text(policy.to_json())
    page = text_of(render(Workspace(tmp_path), classes))
    assert "363 of the 380 mistakes cost 1. The others: evaluation/policy.json has all costs." in page
    assert "class 0 class 3 5" in page


@pytest.mark.slow
def test_size_of_a_report_of_300_classes(tmp_path, rng):
    classes = [f"a rather long class name of a species {k}" for k in range(300)]
    workspace = evaluated(tmp_path, rng, classes, per_class=2, side=64, with_figures=True)
    Image.fromarray(rng.integers(0, 255, (900, 1800, 3), dtype=np.uint8)).save(workspace.training / "augmented.png")
    page = render(workspace, classes)
    assert len(page.encode()) < 3_000_000
    assert page.count("data:image/") == 12 + 10 - 1 + 1  # cards, figures without the gallery, augmented images


def test_thumbnails_are_small_and_sheets_too(tmp_path, rng):
    photograph = rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)
    assert thumbnail_uri(photograph).startswith("data:image/jpeg;base64,")
    assert thumbnail_uri(rng.integers(0, 255, (16, 16, 1), dtype=np.uint8)).startswith("data:image/png;base64,")
    Image.fromarray(np.tile(photograph, (2, 4, 1))).save(tmp_path / "sheet.png")
    contents = base64.b64decode(sheet_uri(tmp_path / "sheet.png").split(",")[1])
    with Image.open(io.BytesIO(contents)) as sheet:
        assert sheet.size == (1100, 550)


def test_figures_that_rest_on_few_mistakes_are_marked(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b", "c"])
    (warning,) = read_warnings(workspace.evaluation / "test")
    assert re.fullmatch(r"(no|only \d) mistakes? among 12 images: their true share may be up to .*", warning)
    assert f"Test split: {warning}." in text_of(render(workspace, ["a", "b", "c"]))


def test_tables_and_costs_follow_the_order_of_ordinal_classes(tmp_path, rng):
    classes = ["bad", "mild", "worst"]
    workspace = evaluated(tmp_path, rng, classes, per_class=4, order=[1, 0, 2], refer=0.75)
    matrix = np.array([[0.0, 2, 3], [4, 0, 5], [6, 7, 0]])
    policy = Policy(classes, matrix.tolist(), refer=0.75)
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    page = render(workspace, classes)
    table = page.partition('<table class="matrix">')[2].partition("</table>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", table) == ["mild", "bad", "worst", "refer", "mild", "bad", "worst"]
    costs = [float(cell) for cell in re.findall(r"<td[^>]*>([^<]+)</td>", table)]
    assert costs == [0, 4, 5, 0.75, 2, 0, 3, 0.75, 7, 6, 0, 0.75]
    recalls = page.partition('aria-label="Recall of each class"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]*)</th>', recalls) == ["mild", "bad", "worst"]


def card(workspace, classes, labels=None):
    counts = {name: dict.fromkeys(classes, 1400) for name in ("train", "validation", "calibration", "test")}
    record = RECORD | {"params": RECORD["params"] | {"data": RECORD["params"]["data"] | {"path": "/home/me/x"}}}
    return render_card(workspace.evaluation, record, counts=counts, findings=["costs: odd <i>"], confidence=0.95,
                       provenance=PROVENANCE, data_notes=["3 copies left out"], labels=labels)  # fmt: skip


def test_the_model_card_has_the_metadata_of_the_hub(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b"])
    data = ModelCard(card(workspace, ["a", "b"])).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("unknown", "image-classification", "udc-model")
    published = {result.metric_type: result.metric_value for result in data.eval_results}
    assert published["mean_cost"] == read_metrics(workspace.evaluation / "test" / "metrics.csv")["mean_cost"]
    assert {"accuracy", "log_loss"} <= published.keys()


def test_the_model_card_says_what_was_measured_and_where_it_fails(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b|c", "`d`\n# e"], refer=0.5)
    text = card(workspace, ["a", "b|c", "`d`\n# e"])
    metrics = pd.read_csv(workspace.evaluation / "test" / "metrics.csv").set_index("metric")
    value, low, high = metrics.loc["mean_cost", ["value", "low", "high"]]
    assert f"| mean cost | {value:.4f} | {low:.4f} to {high:.4f} |" in text
    assert "| `a` | 0 | 1 | 1 | 0.5 |" in text  # costs
    assert "| `b¦c` | 1,400 | 1,400 | 1,400 | 1,400 |" in text
    assert "| all 3 classes | 4,200 | 4,200 | 4,200 | 4,200 |" in text
    assert "`'d' # e`" in text
    assert "\n# e" not in text
    per_class = pd.read_csv(workspace.evaluation / "test" / "per_class.csv")
    weakest = per_class.loc[per_class["recall"].idxmin()]
    assert f"with recall {weakest['recall']:.2f} (95% interval {weakest['recall_low']:.2f} to" in text
    assert "- costs: odd &lt;i&gt;\n" in text
    assert "3 copies left out." in text
    assert "/home/me" not in text
    assert f"| weights, SHA-256 | `{'f' * 64}` |" in text


def test_names_are_no_html_in_the_model_card(tmp_path, rng):
    classes = ["<img src=x>", "<b>x</b>", *map(str, range(12))]
    options = {"refer": 0.35, "actions": {"<u>act</u>": [0.3] * 14}}
    for margin in (0.0, 3.0):  # a warning, comparisons
        text = card(evaluated(tmp_path / f"{margin}", rng, classes, margin=margin, **options), classes)
        assert "always &lt;" in text
        assert "are decided &lt;u&gt;act&lt;/u&gt;" in text
        assert "The decision &lt;u&gt;act&lt;/u&gt; costs 0.3." in text
        body = re.sub("`[^`]*`", "", text.partition("\n---\n")[2])
        assert "<" not in body


def test_the_model_card_knows_actions(tmp_path, rng):
    options = {"refer": 0.35, "actions": {"retest": [0.3, 0.2, 0.45]}}
    classes = ["a", "b", "c"]
    text = card(evaluated(tmp_path, rng, classes, per_class=40, margin=1.2, **options), classes)
    assert "| `a` | 0 | 1 | 1 | 0.35 | 0.3 |" in text
    assert "| action rate/retest | 0." in text
    assert "Every image gets one of these decisions, also" in text


def test_the_model_card_of_many_classes_is_short(tmp_path, rng):
    classes = [f"class {k}" for k in range(60)]
    assert len(card(evaluated(tmp_path, rng, classes, per_class=2), classes).splitlines()) < 150


def test_subgroups_have_a_section_with_what_is_shown(tmp_path, rng):
    sites = (["<b>north</b>"] * 20 + ["NA"] * 20) * 2
    workspace = evaluated(tmp_path, rng, ["a", "b"], per_class=40, margin=3.0, subgroups={"site": sites})
    page = render(workspace, ["a", "b"])
    assert "<b>north" not in page
    text = text_of(page)
    sentence = "No subgroup is shown to differ in cost from the rest (smallest p = "
    assert text.index(" Subgroups ") < text.index(sentence) < text.index("site NA 40") < text.index("Images by split")
    assert f"\n- {sentence}" in card(workspace, ["a", "b"])
    table = read_subgroup_table(workspace.evaluation / "test/subgroups.csv").set_index("subgroup")
    row = table.loc["NA"]
    assert f"site NA 40 {row['costly_mistakes']} {cost_text(row['mean_cost'])} (" in text
    assert f"{row['right']:.3f} ({row['right_low']:.3f} to {row['right_high']:.3f})" in text
    without = render(evaluated(tmp_path / "without", rng, ["a", "b"], subgroups={"site": [""] * 8}), ["a", "b"])
    assert " Subgroups " not in text_of(without)


def test_suspicious_labels_have_a_section_with_their_images(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, NAMES)
    image = thumbnail_uri(np.zeros((8, 8, 3), np.uint8))
    row = {"path": "<i>x.png", "label": NAMES[0], "suggested_label": NAMES[1], "split": "train", "expected_cost": 2.5,
           "image": image}  # fmt: skip
    found = LabelFindings(pd.DataFrame(), 1234, 1, [row], "augmented images", ["1 image(s) were <dropped>"])
    page = render(workspace, NAMES, labels=found)
    assert "<i>x" not in page
    text = text_of(page)
    assert "Labels that may be wrong 1 of 1,234 labels is suspicious. 1 image(s) were <dropped>." in text
    assert f"labelled {NAMES[0]} , more likely {NAMES[1]} train, expected cost 2.5 <i>x.png" in text
    assert "in the first half of the epochs; augmented images." in text
    sentence = "Labels: 1 of 1,234 labels is suspicious. 1 image(s) were &lt;dropped&gt;.\n"
    assert sentence in card(workspace, NAMES, found)
    clean = text_of(render(workspace, NAMES, labels=LabelFindings(pd.DataFrame(), 50, 0)))
    assert "Labels that may be wrong Nothing suspicious among 50 labels. Training images are not ranked" in clean
    assert "Labels that may be wrong" not in text_of(render(workspace, NAMES))


def test_report_links_to_the_report_on_the_images_if_there_is_one(tmp_path, rng):
    workspace = evaluated(tmp_path, rng, ["a", "b"])
    assert "href" not in render(workspace, ["a", "b"])
    page = render(workspace, ["a", "b"], data_report="../data/prepared/data_report.html")
    assert re.findall(r'href="([^"]*)"', page) == ["../data/prepared/data_report.html"]


def what_if_of(workspace, classes):
    policy = Policy.load(workspace.evaluation)
    logits = logits_of(read_predictions(workspace.evaluation / "test/predictions.csv"), classes)
    decisions, targets = policy.apply(logits), np.repeat(np.arange(len(classes)), len(logits) // len(classes))
    scored = Scored(targets, decisions.decided, decisions.probabilities, policy.outcome_costs, actions=[])
    return WhatIf.of(policy, CostParams(), scored, logits)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)")
def test_other_costs_are_shown_at_the_images_and_no_request_leaves_the_file(tmp_path, rng):
    from playwright.sync_api import sync_playwright

    workspace = evaluated(tmp_path, rng, NAMES, per_class=30, margin=1.0, training_prior=[0.5, 0.3, 0.2])
    path, requests, errors = tmp_path / "report.html", [], []
    path.write_text(render(workspace, NAMES, what_if=what_if_of(workspace, NAMES)), encoding="utf-8")
    mistakes = pd.read_csv(workspace.evaluation / "test/costliest_mistakes.csv")
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 420, "height": 900})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        assert page.locator(".now").count() == 0
        page.check("#can-refer")
        page.fill("#refer", "0")
        page.locator(".now").first.wait_for()
        shown = page.locator("[data-test-row] .now").all_inner_texts()
        assert shown == ["with the costs below: refer, cost 0"] * min(12, len(mistakes))
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
        refused = page.evaluate("fetch('https://example.org').then(() => false, () => true)")
        assert refused
        browser.close()
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert errors == []
