"""Programs that measure what the documentation claims: ``README.md`` has a list."""

from typing import Final

from acestep.import_noise import quiet_imports

_QUIET: Final = quiet_imports()
# For the whole process: every program imports the engine's libraries at its top.
_QUIET.__enter__()
