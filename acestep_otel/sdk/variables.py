"""The standard ``OTEL_*`` variables, checked against the specification before the SDK reads them.

The SDK ends in a traceback for some values, drops others with a log line, and misinterprets some. Here every variable
of the specification's list is read by its rule: an empty one counts as unset, a legal value works, and any other is
reported in one line that names the variable. No message quotes a header, a key or a token.

Only the standard library is needed, so that the check can come before the SDK is imported: it reads some variables
while it is imported.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from acestep_otel.errors import SetupError
from acestep_otel.sdk.addresses import is_host
from acestep_otel.sdk.pairs import parse_headers, parse_resource_attributes

_Rule = Callable[[str], str | None]
"""The fault of a value, as the end of a sentence; ``None`` if it is valid."""

_LARGEST: Final = 2**31 - 1
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class WrongVariable:
    """A variable with an invalid value.

    Attributes:
        name: the variable.
        reason: one line that names the variable and the valid values, without secrets.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """The line."""
        return self.reason


def drop_empty(environment: MutableMapping[str, str] | None = None) -> None:
    """Unset empty or blank ``OTEL_*`` variables, as the specification requires; the SDK does not."""
    environment = os.environ if environment is None else environment
    for name in [name for name, value in environment.items() if name.startswith("OTEL_") and not value.strip()]:
        del environment[name]


