"""Shared by all tests."""

import torch

# Two threads on a busy two-core machine make tiny models fifty times slower.
torch.set_num_threads(1)
