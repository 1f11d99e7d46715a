"""What is read of a call."""

import inspect
import os
import signal
import threading

from acestep_otel.recording.call import Call


def song(caption, lyrics="[Instrumental]", *, seconds=30):
    return caption


def test_arguments_have_the_names_of_their_parameters_however_they_were_passed():
    call = Call(song, None, ("rain",), {"seconds": 10})
    assert call.arguments == {"caption": "rain", "lyrics": "[Instrumental]", "seconds": 10}
    assert call.arguments is call.arguments


def test_a_child_that_is_forked_while_another_thread_reads_arguments_can_read_them():
    begun, over = threading.Event(), threading.Event()

    class SlowToInspect:
        @property
        def __signature__(self):
            begun.set()
            over.wait(10)
            return inspect.signature(song)

        def __call__(self, *args, **kwargs):
            return song(*args, **kwargs)

    other = threading.Thread(target=lambda: Call(SlowToInspect(), None, ("rain",), {}).arguments)
    other.start()
    assert begun.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(5)
        os._exit(0 if Call(song, None, ("rain",), {}).arguments["caption"] == "rain" else 1)
    over.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.join(10)
