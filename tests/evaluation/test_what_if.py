"""Other costs in the report: the browser's decisions, costs and intervals are Python's on the same probabilities."""

import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from udc_model.config import CostParams, EvaluateParams
from udc_model.config.yaml12 import read_yaml
from udc_model.decisions.actions import action_costs
from udc_model.decisions.checks import policy_problems
from udc_model.decisions.decision import clopper_pearson_bound, shift_prior
from udc_model.decisions.familiarity import Familiarity
from udc_model.decisions.matrix import class_prior, cost_matrix
from udc_model.decisions.policy import Policy
from udc_model.evaluation.intervals import metric_intervals
from udc_model.evaluation.metrics import Scored, rate_metric, recall_metric, split_metrics
from udc_model.evaluation.tables import per_class_table, recall_intervals
from udc_model.evaluation.verdict import cost_text
from udc_model.evaluation.what_if import WhatIf, rounded_probabilities, rounded_roots, sampled_rows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="there is no Chromium on this machine (apt install chromium)"
)
CLASSES = ["a <b>", "benign", "tumour", "true"]
FLOOR = {"class": "tumour", "floor": 0.9, "confidence": 0.9, "surcharge": 2.5}
FLOOR_OF_TWO = {"class": ["benign", "true"], "floor": 0.5, "confidence": 0.9, "surcharge": 2.5}
CEILING = {"ceiling": 0.5, "confidence": 0.9, "threshold": 0.7}


def test_rounded_probabilities_are_near_and_small_ones_stay_apart(rng):
    p = rng.dirichlet(np.full(30, 0.05), 500)
    rounded = rounded_probabilities(p) * (65536 / 65535) ** 2  # the factor of all of them
    assert (np.abs(rounded - p) <= 1.6e-5 * np.sqrt(p) + 1e-10).all()
    assert rounded_roots(np.array([[1.0, 0.0]])).tolist() == [[65535, 0]]
    small = rounded_probabilities(np.array([[1e-6, 2e-6]]))
    assert small[0, 1] / small[0, 0] == pytest.approx(2, rel=0.02)


