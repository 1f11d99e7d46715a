"""Bounds on the sizes in a configuration, checked before anything is built: they determine memory and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from acestep.errors import CheckpointInvalid
from acestep.weights.layout import read_json

MOST_LAYERS: Final = 256
"""The largest released model has 36 in a stack."""
LARGEST_WIDTH: Final = 2**20
"""Channels, features, heads and the like; the largest released one has 12,288."""
LARGEST_COUNT: Final = 2**31 - 1
"""Tokens, positions, hertz: numbers for which the engine allocates nothing."""
MOST_LEVELS: Final = 2**20
"""Entries of a quantizer's codebook: the product of its levels. The released ones have 64,000."""
MOST_ENTRIES: Final = 4_096
"""Entries of a list, such as the kinds of the layers."""
MOST_FRAMES: Final = 60_000
"""Latent frames of the encoded silence: forty minutes. The released ones have ten."""

_LAYERS: Final = ("layers", "blocks", "quantizers", "depth")
_COUNTS: Final = ("vocab", "position", "token", "rate", "seed", "theta", "window")
_LEVELS: Final = "levels"


def read_configuration(path: Path) -> dict[str, Any]:
    """The configuration of a model, with sizes that a model can have.

    Raises:
        CheckpointInvalid: it cannot be read, or a size is out of bounds.
    """
    config = read_json(path)
    require_plausible(config, path)
    return config


def require_plausible(config: Mapping[str, Any], path: Path) -> None:
    """Reject sizes that no model has.

    Args:
        config: of one model, as its file has it.
        path: of the file, for the message.

    Raises:
        CheckpointInvalid: the first value that is out of bounds.
    """
    for name, value in config.items():
        _require(name, value, path)


def _require(name: str, value: Any, path: Path) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        limit = _limit(name)
        if not math.isfinite(value) or abs(value) > limit:
            raise CheckpointInvalid(f"{path}: {name} is {value:.6g}, and {limit} is the maximum that is supported")
    elif isinstance(value, Mapping):
        require_plausible(value, path)
    elif isinstance(value, list):
        if len(value) > MOST_ENTRIES:
            raise CheckpointInvalid(f"{path}: {name} has {len(value):,} entries")
        for item in value:
            _require(name, item, path)
        if _LEVELS in name and math.prod(item for item in value if isinstance(item, int)) > MOST_LEVELS:
            raise CheckpointInvalid(f"{path}: {name} requires a codebook of more than {MOST_LEVELS:,} entries")


def _limit(name: str) -> int:
    if any(word in name for word in _COUNTS):
        return LARGEST_COUNT
    return MOST_LAYERS if any(word in name for word in _LAYERS) else LARGEST_WIDTH
