"""``make faults``: runs all cases on two processes and prints a table by kind. A second call resumes the first.

``python tests/faults/run.py KIND`` runs one kind; ``--again`` repeats the cases that fell; ``--seed`` gives others.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench import Bench
from kinds import KINDS

RESULTS = Path(".udc/faults.jsonl")


def work(part, parts, kinds, seed, ended):
    """Run the cases of one part; appends each result to the file of results."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        rng = random.Random(seed)
        cases = [(kind, name, case) for kind in KINDS for name, case in KINDS[kind](bench, rng)]
        for number, (kind, name, case) in enumerate(cases):
            if number % parts != part or kind not in kinds or (kind, name) in ended:
                continue
            started = time.monotonic()
            fault = case()
            line = json.dumps({"kind": kind, "case": name, "fault": fault, "seconds": time.monotonic() - started})
            with RESULTS.open("a") as out:
                out.write(line + "\n")
            if fault:
                print(f"FELL {kind}: {name}: {fault}", flush=True)  # noqa: T201
        bench.close()


def main():
    """Run the cases that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--again", action="store_true", help="repeat the cases that fell")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    results = _read_results()
    if options.again:
        results = {key: result for key, result in results.items() if not result["fault"]}
    with ProcessPoolExecutor(2) as executor:
        for done in [executor.submit(work, k, 2, options.kinds, options.seed, set(results)) for k in range(2)]:
            done.result()
    results = _read_results()
    print(f"{'kind':<12}{'cases':>8}{'survived':>10}{'fell':>6}")  # noqa: T201
    for kind in [*KINDS, "all"]:
        faults = [result["fault"] for key, result in results.items() if kind in (key[0], "all")]
        fell = sum(fault is not None for fault in faults)
        print(f"{kind:<12}{len(faults):>8}{len(faults) - fell:>10}{fell:>6}")  # noqa: T201
    return int(any(result["fault"] for result in results.values()))


def _read_results():
    """The last result of each case."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {(result["kind"], result["case"]): result for result in map(json.loads, lines)}


if __name__ == "__main__":
    sys.exit(main())