def test_a_sample_has_the_same_number_of_each_class_and_all_of_rare_ones():
    targets = np.repeat([0, 1, 2], [500, 300, 7])
    rows = sampled_rows(targets, 3, 100)
    assert np.bincount(targets[rows]).tolist() == [46, 46, 7]
    assert (np.diff(rows) > 0).all()
    assert sampled_rows(targets, 3, 807).tolist() == list(range(807))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens the part of the report in the browser, and fails the test at an error in the page."""
    errors = []

    def open_page(content, **options):
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><title>t</title><main>{content}</main>", encoding="utf-8")
        page = browser.new_page(**options)
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert errors == []


def evaluated(rng, costs, classes=CLASSES, images=240, groups=None, most_values=10**6, unfamiliar=False, **policy):
    """The images of a split, scored under these costs, and what the page gets of them."""
    k = len(classes)
    training = (np.arange(1, k + 1) / np.arange(1, k + 1).sum()).tolist()
    deployment = class_prior(costs, classes, training)
    familiarity = Familiarity("0" * 64, 8, 1, list(np.linspace(0, 1, 199)), "refer" if unfamiliar else "warn")
    fitted = Policy(classes, cost_matrix(costs, classes).tolist(), refer=costs.refer, training_prior=training,
                    deployment_prior=None if deployment is None else deployment.tolist(),
                    actions=action_costs(costs, classes), familiarity=familiarity, **policy)  # fmt: skip
    targets = np.arange(images) % k
    logits = (rng.normal(0, 1, (images, k)) + 1.5 * np.eye(k)[targets]).astype(np.float32)
    distances = rng.uniform(0, 1.02, images).astype(np.float32)
    scored = scored_by(fitted, targets, logits, groups, fitted.familiarity_of(distances))
    what_if = WhatIf.of(fitted, costs, scored, logits, distances, most_values)
    return scored, what_if, content_of(scored, what_if)


def scored_by(policy, targets, logits, groups=None, familiarity=None):
    decisions = policy.apply(logits, familiarity)
    return Scored(targets, decisions.decided, decisions.probabilities, policy.outcome_costs, policy.weights(targets),
                  groups, policy.action_names)  # fmt: skip


def content_of(scored, what_if):
    metrics = split_metrics(scored, 15)
    intervals = metric_intervals(scored, metrics, 15, [], 400, 0.95)
    recorded = {name: (value, *intervals[name]) for name, value in metrics.items() if name in intervals}
    classes = what_if.policy.classes
    low, high = recall_intervals(scored, 0.95)
    table = per_class_table(scored.targets, scored.decided, classes).assign(recall_low=low, recall_high=high)
    return what_if.to_html(recorded, table.to_dict("records"), 0.95)


def settings_of(costs, classes, decision="min_expected_cost"):
    """The settings of the page that these parameters describe."""
    actions = [[name, of_class] for name, of_class in action_costs(costs, classes).items()]
    return {"costs": cost_matrix(costs, classes).tolist(), "refer": costs.refer, "actions": actions,
            "refersUnfamiliar": costs.unfamiliar == "refer", "prior": costs.prior, "decision": decision}  # fmt: skip


def random_costs(rng, classes):
    """Costs of random kind: matrix, referral, actions, frequencies, each set in about half of the cases."""
    k = len(classes)
    matrix = np.round(10 ** rng.uniform(-1, 2, (k, k)), int(rng.integers(0, 4))) * (1 - np.eye(k))
    if rng.random() < 0.4:  # costs of one usual value
        matrix = np.where(rng.random((k, k)) < 0.2, matrix, 1.0) * (1 - np.eye(k))
    if (matrix == matrix[:, :1]).all():
        matrix[0, 1] += 1
    chosen = rng.permutation(classes)[: rng.integers(1, k)].tolist()
    by_class = {name: round(float(rng.uniform(-1, 3)), 2) for name in classes}
    actions = {"retest": round(float(rng.uniform(0, 3)), 2), "biopsy": by_class}
    prior = {name: round(float(rng.uniform(0.001, 0.9 / k)), 4) for name in chosen}
    return CostParams(
        matrix=matrix.tolist(),
        refer=round(float(rng.uniform(0, 2)), 2) if rng.random() < 0.6 else None,
        actions=actions if rng.random() < 0.5 else None,
        prior=prior if rng.random() < 0.6 else None,
    )


def policy_under(costs, what_if):
    """The policy with other costs, as `udc decide` fits it."""
    policy, classes = what_if.policy, what_if.policy.classes
    deployment = class_prior(costs, classes, policy.training_prior)
    unfamiliar = replace(policy.familiarity, unfamiliar=costs.unfamiliar)
    return replace(policy, class_costs=cost_matrix(costs, classes).tolist(), refer=costs.refer,
                   actions=action_costs(costs, classes), familiarity=unfamiliar,
                   deployment_prior=None if deployment is None else deployment.tolist())  # fmt: skip


COMPUTE = """of => {
  const { decided, measured, intervals } = compute(of);
  return JSON.stringify({ decided: [...decided], ...measured, intervals });
}"""


def computed(page, costs, classes, decision="min_expected_cost"):
    """What the page computes under these costs."""
    return json.loads(page.evaluate(COMPUTE, settings_of(costs, classes, decision)))


def rescored(policy, what_if, groups=None):
    """The images scored by Python's code from the rounded probabilities."""
    p = rounded_probabilities(what_if.probabilities)
    if policy.deployment_prior is not None:
        p = shift_prior(p, np.array(policy.training_prior), np.array(policy.deployment_prior))
    decided = policy.decide(p)
    if policy.refers_unfamiliar:
        decided = np.where(what_if.is_unfamiliar, len(policy.classes), decided)
    return Scored(what_if.targets, decided, p / p.sum(axis=1, keepdims=True), policy.outcome_costs,
                  policy.weights(what_if.targets), groups, policy.action_names)  # fmt: skip


