class LLMEngine:
    def __init__(self, tokens):
        self.waiting, self.tokens = True, tokens

    def step(self):
        if self.waiting:
            self.waiting = False
            return [], 40
        self.tokens -= 1
        return [], -1
