"""Writes plots.html, the page of `dvc plots` with Vega in it, so that plots are shown without a network.

Usage: npm pack vega@5.33.1 vega-lite@5.23.0 vega-embed@6.29.0 && python .dvc/make_plots_page.py *.tgz
"""

import sys
import tarfile
from pathlib import Path

NOTICE = """\
Page of `dvc plots`, made by .dvc/make_plots_page.py. It contains these libraries, unchanged:
{names}
Vega, Vega-Lite, Vega-Embed: Copyright (c) 2015-2025 University of Washington Interactive Data Lab, and contributors.
All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:
1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote
   products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

Within them: d3 and topojson (ISC licence and BSD 3-Clause, Copyright 2010-2023 Mike Bostock), semver (ISC licence,
Copyright Isaac Z. Schlueter and contributors), fast-json-patch (MIT licence, Copyright (c) 2013, 2014, 2020 Joachim
Wester), json-stringify-pretty-compact (MIT licence, Copyright (c) 2014-2025 Simon Lydell), tslib (0BSD, Copyright (c)
Microsoft Corporation).
"""
PAGE = """\
<!doctype html>
<html lang="en">
<!--
{notice}-->
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{{refresh_tag}}
<title>Plots of experiments</title>
{scripts}
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem; }}
main {{ display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }}
main > div {{ max-width: 100%; overflow-x: auto; }}
</style>
</head>
<body>
<main>
{{plot_divs}}
</main>
</body>
</html>
"""


def main() -> None:
    """Write plots.html beside this file from the packages named on the command line."""
    scripts = []
    for library in ("vega", "vega-lite", "vega-embed"):
        (package,) = (name for name in sys.argv[1:] if Path(name).name.rpartition("-")[0] == library)
        with tarfile.open(package) as archive:
            code = archive.extractfile(f"package/build/{library}.min.js")
            assert code is not None
            text = code.read().decode().partition("\n//# sourceMappingURL")[0]
        assert "</script" not in text
        scripts.append(f"<script>\n{text}\n</script>")
    names = "\n".join(f"  {Path(name).name.removesuffix('.tgz')} (BSD 3-Clause)" for name in sys.argv[1:])
    page = PAGE.format(notice=NOTICE.format(names=names), scripts="\n".join(scripts))
    (Path(__file__).parent / "plots.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
