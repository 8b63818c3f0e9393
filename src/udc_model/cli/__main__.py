"""``python -m udc_model.cli``: the ``udc`` command."""

import sys

from udc_model.cli import main

sys.exit(main())
