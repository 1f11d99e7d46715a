"""The stack's own servers: without their programs a test is skipped, unless ``ACESTEP_STACK_BIN`` promises them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import REASON, SERVERS
from tests.stack.real.network import Network, network
from tests.stack.real.programs import COLLECTOR, FOLDER, JAEGER, PROMETHEUS, Missing, program

# Grafana exists as an image only: its tests are for a stack that docker compose has started.
collect_ignore = [] if "ACESTEP_STACK_RUNNING" in os.environ else ["test_grafana.py"]


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """All three are there, or a stack is running that needs none of them."""
    if "ACESTEP_STACK_RUNNING" in os.environ:
        return
    with skipped_without():
        for name in (COLLECTOR, JAEGER, PROMETHEUS):
            program(name)


@pytest.fixture(scope="module")
def hosts(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network for the servers of one file."""
    folder = tmp_path_factory.mktemp("hosts")
    with skipped_without():
        made = network(folder)
        found = made.__enter__()
    try:
        yield found
    finally:
        made.__exit__(None, None, None)


class skipped_without:  # noqa: N801 - reads as a statement
    """Skips, with the reason, when something is missing; fails where the programs were promised."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Missing) and FOLDER not in os.environ:
            pytest.skip(f"{REASON}{SERVERS} ({error})")


def certificate(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """Certificate and key of a server with these names, and the authority that signed them."""
    import trustme

    authority = trustme.CA()
    server = authority.issue_cert(*names)
    files = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    folder.mkdir(parents=True, exist_ok=True)
    server.cert_chain_pems[0].write_to_path(str(files[0]))
    server.private_key_pem.write_to_path(str(files[1]))
    authority.cert_pem.write_to_path(str(files[2]))
    return files
