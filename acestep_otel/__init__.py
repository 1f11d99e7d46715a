"""OpenTelemetry around ACE-Step 1.5 inference: where did the time and the VRAM go?"""

__version__ = "0.1.0"
