"""The vLLM backend: the real engine in this process, held to the planner's sampling and grammar.

``engine`` builds it and takes it down, ``hooks`` is where it hands over hidden states, ``selection`` makes tokens of
them, ``rows`` runs the requests of several threads pass by pass, and ``backend`` the planner's phases on these.
"""
