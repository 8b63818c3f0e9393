"""Which recipe is recommended for which images, and why."""

from collections import Counter

import pytest

from udc_model.cli import main
from udc_model.data.inspection import Headers, Inspection
from udc_model.project.recipe import find_recipe, recipes
from udc_model.project.recommendation import recommend


def _images(side=144, counts=(403, 137), kind=("JPEG", "RGB")):
    sizes = [(side + 50, side)] * sum(counts)
    return Inspection(
        [], {f"class {k}": count for k, count in enumerate(counts)}, Headers(Counter({kind: len(sizes)}), sizes)
    )


@pytest.mark.parametrize(("images", "name", "settings"), [
    (_images(), "photographs", {}),
    (_images(counts=(403, 100)), "photographs", {}),
    (_images(counts=(403, 99)), "few-images", {}),
    (_images(side=50), "photographs", {"data.image_size": 48}),
    (_images(side=9), "photographs", {"data.image_size": 16}),
    (_images(side=77), "photographs", {}),
    (_images(side=76), "photographs", {"data.image_size": 72}),
    (_images(side=28, kind=("PNG", "L")), "small-grey", {}),
    (_images(side=24, kind=("PNG", "L")), "small-grey", {"data.image_size": 24}),
    (_images(side=64, kind=("PNG", "I;16")), "small-grey", {}),
    (_images(side=65, kind=("PNG", "L")), "photographs", {"data.image_size": 64, "model.resnet.num_channels": 1}),
    (_images(kind=("TIFF", "RGB")), "microscopy", {}),
    (_images(kind=None), "photographs", {}),
    (Inspection([], {"a": 300, "b": 300}, Headers(Counter({None: 600}), [])), "photographs", {}),
])  # fmt: skip
def test_recipe_and_settings_follow_from_the_images(images, name, settings):
    recommendation = recommend(images, has_gpu=True)
    assert (recommendation.recipe.name, recommendation.settings) == (name, settings)
    assert len(recommendation.reasons) >= 1 + len(settings)


def test_a_chosen_recipe_gets_the_settings_too():
    recommendation = recommend(_images(side=40), "few-images", has_gpu=True)
    assert (recommendation.recipe.name, recommendation.settings) == ("few-images", {"data.image_size": 40})
    assert recommend(_images(side=40), "frozen-features", has_gpu=True).settings == {}  # its weights are of 224 pixels


def test_the_hardware_and_other_recipes_are_named():
    def text(**kwargs):
        return recommend(_images(**{"counts": (603, 137)} | kwargs), has_gpu=False).to_text()

    many = (10_000, 5_000)
    assert "no GPU was found" in text(counts=many)
    assert "400 epochs may take an hour or more" in text(counts=many)
    assert "no GPU" not in text(counts=(10_000, 4_999))
    assert "no GPU" not in recommend(_images(counts=many), has_gpu=True).to_text()
    assert "photographs-pretrained and frozen-features start from weights to download" in text(side=200)
    assert "frozen-features starts from weights to download" in text(counts=(50, 50))
    assert text().startswith("recipe: photographs\n  740 colour images with a median short side of 144 px; the rarest")


def test_nothing_is_recommended_that_needs_a_download():
    all_images = [_images(side, counts, kind) for side in (28, 300) for counts in ((500, 500), (20, 20))
                  for kind in (("PNG", "L"), ("JPEG", "RGB"), ("TIFF", "L"))]  # fmt: skip
    names = {recommend(images, has_gpu=True).recipe.name for images in all_images}
    assert not any("model.weights" in find_recipe(name).values for name in names)
    assert names < set(recipes())


def test_inspect_recommends(shapes_folder, capsys):
    assert main(["inspect", str(shapes_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "60 images of 3 classes: bar 20, dot 20, stripe 20"
    position = lines.index("recipe: few-images")
    assert lines[position + 1 : position + 3] == [
        "  the rarest of 3 classes has 20 image(s)",
        "  data.image_size 24 instead of 96: the images have a median short side of 24 px",
    ]
