"""The layouts on the page "Your data" are recognised as the page says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/how-to/your-data.md"
BLOCK = re.compile(r"^<!-- (files|file|udc inspect) (\S+) -->\n```text\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _paths(line):
    """``ant/1.jpg … 3.jpg`` stands for ``ant/1.jpg``, ``ant/2.jpg`` and ``ant/3.jpg``."""
    match = re.fullmatch(r"(.*?)(\d+)\.jpg … (\d+)\.jpg", line)
    if match is None:
        return [line]
    return [f"{match[1]}{k}.jpg" for k in range(int(match[2]), int(match[3]) + 1)]


def test_examples_of_the_page(tmp_path, write_images, inspected):
    n_examples = 0
    for kind, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        root = tmp_path / str(n_examples) / name
        if kind == "files":
            paths = [path for line in text.splitlines() for path in _paths(line)]
            write_images(root, *(path for path in paths if path.endswith(".jpg")))
            for path in paths:
                if not (root / path).exists():
                    (root / path).write_text("text")
        elif kind == "file":
            (tmp_path / str(n_examples) / name).write_text(text)
        else:
            status, printed = inspected(root)
            assert status == 0, printed
            assert printed.startswith(text), name
            n_examples += 1
    assert n_examples == 5
