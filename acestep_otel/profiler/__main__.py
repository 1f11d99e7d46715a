"""``python -m acestep_otel.profiler``."""

import sys

from acestep_otel.profiler.cli import main

sys.exit(main())
