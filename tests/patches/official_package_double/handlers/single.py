"""The layout of the first releases: one class with everything, one thread."""

from acestep.parts import Model, Tensor, Vae


class AceStepHandler:
    def __init__(self):
        self.device, self.dtype = "cpu", "torch.bfloat16"
        self.last_init_params = {"config_path": "acestep-v15-turbo"}
        self.model, self.vae = Model(), Vae()

    def generate_music(self, captions, lyrics, inference_steps=8):
        latents = self.service_generate(captions, lyrics, infer_steps=inference_steps)
        self.tiled_decode(latents)
        return [{"tensor": Tensor(), "sample_rate": 48_000}]

    def service_generate(self, captions, lyrics, infer_steps=60):
        return self.model.generate_audio(infer_steps)

    def tiled_decode(self, latents, chunk_size=None):
        return [self.vae.decode(latents) for _ in range(3)]
