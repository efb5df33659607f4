"""``python -m exporter`` is ``automation-exporter``."""

import sys

from exporter.cli import main

sys.exit(main())
