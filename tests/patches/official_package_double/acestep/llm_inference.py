from nanovllm.engine.llm_engine import LLMEngine

from acestep.constrained_logits_processor import MetadataConstrainedLogitsProcessor


class LLMHandler:
    fails = False

    def __init__(self):
        self.device, self.dtype, self.llm_backend = "cpu", "torch.bfloat16", "vllm"
        self.llm_initialized = True
        self.constrained_processor = MetadataConstrainedLogitsProcessor()

    def initialize(self, checkpoint_dir, lm_model_path, backend="vllm", device="auto"):
        return "done", True

    def generate_with_stop_condition(
        self, caption, lyrics, infer_type="dit", temperature=0.85, cfg_scale=1.0, top_p=None, batch_size=None
    ):
        text, status = self.generate_from_formatted_prompt("prompt", {"generation_phase": "cot"})
        if not text:
            return {"success": False, "error": status}
        if infer_type == "llm_dit" and batch_size and batch_size > 1:
            # A batch goes to the backend without the method that one song takes.
            self._run_vllm(["prompt"] * batch_size, generation_phase="codes")
        elif infer_type == "llm_dit":
            self.generate_from_formatted_prompt("prompt", {"generation_phase": "codes"})
        return {"success": True, "error": None}

    def create_sample_from_query(self, query, instrumental=False):
        text, status = self.generate_from_formatted_prompt("prompt", {"generation_phase": "understand"})
        return ({"caption": text} if text else {}), status

    def format_sample_from_input(self, caption, lyrics, user_metadata=None):
        return self.create_sample_from_query(caption)

    def understand_audio_from_codes(self, audio_codes, temperature=0.3):
        return self.create_sample_from_query(audio_codes)

    def generate_from_formatted_prompt(self, formatted_prompt, cfg=None, stop_at_reasoning=False):
        try:
            return self._run_vllm(formatted_prompt, generation_phase=(cfg or {}).get("generation_phase", "cot")), "done"
        except Exception as error:
            return "", f"Error: {error}"

    def _run_vllm(self, formatted_prompts, use_constrained_decoding=True, generation_phase="cot"):
        if self.fails:
            raise MemoryError("cannot use a caption nobody may see")
        engine = LLMEngine(tokens=5)
        while not engine.is_finished():
            engine.step()
            self.constrained_processor(None, None)
            self.constrained_processor.update_state(0)
        return "text" if isinstance(formatted_prompts, str) else ["text"] * len(formatted_prompts)

    def _run_pt(self, formatted_prompts, use_constrained_decoding=True, generation_phase="cot"):
        raise NotImplementedError

    def _run_mlx(self, formatted_prompts, use_constrained_decoding=True, generation_phase="cot"):
        raise NotImplementedError
