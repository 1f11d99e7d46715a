from nanovllm.engine.scheduler import Scheduler, Sequence


class LLMEngine:
    def __init__(self, tokens):
        self.scheduler = Scheduler()
        self.scheduler.add(Sequence(30))
        self.scheduler.add(Sequence(10, is_unconditional=True))
        self.waiting, self.tokens, self.written = True, tokens, []

    def step(self):
        read = sum(map(len, self.scheduler.waiting))
        self.scheduler.waiting.clear()
        self.written.append(7)
        finished = [(0, self.written)] if len(self.written) == self.tokens else []
        return finished, read or -1

    def is_finished(self):
        return len(self.written) == self.tokens
