"""The vLLM backend: vLLM's engine in this process, under the planner's sampling and grammar.

``engine`` starts and stops it, ``hooks`` receives its hidden states, ``selection`` chooses tokens from them, ``rows``
runs the requests of several threads pass by pass, and ``backend`` the planner's phases on these.
"""
