"""The layout of the first releases: one class with everything, one thread."""

from acestep.parts import Parts


class AceStepHandler(Parts):
    def generate_music(
        self, captions, lyrics, inference_steps=8, batch_size=None, src_audio=None, task_type="text2music"
    ):
        songs = batch_size or 1
        try:
            latents = self.service_generate(
                [captions] * songs,
                [lyrics] * songs,
                infer_steps=inference_steps,
                sampler_mode=self.sampler_mode,
                task_type=task_type,
                **self.more,
            )
            self.tiled_decode(latents)
        except Exception as error:
            return {"audios": [], "success": False, "error": str(error)}
        return {"audios": self._songs(songs), "success": True, "error": None}
