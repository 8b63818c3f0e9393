"""Figures drawn before: copied if nothing that determines them changed, drawn again otherwise."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from udc_model.evaluation import figures as figures_module
from udc_model.evaluation.figures import FigureCache, FigureProcess, drawing_code


@pytest.fixture
def plot():
    """A plot that counts how often it is drawn."""

    def draw(path, *inputs):
        draw.count += 1
        Image.new("L", (32, 32), draw.count).save(path)

    draw.count = 0
    return draw


def _number(path):
    """How often the plot was drawn before the figure."""
    with Image.open(path) as image:
        return image.getpixel((0, 0))


def test_a_figure_is_drawn_again_only_if_an_input_changes(tmp_path, plot):
    figures, path = FigureCache(tmp_path / "cache"), tmp_path / "figure.png"
    table = pd.DataFrame({"x": [1.0, 2.0], "class": ["a", "b"]})
    inputs = (table, np.eye(2), [np.ones(3)], ["caption"], "title", None)
    for _ in range(2):
        figures.draw(path, plot, *inputs)
    assert (plot.count, _number(path)) == (1, 1)
    changes = (
        (table.assign(x=[1.0, 2.0 + 1e-15]), *inputs[1:]),
        (table, np.eye(2) * 2, *inputs[2:]),
        (table, np.eye(2), [np.ones(3, np.float32)], *inputs[3:]),
        (*inputs[:3], ["other"], "title", None),
        (*inputs[:4], "title|", None),
    )
    for number, changed in enumerate(changes, 2):
        figures.draw(path, plot, *changed)
        assert plot.count == number
    figures.draw(path, plot, *inputs)
    assert _number(path) == 1


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, plot):
    (tmp_path / "file").write_text("")
    figures = FigureCache(tmp_path / "file" / "cache")
    for number in (1, 2):
        figures.draw(tmp_path / "figure.png", plot, "input")
        assert plot.count == number


def test_only_the_last_hundred_figures_stay(tmp_path, plot):
    figures = FigureCache(tmp_path / "cache")
    for number in range(105):
        figures.draw(tmp_path / "figure.png", plot, number)
    assert len(list((tmp_path / "cache").iterdir())) == 100


def test_changed_drawing_code_draws_again(tmp_path, plot, monkeypatch):
    figures, path = FigureCache(tmp_path / "cache"), tmp_path / "figure.png"
    code = tmp_path / "plots.py"
    code.write_text("a = 1")
    monkeypatch.setattr(figures_module, "drawing_code", lambda: [code])
    for text, count in (("a = 1", 1), ("a = 2", 2), ("a = 1", 2)):
        code.write_text(text)
        figures_module._code_digest.cache_clear()
        figures.draw(path, plot, "input")
        assert plot.count == count
    figures_module._code_digest.cache_clear()


def test_a_figure_with_boxes_is_drawn_again_until_a_font_is_installed(tmp_path, monkeypatch, caplog):
    """U+E000 is in a font that Matplotlib brings, but not in its usual one."""
    from udc_model.evaluation import plot_fonts, plot_style

    def plot(path, name):
        plot_style.save(path, (2, 1), lambda figure: figure.text(0.1, 0.5, name))

    def drawn(name):
        figures.draw(tmp_path / "figure.png", plot, name)
        return (tmp_path / "figure.png").read_bytes()

    figures = FigureCache(tmp_path / "cache")
    usual, installed = drawn("plain"), ("STIXNonUnicode",)
    assert caplog.messages == []
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(plot_fonts, "_FALLBACKS", ())
    for cached in (plot_fonts.fallback_fonts, plot_fonts._note):
        cached.cache_clear()
    boxes = drawn("a \ue000")
    assert drawn("a \ue000") == boxes
    (note,) = caplog.messages
    assert note.startswith("note: plots show characters of names as boxes (\ue000), ")
    monkeypatch.setattr(plot_fonts, "_FALLBACKS", installed)
    plot_fonts.fallback_fonts.cache_clear()
    assert drawn("a \ue000") != boxes
    assert drawn("plain") == usual
    assert len(caplog.messages) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2
    plot_fonts.fallback_fonts.cache_clear()


def test_the_note_of_the_process_that_draws_is_given(tmp_path, caplog):
    folder = tmp_path / "evaluation/validation"
    folder.mkdir(parents=True)
    names = ["\U0010fffd", "b"]  # of private use: no font has it
    confusion = {"counts": [[3, 1], [0, 4]], "costs": [[0, 1], [0, 0]], "classes": names, "outcomes": names}
    (folder / "confusion_matrix.json").write_text(json.dumps(confusion))
    with FigureProcess(tmp_path / "prepared", tmp_path / "cache") as process:
        process.draw(folder, "classes")
        process.finish()
    (note,) = caplog.messages
    assert note.startswith("note: plots show characters of names as boxes")


def test_the_drawing_code_is_every_module_that_uses_matplotlib():
    folder = Path(figures_module.__file__).parent
    modules = [path for path in folder.glob("*.py") if re.search("^(import|from) matplotlib", path.read_text(), re.M)]
    assert len(modules) > 3
    assert set(modules) <= set(drawing_code())


@pytest.mark.parametrize("damage", [
    lambda contents: b"",
    lambda contents: contents[: len(contents) // 2],
    lambda contents: contents[: len(contents) // 2] + bytes([contents[len(contents) // 2] ^ 1])
    + contents[len(contents) // 2 + 1 :],
])  # fmt: skip
def test_a_damaged_stored_figure_is_drawn_again(tmp_path, plot, damage):
    figures, path = FigureCache(tmp_path / "cache"), tmp_path / "figure.png"
    figures.draw(path, plot, "input")
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(damage(stored.read_bytes()))
    for _ in range(2):
        figures.draw(path, plot, "input")
        assert (plot.count, _number(path), path.read_bytes()) == (2, 2, stored.read_bytes())
