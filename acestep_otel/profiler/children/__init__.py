"""Child processes on the GPUs of this host: their cards, messages and exit."""