@needs_browser
@pytest.mark.parametrize("classes", [CLASSES[1:3], CLASSES, [f"k{i}" for i in range(23)]], ids=len)
def test_random_settings_give_the_decisions_costs_and_rates_of_python(rng, opened, classes):
    _, what_if, content = evaluated(rng, CostParams(), classes)
    page = opened(content)
    for _ in range(20):
        costs = random_costs(rng, classes)
        policy = policy_under(costs, what_if)
        scored, result = rescored(policy, what_if), computed(page, costs, classes)
        assert result["decided"] == scored.decided.tolist()
        metrics = split_metrics(scored, 15, list(enumerate(classes)))
        assert result["meanCost"] == pytest.approx(metrics["mean_cost"], rel=1e-12)
        assert result["constantCost"] == pytest.approx(metrics["constant_mean_cost"], rel=1e-12)
        assert result["recalls"] == pytest.approx([metrics[recall_metric(name)] for name in classes])
        assert result["rates"] == pytest.approx([metrics[rate_metric(name)] for name in policy.action_names])


@needs_browser
def test_costs_are_written_as_in_the_verdict(rng, opened):
    page = opened(evaluated(rng, CostParams())[2])
    values = [0.0, 0.0074074, 2.4889, 123.456, 999.4, 999.7, -999.7, 1234567.0, -0.5]
    assert page.evaluate("values => values.map(costText)", values) == [cost_text(value) for value in values]


@needs_browser
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_evaluate(rng, opened, grouped):
    """Those of shares to all digits; those of means have other random draws."""
    groups = rng.integers(0, 80, 240) if grouped else None
    _, what_if, content = evaluated(rng, CostParams(), groups=groups)
    page = opened(content)
    for prior in (None, {"tumour": 0.02}):
        costs = CostParams(entries=[{"true": "tumour", "predicted": "benign", "cost": 30}], refer=0.6, prior=prior)
        scored, result = rescored(policy_under(costs, what_if), what_if, groups), computed(page, costs, CLASSES)
        metrics = split_metrics(scored, 15)
        expected = metric_intervals(scored, metrics, 15, [], 20_000, 0.95)
        ends_by_name = {"mean_cost": result["intervals"]["meanCost"], "referral_rate": result["intervals"]["rates"][0]}
        for name, ends in ends_by_name.items():
            low, high = expected[name]
            assert ends == pytest.approx([low, high], abs=0.03 * (high - low))
        low, high = recall_intervals(scored, 0.95)
        recalls = np.array(result["intervals"]["recalls"])
        tolerance = 0.03 * (high - low).max() if grouped else 1e-9
        assert recalls == pytest.approx(np.column_stack([low, high]), abs=tolerance)


@needs_browser
def test_shares_have_the_interval_of_clopper_and_pearson(rng, opened):
    page = opened(evaluated(rng, CostParams())[2])
    for hits, size in ((0, 1), (1, 1), (0, 40), (3, 40), (39, 40), (40, 40), (5, 10_000), (9_990, 10_000)):
        low, high = page.evaluate("([hits, size]) => shareInterval(hits, size, 0.9)", [hits, size])
        assert low == pytest.approx(float(clopper_pearson_bound(hits, size, 0.95)), abs=1e-9)
        assert high == pytest.approx(1 - float(clopper_pearson_bound(size - hits, size, 0.95)), abs=1e-9)


@needs_browser
@pytest.mark.parametrize("recorded", [
    {},
    {"decision": "argmax"},
    {"decision": "recall_floor", "recall_floor": FLOOR},
    {"decision": "recall_floor", "recall_floor": [FLOOR, FLOOR_OF_TWO]},
    {"decision": "cost_ceiling", "cost_ceiling": CEILING},
    {"unfamiliar": True},
], ids=["least", "argmax", "floor", "floors", "ceiling", "unfamiliar"])  # fmt: skip
def test_the_recorded_costs_give_the_recorded_result(rng, opened, recorded):
    is_of_training = "cost_ceiling" in recorded or isinstance(recorded.get("recall_floor"), list)
    costs = CostParams(refer=0.4, unfamiliar="refer" if recorded.get("unfamiliar") else "warn",
                       prior=None if is_of_training else {"tumour": 0.1})  # fmt: skip
    scored, what_if, content = evaluated(rng, costs, **recorded)
    page = opened(content)
    assert what_if.policy.decision == page.input_value("#decision")
    assert "Rounding changes no recorded decision." in page.inner_text("#what-if-rounding")
    result = computed(page, costs, CLASSES, what_if.policy.decision)
    assert result["decided"] == scored.decided.tolist() == rescored(what_if.policy, what_if).decided.tolist()
    assert result["meanCost"] == pytest.approx(split_metrics(scored, 15)["mean_cost"], rel=1e-12)
    for row in page.locator("#measures tr, #recalls tr").all():
        before, now = row.locator("td").all_inner_texts()
        assert before == now
    page.get_by_role("button", name="Give the lines").click()
    assert page.inner_text("#lines-text") == "Nothing differs from the recorded parameters."


