"""The PyTorch backend: a Qwen3 body from transformers under a decode loop of its own.

``backend`` runs the planner's phases, ``workspace`` keeps what one phase leaves to the next, ``decode_state`` holds the
rows in flight, ``fused`` runs small passes in ``kernels`` of its own.
"""

from acestep.planner.backends.pt.backend import PtBackend

__all__ = ["PtBackend"]
