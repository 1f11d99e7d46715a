class Sequence:
    def __init__(self, length, is_unconditional=False):
        self.length, self.is_unconditional = length, is_unconditional

    def __len__(self):
        return self.length


class Scheduler:
    def __init__(self):
        self.waiting = []

    def add(self, seq):
        self.waiting.append(seq)
