"""``python -m acestep_otel``."""

import sys

from acestep_otel.cli import main

sys.exit(main())
