from nanovllm.engine.llm_engine import LLMEngine


class LLMHandler:
    def __init__(self):
        self.device, self.dtype, self.llm_backend = "cpu", "torch.bfloat16", "vllm"
        self.last_init_params = {"lm_model_path": "acestep-5Hz-lm-1.7B"}

    def generate_with_stop_condition(self, caption, lyrics, infer_type, temperature=0.85):
        self.generate_from_formatted_prompt("prompt", {"generation_phase": "cot"}, stop_at_reasoning=True)
        if infer_type == "llm_dit":
            self.generate_from_formatted_prompt("prompt", {"generation_phase": "codes"})
        return {"success": True}

    def create_sample_from_query(self, query, instrumental=False):
        return self.generate_from_formatted_prompt("prompt", {"generation_phase": "understand"})

    format_sample_from_input = understand_audio_from_codes = create_sample_from_query

    def generate_from_formatted_prompt(self, formatted_prompt, cfg=None, stop_at_reasoning=False):
        engine = LLMEngine(tokens=5)
        while engine.tokens:
            engine.step()
        return "text", "ok"
