"""Fuzz one reader: ``python -m tests.fuzz.run example -max_total_time=600 tests/fuzz/corpus/example``.

Options after the name are libFuzzer's. A crash is written to the working directory; it becomes a file of the corpus.
"""

from __future__ import annotations

import sys

import atheris

# The readers, and not PyTorch: what is instrumented says where the fuzzer has been.
with atheris.instrument_imports(include=["acestep.documents", "acestep.audio", "acestep_otel", "json"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
