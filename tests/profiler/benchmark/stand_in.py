"""Stands in for the child process of a benchmark: does what the test wrote into the environment, order by order.

``STAND_IN`` is a JSON object: by card a list of lives, each a list of words. ``refuse`` and ``crash`` come before the
device is ready; ``done`` and ``die`` answer an order, and when there are no more words each is ``done``; so does
``after CARD N``, when that card has had N lives. ``STAND_IN_LIVES`` names a folder that counts the lives of each card.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from acestep_otel.profiler.benchmark.matrix import CellResult, Failure, Figures
from acestep_otel.profiler.benchmark.protocol import Done, Loaded, Ready, decode_employment, decode_order
from acestep_otel.profiler.tier_test.protocol import Refused, encode
from tests.profiler.report.gpu_run import ENVIRONMENT


def say(event):
    print(encode(event), flush=True)


card = decode_employment(sys.stdin.readline()).card
lived = Path(os.environ["STAND_IN_LIVES"], card.label)
life = len(lived.read_text()) if lived.exists() else 0
lived.write_text("x" * (life + 1))
lives = json.loads(os.environ["STAND_IN"]).get(card.label, [])
words = lives[life] if life < len(lives) else []
if words[:1] == ["refuse"]:
    say(Refused(Failure("CheckpointNotFound", "no weights for 'it'", "model.load")))
    sys.exit(0)
if words[:1] == ["crash"]:
    print("CUDA error: out of paper", file=sys.stderr, flush=True)
    sys.exit(3)
say(Ready(float(os.environ.get("STAND_IN_MEMORY", 80)), ENVIRONMENT))
say(Loaded("acestep-v15-turbo", ("compiled",)))
while (order := decode_order(sys.stdin.readline())) is not None:
    word = words.pop(0) if words else "done"
    if word.startswith("after"):
        other, count = word.removeprefix("after ").rsplit(" ", 1)
        while not Path(lived.parent, other).exists() or len(Path(lived.parent, other).read_text()) < int(count):
            time.sleep(0.05)
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    say(Done(CellResult(order.cell, (Figures(1.0, 0.0, 0.5, 0.25),), None, ()), "turbo on cuda:0"))
