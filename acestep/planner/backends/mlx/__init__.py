"""The MLX backend: mlx-lm's Qwen3 for Apple GPUs, under the planner's own sampling and grammar.

``model`` converts the weights, ``decode_state`` holds the rows in flight, ``sampling`` draws tokens, and ``backend``
runs the planner's phases.
"""
