"""Child processes on the GPUs of this host: which card each one has, what it says, and how it ends."""
