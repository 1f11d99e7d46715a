"""The vLLM backend: the real engine in this process, held to the planner's sampling and grammar.

``engine`` builds it and takes it down, ``processors`` hooks into its sampler, ``draws`` decides tokens there, and
``backend`` runs the planner's phases on it.
"""
