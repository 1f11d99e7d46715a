"""OpenTelemetry SDK set-up for processes that have none of their own; needs ``opentelemetry-sdk``."""
