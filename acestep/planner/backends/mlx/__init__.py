"""The MLX backend: mlx-lm's Qwen3 for Apple GPUs, under the planner's own sampling and grammar.

``backend`` runs the planner's phases, ``decode_state`` converts the weights and contains the rows in flight,
``sampling`` draws tokens.
"""
