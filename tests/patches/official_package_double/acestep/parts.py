class Tensor:
    shape = (2, 480_000)


class Decoder:
    """Comes from the checkpoint's own code; called once per step."""

    fails = False

    def __call__(self, *args):
        return self.forward(*args)

    def forward(self, latents):
        if self.fails:
            raise ValueError("cannot use a caption nobody may see")
        return latents


class Model:
    def __init__(self):
        self.decoder = Decoder()

    def generate_audio(self, steps):
        for _ in range(steps):
            self.decoder(Tensor())
        return Tensor()


class Vae:
    def decode(self, latents):
        return latents