@needs_browser
@pytest.mark.parametrize(
    ("decision", "offered"),
    [
        ("argmax", {"argmax"}),
        ("min_expected_cost", {"min_expected_cost"}),
        ("recall_floor", {"min_expected_cost", "recall_floor"}),
    ],
)
def test_argmax_and_the_others_are_no_choice_if_training_changed_frequencies(rng, opened, decision, offered):
    """They decide from different probabilities then, see `Policy.logit_offset`."""
    scored, what_if, content = evaluated(rng, CostParams(prior={"tumour": 0.1}), learned_prior=[0.25] * 4,
                                         decision=decision,
                                         recall_floor=FLOOR if decision == "recall_floor" else None)  # fmt: skip
    page = opened(content)
    assert set(page.locator("#decision option").evaluate_all("all => all.map(each => each.value)")) == offered
    assert "the page has those of the recorded decision only" in page.inner_text("#decision-text")
    assert computed(page, what_if.costs, CLASSES, decision)["decided"] == scored.decided.tolist()


@needs_browser
def test_a_sample_is_weighted_and_the_first_line_says_so(rng, opened):
    classes = CLASSES[1:3]
    scored, what_if, content = evaluated(rng, CostParams(), classes, images=3000, most_values=2 * 1500)
    page = opened(content)
    assert page.inner_text("#what-if-sample").startswith("These are 1,500 of the 3,000 test images, sampled by class")
    costs = CostParams(entries=[{"true": "benign", "predicted": "tumour", "cost": 4}])
    decided = policy_under(costs, what_if).decide(scored.probabilities)
    paid = cost_matrix(costs, classes)[scored.targets, decided]
    result = computed(page, costs, classes)
    low, high = result["intervals"]["meanCost"]
    assert low < paid.mean() < high
    assert result["meanCost"] == pytest.approx(paid.mean(), rel=0.1)


@needs_browser
def test_costs_in_words_lead_to_the_lines_of_params_yaml(rng, opened):
    """Missing a tumour is thirty times worse than a false alarm; a second opinion costs a quarter of one."""
    _, what_if, content = evaluated(rng, CostParams(), unfamiliar=False)
    page = opened(content)
    assert page.is_disabled("#times")  # until a class is chosen
    page.select_option("#missed", label="tumour")
    page.fill("#times", "30")
    page.check("#can-refer")
    page.fill("#refer", "2")
    assert "No image is referred" in page.inner_text("#refer-text")
    page.fill("#refer", "0.25")
    assert page.inner_text("#refer-text").strip() == "That is 0.25 times the cheapest mistake, which costs 1."
    page.fill("#action-name", "no: biopsy")
    page.fill("#action-cost", "0.75")
    page.get_by_role("button", name="Add the action").click()
    page.select_option("#frequent", label="true")
    page.fill("#share", "1.5")
    page.get_by_role("button", name="Give the lines").click()
    costs = CostParams(**read_yaml(page.input_value("#lines"))["costs"])
    matrix = cost_matrix(costs, CLASSES)
    assert matrix[2].tolist() == [30, 30, 0, 30]
    assert matrix[[0, 1, 3]].tolist() == (1 - np.eye(4))[[0, 1, 3]].tolist()
    assert (costs.refer, costs.actions, costs.prior) == (0.25, {"no: biopsy": 0.75}, {"true": 0.015})
    shown = page.evaluate("JSON.stringify([...decide(model, settings)])")
    assert json.loads(shown) == rescored(policy_under(costs, what_if), what_if).decided.tolist()
    page.get_by_role("button", name="All as recorded").click()
    assert page.evaluate("isSame(settings, recorded)")


