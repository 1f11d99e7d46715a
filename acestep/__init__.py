"""ACE-Step 1.5 inference on kept libraries: a language model plans, a diffusion transformer renders, a VAE decodes."""

__version__ = "0.1.0"

from acestep.import_noise import silence

silence()
