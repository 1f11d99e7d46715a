"""From a prompt and, optionally, audio codes to 48 kHz stereo audio."""
