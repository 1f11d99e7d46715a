"""The layout of later releases: mixins, and diffusion in a thread of its own."""

import threading

from acestep.parts import Model, Tensor, Vae


class GenerateMusicMixin:
    def generate_music(self, captions, lyrics, inference_steps=8):
        outputs = {}

        def target():
            try:
                outputs["latents"] = self.service_generate(captions, lyrics, infer_steps=inference_steps)
            except Exception as error:
                outputs["error"] = error

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join()
        if "error" in outputs:
            raise outputs["error"]
        self._decode_generate_music_pred_latents(outputs["latents"])
        return [{"tensor": Tensor(), "sample_rate": 48_000}]


class ServiceGenerateMixin:
    def service_generate(self, captions, lyrics, infer_steps=60):
        return self._execute_service_generate_diffusion(infer_steps)

    def _execute_service_generate_diffusion(self, infer_steps):
        return self.model.generate_audio(infer_steps)


class VaeDecodeMixin:
    def _decode_generate_music_pred_latents(self, latents):
        return self.tiled_decode(latents)

    def tiled_decode(self, latents, chunk_size=None):
        return [self.vae.decode(latents) for _ in range(3)]


class AceStepHandler(GenerateMusicMixin, ServiceGenerateMixin, VaeDecodeMixin):
    def __init__(self):
        self.device, self.dtype = "cpu", "torch.bfloat16"
        self.last_init_params = {"config_path": "acestep-v15-turbo"}
        self.model, self.vae = Model(), Vae()
