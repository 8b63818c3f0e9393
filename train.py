"""The one-file way in: ``python train.py --config config/convnext_example.json`` runs all three stages."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from udc_model.config.json_config import load_json_config
from udc_model.files import Workspace, check_outputs
from udc_model.program import exit_status

logger = logging.getLogger("udc_model.train")


def run(config: Path) -> None:
    """Prepare, train and evaluate as the configuration says, into its ``output_dir``."""
    loaded = load_json_config(config)
    workspace = Workspace(loaded.output_dir)
    check_outputs(workspace)
    from udc_model.stages.evaluate import evaluate
    from udc_model.stages.prepare import prepare
    from udc_model.stages.resolve import resolve_workspace
    from udc_model.stages.train import train

    prepare(loaded.params, workspace)
    resolved = resolve_workspace(loaded.params, workspace)
    train(resolved.train, workspace, resolved.evaluate.costs)
    evaluate(resolved.evaluate, workspace)
    logger.info("results: %s", workspace.root)


def main() -> int:
    """Read the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="JSON configuration")
    options = parser.parse_args()
    return exit_status(lambda: run(options.config))


if __name__ == "__main__":
    sys.exit(main())
