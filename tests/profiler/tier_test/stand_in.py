"""Stands in for the child process: reads its job and does what the test wrote into the environment.

``STAND_IN`` is a JSON list of steps: ``["say", line]``, ``["complain", text]``, ``["die", signal]``, ``["hang"]``,
``["exit", code]``; ``["for", memory, step, ...]`` takes its steps only on that simulated card.
"""

import json
import os
import sys
import time


def do(step, memory):
    kind, *rest = step
    if kind == "for" and str(rest[0]) == memory:
        for inner in rest[1:]:
            do(inner, memory)
    elif kind == "say":
        print(rest[0], flush=True)
    elif kind == "complain":
        print(rest[0], file=sys.stderr, flush=True)
    elif kind == "die":
        os.kill(os.getpid(), rest[0])
    elif kind == "hang":
        time.sleep(600)
    elif kind == "exit":
        sys.exit(rest[0])


job = json.loads(sys.stdin.readline())
for step in json.loads(os.environ["STAND_IN"]):
    do(step, os.environ["MAX_CUDA_VRAM"])
