"""The sentences for the person who decides: a comparison is stated only where its interval excludes equality."""

import pytest

from udc_model.evaluation.verdict import cost_text, counts_text, verdict

NAN = float("nan")


def _verdict(normalised, saved=(0.1, 0.05, 0.2), is_argmax=False):
    metrics = {"mean_cost": (0.0074074, 0.0, 0.0444), "normalised_cost": normalised,
               "constant_mean_cost": (2.4889, 2, 3), "cost_saved": saved}  # fmt: skip
    return verdict(metrics, 270, 269, {}, "always 4", is_argmax, "95%")


@pytest.mark.parametrize(("arguments", "text"), [
    ((270, 270, {}), "270 of 270 test images are decided right; no mistake"),
    ((270, 269, {"refer": 0}), "269 of 270 test images are decided right; one mistake"),
    ((30_000, 27_000, {"refer": 1_500}),
     "27,000 of 30,000 test images are decided right; 1,500 mistakes; 1,500 (5.0%) are referred to a person"),
    ((200, 190, {"refer": 0, "biopsy": 9, "retake": 1}),
     "190 of 200 test images are decided right; no mistake; 9 (4.5%) are decided biopsy; 1 (0.5%) are decided retake"),
])  # fmt: skip
def test_counts(arguments, text):
    assert counts_text(*arguments) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0"), (0.0074074, "0.00741"), (2.4889, "2.49"), (123.456, "123"), (1234567.0, "1,234,567"), (NAN, "–"),
    (-0.5, "-0.5"), (999.4, "999"), (999.7, "1,000"), (-999.7, "-1,000"), (0.0000123, "1.23e-05"),
])  # fmt: skip
def test_costs(value, text):
    assert cost_text(value) == text


def test_a_useful_result():
    result = _verdict((0.003, 0.0, 0.02))
    assert result.is_useful
    assert result.warning == ""
    assert result.cost == ("Cost 0.00741 per image, in the unit of the cost matrix (95% interval 0 to 0.0444), against "
                           "2.49 for always 4 (0.30% of that)")  # fmt: skip
    assert result.comparisons == (
        "Cheaper than always 4: shown at the 95% level.",
        "Cheaper by 0.1 than deciding for the most probable class (argmax): shown at the 95% level.",
    )


@pytest.mark.parametrize(("normalised", "is_useful", "warning"), [
    ((0.9, 0.7, 1.0), None,
     "Not shown to be better than always 4, the best decision without a model: do not rely on it."),
    ((1.5, 1.2, 1.9), False, "Worse than always 4, the best decision without a model: do not use this model."),
    ((NAN, NAN, NAN), None, "Always 4 costs nothing, so these costs need no model."),
])  # fmt: skip
def test_a_worthless_result_is_called_one(normalised, is_useful, warning):
    result = _verdict(normalised)
    assert (result.is_useful, result.warning) == (is_useful, warning)
    assert not any(sentence.startswith("Cheaper than always") for sentence in result.comparisons)


@pytest.mark.parametrize(("saved", "start"), [
    ((0.0, 0.0, 0.0), "Same decisions, or of the same cost, as deciding"),
    ((0.0, -0.1, 0.1), "No difference in cost to deciding for the most probable class (argmax) is shown (95% interval"),
    ((0.1, 0.0, 0.2), "No difference in cost"),
    ((-0.2, -0.3, -0.1), "Costlier by 0.2 than deciding"),
])  # fmt: skip
def test_against_argmax(saved, start):
    assert _verdict((0.1, 0.0, 0.2), saved).comparisons[1].startswith(start)


def test_argmax_is_not_compared_with_itself():
    assert len(_verdict((0.1, 0.0, 0.2), is_argmax=True).comparisons) == 1
