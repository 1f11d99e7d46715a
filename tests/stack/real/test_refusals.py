"""A collector with TLS and a token: the advice of ``doctor`` for each refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.stack.boards import ROOT
from tests.stack.real.conftest import certificate
from tests.stack.real.network import Network
from tests.stack.real.programs import COLLECTOR, program
from tests.stack.real.services import Running

TOKEN = "correct-horse"
PROTOCOLS = {"grpc": 4317, "http/protobuf": 4318}
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


@dataclass(frozen=True)
class Guarded:
    """A collector that asks for TLS and a token, one that speaks plain text, and files of theirs."""

    secure: Running
    plain: Running
    authority: Path
    stranger: Path


@pytest.fixture(scope="module")
def guarded(hosts: Network) -> Guarded:
    secure, plain = hosts.add("secure"), hosts.add("plain")
    cert, key, authority = certificate(hosts.folder / "tls", secure.address)
    *_, stranger = certificate(hosts.folder / "stranger", secure.address)
    tls = {"cert_file": "/tls/cert.pem", "key_file": "/tls/key.pem"}
    for host, guard in ((secure, {"tls": tls, "auth": {"authenticator": "bearertokenauth"}}), (plain, {})):
        configuration = {
            "extensions": {"health_check": {"endpoint": "0.0.0.0:13133"}, "bearertokenauth": {"token": TOKEN}},
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": "0.0.0.0:4317", **guard},
                        "http": {"endpoint": "0.0.0.0:4318", **guard},
                    }
                }
            },
            "exporters": {"debug": {}},
            "service": {
                "extensions": ["health_check", "bearertokenauth"],
                "pipelines": {
                    signal: {"receivers": ["otlp"], "exporters": ["debug"]} for signal in ("traces", "metrics")
                },
            },
        }
        file = hosts.folder / f"{host.name}.yaml"
        file.write_text(yaml.safe_dump(configuration), "utf-8")
        host.mount(file, "/etc/otelcol/config.yaml")
    for source, target in ((cert, "/tls/cert.pem"), (key, "/tls/key.pem")):
        secure.mount(source, target)
    running = [
        Running(host, program(COLLECTOR), ["--config=/etc/otelcol/config.yaml"], {}, f"http://{host.address}:13133/")
        for host in (secure, plain)
    ]
    for one in running:
        one.start()
    return Guarded(running[0], running[1], authority, stranger)


def doctor(
    endpoint: str, protocol: str, variables: Mapping[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: gRPC writes to the file descriptors."""
    kept = {name: value for name, value in os.environ.items() if name not in BUNDLES}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "acestep_otel.profiler", "doctor", "--wait", "0"),
            *("--otlp-endpoint", endpoint, "--otlp-protocol", protocol),
        ],
        cwd=ROOT,
        env={**kept, **{name: str(value) for name, value in (variables or {}).items()}},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def trusting(guarded: Guarded, token: str | None = TOKEN) -> dict[str, object]:
    header = {} if token is None else {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}"}
    return {"OTEL_EXPORTER_OTLP_CERTIFICATE": guarded.authority, **header}


@every_protocol
def test_who_trusts_and_has_the_token_gets_in(guarded: Guarded, protocol: str) -> None:
    done = doctor(guarded.secure.url(PROTOCOLS[protocol], "https"), protocol, trusting(guarded))
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout


@every_protocol
def test_a_certificate_that_is_not_trusted(guarded: Guarded, protocol: str) -> None:
    endpoint = guarded.secure.url(PROTOCOLS[protocol], "https")
    for variables in ({}, {"OTEL_EXPORTER_OTLP_CERTIFICATE": guarded.stranger}):
        done = doctor(endpoint, protocol, variables)
        assert done.returncode == 1
        assert "certificate is not trusted" in done.stdout
        assert "→  set OTEL_EXPORTER_OTLP_CERTIFICATE to the file" in done.stdout


def test_the_authority_of_the_exporter_wins_over_that_of_every_request(guarded: Guarded) -> None:
    variables = {**trusting(guarded), "REQUESTS_CA_BUNDLE": guarded.stranger}
    assert doctor(guarded.secure.url(4318, "https"), "http/protobuf", variables).returncode == 0


@every_protocol
def test_plain_text_to_a_tls_port(guarded: Guarded, protocol: str) -> None:
    endpoint = guarded.secure.url(PROTOCOLS[protocol])
    done = doctor(endpoint, protocol)
    assert done.returncode == 1
    assert f"→  write {endpoint.replace('http://', 'https://')} in --otlp-endpoint" in done.stdout


@every_protocol
def test_tls_to_a_plain_text_port(guarded: Guarded, protocol: str) -> None:
    done = doctor(guarded.plain.url(PROTOCOLS[protocol], "https"), protocol)
    assert done.returncode == 1
    assert f"→  write {guarded.plain.url(PROTOCOLS[protocol])} in --otlp-endpoint" in done.stdout


@every_protocol
@pytest.mark.parametrize("file", ["/nowhere/ca.pem", str(ROOT / "README.md")])
def test_a_certificate_authority_file_that_is_missing_or_invalid(guarded: Guarded, protocol: str, file: str) -> None:
    variables = {"OTEL_EXPORTER_OTLP_CERTIFICATE": file}
    done = doctor(guarded.secure.url(PROTOCOLS[protocol], "https"), protocol, variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: OTEL_EXPORTER_OTLP_CERTIFICATE")


@every_protocol
@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_token_that_is_missing_or_wrong(guarded: Guarded, protocol: str, token: str | None) -> None:
    done = doctor(guarded.secure.url(PROTOCOLS[protocol], "https"), protocol, trusting(guarded, token))
    assert done.returncode == 1
    advice = "set OTEL_EXPORTER_OTLP_HEADERS to the header" if token is None else "the receiver refuses the token in"
    assert f"→  {advice}" in done.stdout
