"""A child process and its parent: lines in both directions, and no child without a parent."""

from __future__ import annotations

import os
import subprocess
import sys

CHILD = """
from acestep_otel.profiler.children.parent import Parent
parent = Parent()
print("a library prints")
parent.say("heard " + parent.hear().strip())
parent.say("heard " + parent.hear().strip())
parent.hear()
"""


def test_a_child_answers_on_a_separate_stream_and_ends_with_its_parent() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for word in ("one", "two"):
            child.stdin.write(word + "\n")
            child.stdin.flush()
            assert child.stdout.readline() == f"heard {word}\n"
        # It waits for more, and there is no more to come.
        rest, errors = child.communicate(timeout=60)
    assert (child.returncode, rest, errors) == (1, "", "a library prints\n")
