"""The benchmark guide's command: ``python profile_inference.py --help``."""

import sys

from acestep_otel.profiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
