"""Collector configurations: each component exists and is used, and each option is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from acestep_otel import semconv
from tests.stack.boards import ROOT

FOLDER = ROOT / "collectors"
CONFIGURATIONS = {name: FOLDER / f"{name}.yaml" for name in ("local", "agent", "gateway", "jaeger")}
KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")

every_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)
every_collector = pytest.mark.parametrize("name", ["local", "agent", "gateway"])

_TLS = {"insecure", "ca_file", "cert_file", "key_file"}
_RETRY = {"enabled", "initial_interval", "max_interval", "max_elapsed_time", "multiplier"}
_BATCH = {"sizer", "min_size", "max_size", "flush_timeout"}
_QUEUE = {**dict.fromkeys(("enabled", "num_consumers", "queue_size", "storage")), "batch": _BATCH}
_SPAN_METRICS = {"endpoint", "normalize_calls", "normalize_duration", "latency_unit"}
_OTLP_EXPORTER: dict[str, Any] = {
    "endpoint": None,
    "timeout": None,
    "headers": {"X-Scope-OrgID"},
    "tls": _TLS,
    "retry_on_failure": _RETRY,
    "sending_queue": _QUEUE,
}
# What each component's documentation lists (addresses in collectors/README.md); None is a value, a set names values'
# keys, a mapping goes deeper, "*" stands for any key.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "receivers": {
        "otlp": {
            "protocols": {
                "grpc": {"endpoint": None, "max_recv_msg_size_mib": None, "tls": _TLS},
                "http": {"endpoint": None},
            }
        },
    },
    "processors": {
        "memory_limiter": dict.fromkeys(
            ("check_interval", "limit_mib", "spike_limit_mib", "limit_percentage", "spike_limit_percentage")
        ),
        "batch": dict.fromkeys(("send_batch_size", "send_batch_max_size", "timeout")),
        "resource": {"attributes": {"key", "value", "action"}},
        "resourcedetection": dict.fromkeys(("detectors", "override", "timeout")),
        "transform": {"error_mode": None, "trace_statements": {"statements"}},
        "redaction": dict.fromkeys(("allow_all_keys", "allowed_keys", "blocked_values", "summary")),
        "tail_sampling": {
            "decision_wait": None,
            "num_traces": None,
            "expected_new_traces_per_sec": None,
            "decision_cache": {"sampled_cache_size", "non_sampled_cache_size"},
            "policies": {
                "name": None,
                "type": None,
                "status_code": {"status_codes"},
                "string_attribute": {"key", "values"},
                "boolean_attribute": {"key", "value"},
                "latency": {"threshold_ms", "upper_threshold_ms"},
                "probabilistic": {"sampling_percentage"},
            },
        },
    },
    "exporters": {
        "otlp_grpc": _OTLP_EXPORTER,
        "otlp_http": {"metrics_endpoint": None, "tls": _TLS, "retry_on_failure": _RETRY, "sending_queue": _QUEUE},
        "load_balancing": {
            "routing_key": None,
            "retry_on_failure": _RETRY,
            "sending_queue": _QUEUE,
            "protocol": {"otlp": _OTLP_EXPORTER},
            "resolver": {"dns": {"hostname", "port", "interval", "timeout"}, "static": {"hostnames"}},
        },
        "kafka": {
            "brokers": None,
            "traces": {"topic", "encoding"},
            "metrics": {"topic", "encoding"},
            "partition_traces_by_id": None,
        },
        "jaeger_storage_exporter": {"trace_storage": None},
    },
    "connectors": {
        "span_metrics": {
            "namespace": None,
            "histogram": {"unit": None, "explicit": {"buckets"}},
            "exemplars": {"enabled"},
            "dimensions": {"name", "default"},
            "metrics_flush_interval": None,
        },
    },
    "extensions": {
        "health_check": {"endpoint": None},
        "healthcheckv2": {"use_v2": None, "http": {"endpoint"}},
        "file_storage": {
            "directory": None,
            "create_directory": None,
            "compaction": {"on_start", "on_rebound", "directory"},
        },
        "jaeger_storage": {
            "backends": {"*": {"badger": {"directories": {"keys", "values"}, "ephemeral": None, "ttl": {"spans"}}}},
            "metric_backends": {"*": {"prometheus": _SPAN_METRICS}},
        },
        "jaeger_query": {"storage": {"traces", "metrics"}},
    },
}


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(CONFIGURATIONS[name].read_text("utf-8")))


def unknown(found: Any, allowed: Any, path: str) -> Iterator[str]:
    """Options that the table does not list."""
    if isinstance(found, list):
        for item in found:
            if isinstance(item, dict):
                yield from unknown(item, allowed, path)
    elif isinstance(found, dict):
        listed = dict.fromkeys(allowed) if isinstance(allowed, set) else allowed or {}
        for key, value in found.items():
            inner = listed.get(key, listed.get("*", KeyError))
            if inner is KeyError:
                yield f"{path}.{key}"
            else:
                yield from unknown(value, inner, f"{path}.{key}")


def kind_of(component: str) -> str:
    """``otlp_grpc`` of ``otlp_grpc/jaeger``."""
    return component.partition("/")[0]


@every_configuration
def test_every_component_and_option_is_documented(name: str) -> None:
    configuration = read(name)
    assert set(configuration) <= {*KINDS, "service"}
    for kind in KINDS:
        for component, options in configuration.get(kind, {}).items():
            assert kind_of(component) in OPTIONS[kind], component
            assert list(unknown(options, OPTIONS[kind][kind_of(component)], component)) == []


def test_an_invented_option_is_found() -> None:
    """The check above can fail."""
    options = {"check_intervall": "1s", "limit_mib": 1}
    assert list(unknown(options, OPTIONS["processors"]["memory_limiter"], "it")) == ["it.check_intervall"]
    policies = {"policies": [{"name": "x", "latency": {"threshold": 1}}]}
    assert list(unknown(policies, OPTIONS["processors"]["tail_sampling"], "it")) == ["it.policies.latency.threshold"]


@every_configuration
def test_pipelines_are_complete_and_use_every_component(name: str) -> None:
    configuration = read(name)
    service = configuration["service"]
    connectors = set(configuration.get("connectors", {}))
    used: dict[str, set[str]] = {kind: set() for kind in KINDS}
    used["extensions"] = set(service["extensions"])
    sources: set[str] = set()
    sinks: set[str] = set()
    for pipeline in service["pipelines"].values():
        assert pipeline["receivers"]
        assert pipeline["exporters"]
        sources |= set(pipeline["receivers"]) & connectors
        sinks |= set(pipeline["exporters"]) & connectors
        used["receivers"] |= set(pipeline["receivers"]) - connectors
        used["exporters"] |= set(pipeline["exporters"]) - connectors
        used["processors"] |= set(pipeline.get("processors", []))
    # A connector ends one pipeline and starts another.
    assert sources == sinks == connectors
    for kind in ("receivers", "processors", "exporters", "extensions"):
        assert used[kind] == set(configuration.get(kind, {})), kind


@every_collector
def test_memory_is_limited_first(name: str) -> None:
    for pipeline in read(name)["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"


@pytest.mark.parametrize("name", ["agent", "gateway"])
def test_what_was_taken_is_on_disk_before_a_batch_is_made(name: str) -> None:
    configuration = read(name)
    assert "batch" not in configuration["processors"]
    assert all(exporter["sending_queue"]["batch"] for exporter in configuration["exporters"].values())


@every_configuration
def test_no_two_listen_on_one_port(name: str) -> None:
    configuration = read(name)
    text = yaml.safe_dump(
        {
            "receivers": configuration["receivers"],
            "extensions": configuration["extensions"],
        }
    )
    ports = re.findall(r"endpoint: .*:(\d+)", text)
    assert len(ports) == len(set(ports))


@every_collector
def test_every_variable_is_explained(name: str) -> None:
    text = CONFIGURATIONS[name].read_text("utf-8")
    head = text.split("\nextensions:")[0]
    for variable in set(re.findall(r"\$\{env:(\w+)", text)):
        assert re.search(rf"^# {variable}  ", head, re.MULTILINE), variable


def test_what_is_scraped_is_the_collectors_own_page() -> None:
    own = read("local")["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]["port"]
    scraped = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    targets = {target for job in scraped for config in job["static_configs"] for target in config["targets"]}
    assert targets == {f"collector:{own}"}


@pytest.mark.parametrize("name", ["local", "agent"])
def test_metrics_go_straight_to_the_store_in_order(name: str) -> None:
    """Two gateways would each keep every series, and every sum would be twice what it is."""
    configuration = read(name)
    (exporter,) = configuration["service"]["pipelines"]["metrics"]["exporters"]
    assert kind_of(exporter) == "otlp_http"
    assert configuration["exporters"][exporter]["sending_queue"]["num_consumers"] == 1


def test_a_gateway_takes_no_metrics() -> None:
    gateway = read("gateway")
    assert gateway["service"]["pipelines"]["metrics"]["receivers"] == ["span_metrics"]
    assert gateway["connectors"]["span_metrics"]["exemplars"]["enabled"] is True


def test_span_metrics_are_made_before_sampling_and_whole_traces_meet() -> None:
    gateway = read("gateway")
    arriving, whole = (gateway["service"]["pipelines"][f"traces/{name}"] for name in ("arriving", "whole"))
    assert set(arriving["exporters"]) == {"span_metrics", "load_balancing"}
    assert "tail_sampling" not in arriving["processors"]
    assert "tail_sampling" in whole["processors"]
    balancing = gateway["exporters"]["load_balancing"]
    assert balancing["routing_key"] == "traceID"
    peers = gateway["receivers"][whole["receivers"][0]]["protocols"]["grpc"]["endpoint"]
    assert balancing["resolver"]["dns"]["port"] == peers.rpartition(":")[2]


def test_what_waits_for_a_peer_waits_before_the_choice_of_a_peer() -> None:
    balancing = read("gateway")["exporters"]["load_balancing"]
    assert balancing["sending_queue"]["storage"] == "file_storage"
    assert balancing["retry_on_failure"]["max_elapsed_time"] == "0s"
    inner = balancing["protocol"]["otlp"]
    assert not inner["sending_queue"]["enabled"]
    assert not inner["retry_on_failure"]["enabled"]


def test_sampling_keeps_what_matters() -> None:
    policies = {policy["type"]: policy for policy in read("gateway")["processors"]["tail_sampling"]["policies"]}
    assert policies["status_code"]["status_code"]["status_codes"] == ["ERROR"]
    oom = policies["string_attribute"]["string_attribute"]
    assert (oom["key"], "OutOfMemory" in oom["values"]) == (semconv.ERROR_TYPE, True)
    assert policies["boolean_attribute"]["boolean_attribute"] == {"key": semconv.TRACE_FORCE, "value": True}
    assert set(policies) == {"status_code", "string_attribute", "latency", "boolean_attribute", "probabilistic"}


def test_redaction_lets_everything_through_but_what_the_user_wrote() -> None:
    redaction = read("gateway")["processors"]["redaction"]
    allowed = set(redaction["allowed_keys"])
    written = {semconv.CAPTION, semconv.LYRICS, semconv.QUERY, semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES}
    assert redaction["allow_all_keys"] is False
    assert allowed & written == set()
    assert set(semconv.ATTRIBUTES) - written <= allowed
    assert {"service.name", "service.instance.id"} <= allowed
    assert "exception.stacktrace" not in allowed


@pytest.mark.parametrize("name", ["agent", "gateway"])
def test_queues_survive_a_restart(name: str) -> None:
    configuration = read(name)
    for exporter in configuration["exporters"].values():
        assert exporter["sending_queue"]["storage"] in configuration["service"]["extensions"]
        assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"


def test_an_agent_listens_on_its_own_host_only() -> None:
    protocols = read("agent")["receivers"]["otlp"]["protocols"]
    assert {options["endpoint"].partition(":")[0] for options in protocols.values()} == {"127.0.0.1"}


def test_fragments_of_the_readme_are_documented_options_too() -> None:
    fragments = re.findall(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text("utf-8"), re.DOTALL)
    assert fragments
    for fragment in fragments:
        for kind, components in yaml.safe_load(fragment).items():
            if kind in KINDS:
                for component, options in components.items():
                    assert list(unknown(options, OPTIONS[kind][kind_of(component)], component)) == []


def test_the_readme_cites_the_documentation_of_every_component() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    for path in CONFIGURATIONS.values():
        configuration = yaml.safe_load(Path(path).read_text("utf-8"))
        for kind in KINDS:
            for component in configuration.get(kind, {}):
                assert f"| `{kind_of(component)}` |" in text, component
