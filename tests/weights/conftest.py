from pathlib import Path

import pytest

from tests.weights.miniature import copy_golden


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A checkpoint folder of one's own in the official layout."""
    return copy_golden(tmp_path / "checkpoints")
