"""The layout of later releases: mixins, and diffusion in a thread of its own."""

import threading

from acestep.parts import Parts


class GenerateMusicMixin:
    def generate_music(
        self, captions, lyrics, inference_steps=8, batch_size=None, src_audio=None, task_type="text2music"
    ):
        songs = batch_size or 1
        inputs = {"captions_batch": [captions] * songs, "lyrics_batch": [lyrics] * songs}
        try:
            outputs = self._run_generate_music_service_with_progress(
                inference_steps=inference_steps, service_inputs=inputs, task_type=task_type
            )
            self._decode_generate_music_pred_latents(outputs)
        except Exception as error:
            return {"audios": [], "success": False, "error": str(error)}
        return {"audios": self._songs(songs), "success": True, "error": None}


class GenerateMusicExecuteMixin:
    def _run_generate_music_service_with_progress(self, inference_steps, service_inputs, task_type=""):
        outputs = {}

        def target():
            try:
                outputs["latents"] = self.service_generate(
                    captions=service_inputs["captions_batch"],
                    lyrics=service_inputs["lyrics_batch"],
                    infer_steps=inference_steps,
                    sampler_mode=self.sampler_mode,
                    task_type=task_type,
                    **self.more,
                )
            except Exception as error:
                outputs["error"] = error

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join()
        if "error" in outputs:
            raise outputs["error"]
        return outputs["latents"]


class VaeDecodeMixin:
    def _decode_generate_music_pred_latents(self, pred_latents):
        return self.tiled_decode(pred_latents)


class AceStepHandler(GenerateMusicMixin, GenerateMusicExecuteMixin, VaeDecodeMixin, Parts):
    pass
