"""The PyTorch backend: a Qwen3 body from transformers with its own decode loop.

``backend`` runs the planner's phases, ``workspace`` keeps what phases share, ``decode_state`` contains the rows in
flight, ``fused`` runs small passes with the Triton kernels of ``kernels``.
"""

from acestep.planner.backends.pt.backend import PtBackend

__all__ = ["PtBackend"]