@needs_browser
def test_wrong_settings_are_refused_with_the_reason(rng, opened):
    page = opened(evaluated(rng, CostParams())[2])
    problem = page.locator("#what-if-problem")
    page.get_by_label("Cost of benign if tumour is true").fill("-3")
    problem.get_by_text("Deciding benign for tumour costs less than the right decision; is a sign wrong?").wait_for()
    page.get_by_label("Cost of benign if tumour is true").fill("")
    problem.get_by_text("is not a number").wait_for()
    page.get_by_label("Cost of benign if tumour is true").fill("3")
    problem.wait_for(state="hidden")
    page.fill("#share", "100")
    problem.get_by_text("A share must be above 0% and below 100%.").wait_for()


@needs_browser
@pytest.mark.parametrize("recorded", [{"recall_floor": FLOOR}, {"recall_floor": [FLOOR, FLOOR_OF_TWO]},
                                      {"cost_ceiling": CEILING}], ids=["floor", "floors", "ceiling"])  # fmt: skip
def test_what_evaluate_refuses_with_a_guarantee_is_a_problem(rng, opened, recorded):
    """And nothing else is."""
    (decision,) = recorded
    page = opened(evaluated(rng, CostParams(refer=0.4), decision=decision, **recorded)[2])
    stated = [recorded[decision]] if isinstance(recorded[decision], dict) else recorded[decision]
    stated = [{k: v for k, v in each.items() if k not in ("surcharge", "threshold")} for each in stated]
    evaluate = EvaluateParams(
        decision=decision, **{decision: stated[0] if isinstance(recorded[decision], dict) else stated}
    )
    for changed in ({}, {"unfamiliar": "refer"}, {"prior": {"tumour": 0.2}}, {"refer": None}):
        costs = CostParams(**({"refer": 0.4} | changed))
        settings = settings_of(costs, CLASSES, decision)
        problem = page.evaluate("of => { settings = of; return problemOf(); }", settings)
        assert (problem is None) == (policy_problems(evaluate, costs, CLASSES) == []), problem


@needs_browser
def test_the_cost_of_an_action_has_two_fields_that_agree(rng, opened):
    page = opened(evaluated(rng, CostParams(actions={"retest": 1.5, "biopsy": 0.9}))[2])
    field, cell = page.get_by_label("Cost of retest for every"), page.get_by_label("Cost of retest if tumour is true")
    field.fill("2")
    page.get_by_role("button", name="All as recorded").click()
    assert field.input_value() == "1.5"
    field.fill("7")
    assert page.evaluate("settings.actions[0][1]") == [7] * 4
    assert cell.input_value() == "7"
    cell.fill("3")
    assert field.input_value() == ""
    cell.fill("")  # a problem, after which the fields still are those of the decisions
    page.get_by_role("button", name="Remove retest").click()
    page.get_by_label("Cost of biopsy for every").fill("0.2")
    page.get_by_label("Cost of biopsy if tumour is true").fill("0.3")
    assert page.evaluate("settings.actions") == [["biopsy", [0.2, 0.2, 0.3, 0.2]]]


@needs_browser
def test_the_keyboard_is_enough(rng, opened):
    page = opened(evaluated(rng, CostParams())[2])
    page.focus("#missed")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("12")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "times-slider"
    before = page.evaluate("timesOf(missed())")
    page.keyboard.press("PageUp")
    assert page.evaluate("timesOf(missed())") > before == 12


@needs_browser
def test_names_are_text_in_the_page(rng, opened):
    names = ["</script><script>document.title='x'</script>", "<img src=x onerror=\"document.title='x'\">", "__proto__"]
    costs = CostParams(refer=0.3, actions={"<b>act</b>": 0.2}, prior={"__proto__": 0.2})
    scored, _, content = evaluated(rng, costs, names)
    page = opened(content)
    assert page.title() == "t"
    assert page.locator("main b, main img").count() == 0
    assert page.evaluate("[...compute(recorded).decided]") == scored.decided.tolist()
    assert names[1] in html.unescape(page.inner_text("#recalls"))


def test_many_classes_have_no_page(rng):
    classes = [str(i) for i in range(301)]
    policy = Policy(classes, (1 - np.eye(301)).tolist())
    assert WhatIf.of(policy, CostParams(), None, np.zeros((0, 301))) is None


def test_scripts_are_short_enough_to_read_and_load_nothing(rng):
    content = evaluated(rng, CostParams())[2]
    script = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)[0]
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(|localStorage|eval\(", script)