@contextmanager
def overridden(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the process inside the block, for settings that the SDK only takes from the environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_variables(environment: MutableMapping[str, str] | None = None) -> None:
    """Check the environment for the SDK; an invalid value is an error. For the command line.

    Raises:
        SetupError: variables have invalid values; one line that names each.
    """
    drop_empty(environment)
    if wrong := wrong_variables(environment):
        raise SetupError("; ".join(map(str, wrong)))


def drop_wrong(environment: MutableMapping[str, str] | None = None) -> tuple[WrongVariable, ...]:
    """Make the environment readable for the SDK; for a service, which must start.

    Empty and wrong variables are unset, so that their defaults apply.

    Returns:
        The wrong ones, for a warning each.
    """
    environment = os.environ if environment is None else environment
    drop_empty(environment)
    wrong = wrong_variables(environment)
    for variable in wrong:
        environment.pop(variable.name, None)
    return wrong


def suit_sdk(environment: MutableMapping[str, str] | None = None) -> None:
    """Replace legal values that the SDK's own set-up refuses by equivalent ones, if the SDK sets up the process itself.

    A delay or an interval of zero is one millisecond, a batch is no larger than its queue, and a resource attribute
    without a value is left out.
    """
    environment = os.environ if environment is None else environment
    for name in ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL"):
        if milliseconds(name, 1, environment) == 0:
            environment[name] = "1"
    for processor in ("OTEL_BSP", "OTEL_BLRP"):
        queue, batch = f"{processor}_MAX_QUEUE_SIZE", f"{processor}_MAX_EXPORT_BATCH_SIZE"
        if (most := count(queue, 2_048, environment)) < count(batch, 512, environment):
            environment[batch] = str(most)
    attributes = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if kept := [entry for entry in attributes.split(",") if entry.partition("=")[2].strip()]:
        environment["OTEL_RESOURCE_ATTRIBUTES"] = ",".join(kept)
    else:
        environment.pop("OTEL_RESOURCE_ATTRIBUTES", None)


def wrong_variables(environment: Mapping[str, str] | None = None) -> tuple[WrongVariable, ...]:
    """The standard variables with invalid values, in alphabetical order."""
    environment = os.environ if environment is None else environment
    found = {}
    for name, rule in _RULES.items():
        value = environment.get(name, "")
        if value.strip() and (reason := rule(value)) is not None:
            found[name] = reason if name in _SECRET else f"={_shown(value)} is not supported: {reason}"
    found |= {name: reason for name, reason in _together(environment).items() if name not in found}
    return tuple(WrongVariable(name, f"{name}{found[name]}") for name in sorted(found))


def variable(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The value of a variable; ``None`` when it is unset, empty or blank."""
    value = (os.environ if environment is None else environment).get(name, "").strip()
    return value or None


def is_true(name: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a boolean variable says ``true``."""
    return (variable(name, environment) or "").lower() == "true"


def milliseconds(name: str, default: int, environment: Mapping[str, str] | None = None) -> int:
    """The value of a variable that holds milliseconds.

    Raises:
        SetupError: it does not.
    """
    return _number(name, default, environment, unit="milliseconds")


def count(name: str, default: int, environment: Mapping[str, str] | None = None) -> int:
    """The value of a variable that counts.

    Raises:
        SetupError: it does not.
    """
    return _number(name, default, environment)


def _number(name: str, default: int, environment: Mapping[str, str] | None, unit: str = "") -> int:
    value = variable(name, environment)
    if value is None:
        return default
    if (reason := _whole_number(0, unit)(value)) is not None:
        raise SetupError(f"{name}={_shown(value)} is not supported: {reason}")
    return int(value)


def _shown(value: str) -> str:
    value = value.strip()
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")


# Rules of values.


def _whole_number(smallest: int, unit: str = "") -> _Rule:
    what = f"a whole number of {unit}" if unit else "a whole number"

    def rule(value: str) -> str | None:
        digits = value.strip()
        if re.fullmatch(r"[0-9]{1,10}", digits) and smallest <= int(digits) <= _LARGEST:
            return None
        return f"give {what} from {smallest} to {_LARGEST}"

    return rule


def _one_of(*words: str) -> _Rule:
    def rule(value: str) -> str | None:
        return None if value.strip().lower() in words else f"choose {_listed(words)}"

    return rule


def _listed(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _share(value: str) -> str | None:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    return None if 0 <= share <= 1 else "give a share from 0 to 1"


def _host(value: str) -> str | None:
    return None if is_host(value.strip().removeprefix("[").removesuffix("]")) else "give a host name or an IP address"


def _port(value: str) -> str | None:
    return None if _whole_number(1)(value) is None and int(value) <= 65_535 else "give a port from 1 to 65535"


def _headers(name: str) -> _Rule:
    def rule(value: str) -> str | None:
        try:
            parse_headers(name, value)
        except SetupError as error:
            return str(error).removeprefix(name)
        return None

    return rule


def _file(value: str) -> str | None:
    # The path is not shown: some users put the content of a key here.
    try:
        if not Path(value).is_file():
            return " does not name a file that exists"
        with Path(value).open("rb"):
            return None
    except (OSError, ValueError) as error:
        return f" names a file that cannot be read: {getattr(error, 'strerror', None) or 'not a path'}"


def _authorities(value: str) -> str | None:
    if (reason := _file(value)) is not None:
        return reason
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except (OSError, ValueError):
        return " names a file that contains no certificates in PEM format"
    return None


def _names_of(group: str, *known: str) -> _Rule:
    """Words that the specification defines, or that an installed package adds."""

    def rule(value: str) -> str | None:
        installed = {point.name for point in entry_points(group=group)}
        unknown = [word for entry in value.split(",") if (word := entry.strip()) and word not in installed.union(known)]
        return f"choose from {', '.join(sorted(installed.union(known)))}" if unknown else None

    return rule


def _sampler(value: str) -> str | None:
    return _names_of("opentelemetry_traces_sampler", *_SAMPLERS)(value.lower())


_SAMPLERS: Final = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip
_STATUS_CODES: Final = (
    "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
    "permission_denied", "unauthenticated", "resource_exhausted", "failed_precondition", "aborted", "out_of_range",
    "unimplemented", "internal", "unavailable", "data_loss",
)  # fmt: skip


def _status_codes(value: str) -> str | None:
    known = all(word.strip().lower() in _STATUS_CODES for word in value.split(",") if word.strip())
    return None if known else "give names of gRPC status codes, separated by commas"


def _resource_attributes(value: str) -> str | None:
    try:
        parse_resource_attributes("", value)
    except SetupError as error:
        return str(error)
    return None


_BOOLEAN: Final = _one_of("true", "false")
_COUNT: Final = _whole_number(0)
_POSITIVE: Final = _whole_number(1)
_MILLISECONDS: Final = _whole_number(0, "milliseconds")

_OF_EACH_EXPORTER: Final[Mapping[str, Callable[[str], _Rule]]] = {
    "CERTIFICATE": lambda _: _authorities,
    "CLIENT_CERTIFICATE": lambda _: _file,
    "CLIENT_KEY": lambda _: _file,
    "COMPRESSION": lambda _: _one_of("gzip", "deflate", "none"),
    "HEADERS": _headers,
    "INSECURE": lambda _: _BOOLEAN,
    "PROTOCOL": lambda _: _one_of("grpc", "http/protobuf"),
    "TIMEOUT": lambda _: _MILLISECONDS,
}
_EXPORTERS: Final = tuple(f"OTEL_EXPORTER_OTLP_{signal}" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))

_RULES: Final[Mapping[str, _Rule]] = {
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _COUNT,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _COUNT,
    "OTEL_BLRP_EXPORT_TIMEOUT": _MILLISECONDS,
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": _POSITIVE,
    "OTEL_BLRP_MAX_QUEUE_SIZE": _POSITIVE,
    "OTEL_BLRP_SCHEDULE_DELAY": _MILLISECONDS,
    "OTEL_BSP_EXPORT_TIMEOUT": _MILLISECONDS,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _POSITIVE,
    "OTEL_BSP_MAX_QUEUE_SIZE": _POSITIVE,
    "OTEL_BSP_SCHEDULE_DELAY": _MILLISECONDS,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _COUNT,
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _one_of(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _one_of("cumulative", "delta", "lowmemory"),
    "OTEL_EXPORTER_PROMETHEUS_HOST": _host,
    "OTEL_EXPORTER_PROMETHEUS_PORT": _port,
    "OTEL_EXPORTER_ZIPKIN_TIMEOUT": _MILLISECONDS,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _COUNT,
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": _COUNT,
    "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": _COUNT,
    "OTEL_LOG_LEVEL": _one_of("trace", "debug", "info", "warn", "warning", "error", "fatal", "critical"),
    "OTEL_METRICS_EXEMPLAR_FILTER": _one_of("always_on", "always_off", "trace_based"),
    "OTEL_METRIC_EXPORT_INTERVAL": _MILLISECONDS,
    "OTEL_METRIC_EXPORT_TIMEOUT": _MILLISECONDS,
    "OTEL_PROPAGATORS": _names_of("opentelemetry_propagator", "none"),
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": _status_codes,
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": _BOOLEAN,
    "OTEL_RESOURCE_ATTRIBUTES": _resource_attributes,
    "OTEL_SDK_DISABLED": _BOOLEAN,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _COUNT,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _COUNT,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _COUNT,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _COUNT,
    "OTEL_TRACES_SAMPLER": _sampler,
    **{f"{exporter}{word}": rule(f"{exporter}{word}") for exporter in _EXPORTERS for word, rule in
       _OF_EACH_EXPORTER.items()},
}  # fmt: skip
"""The rule of each variable. The rules of endpoints and exporters are in ``sdk.otlp``."""

_SECRET: Final = frozenset(
    name for name in _RULES if name.endswith(("HEADERS", "CERTIFICATE", "KEY", "RESOURCE_ATTRIBUTES"))
)
"""Variables whose value is not quoted; their rules contain the whole sentence."""


def _together(environment: Mapping[str, str]) -> dict[str, str]:
    """The faults of variables that depend on each other."""
    found = {}
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    share = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if share and (not sampler or "ratio" in sampler) and (reason := _share(share)) is not None:
        found["OTEL_TRACES_SAMPLER_ARG"] = f"={_shown(share)} is not supported: {reason}"
    for processor in ("OTEL_BSP", "OTEL_BLRP"):
        name = f"{processor}_MAX_EXPORT_BATCH_SIZE"
        batch, queue = environment.get(name, ""), environment.get(f"{processor}_MAX_QUEUE_SIZE", "").strip() or "2048"
        if _POSITIVE(batch) is None and _POSITIVE(queue) is None and int(batch) > int(queue):
            found[name] = f"={_shown(batch)} is larger than {processor}_MAX_QUEUE_SIZE, {int(queue)}"
    for exporter in _EXPORTERS:
        chain, key = (environment.get(f"{exporter}CLIENT_{word}", "").strip() for word in ("CERTIFICATE", "KEY"))
        if chain and key and _file(chain) is None and _file(key) is None and not _is_pair(chain, key):
            found[f"{exporter}CLIENT_KEY"] = " and its certificate are not a pair in PEM format"
    return found


def _is_pair(chain: str, key: str) -> bool:
    try:
        # An encrypted key would prompt for its password on the terminal; no exporter could use it.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, key, password=lambda: b"")
    except (OSError, ValueError):
        return False
    return True
