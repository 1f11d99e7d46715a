class Tensor:
    def __init__(self, *shape):
        self.shape = shape


class Decoder:
    """Comes from the checkpoint's own code; called once per step, or twice by Heun's method."""

    fails = False

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def forward(self, hidden_states, timestep=None):
        if self.fails:
            raise ValueError("cannot use a caption nobody may see")
        return hidden_states


class Model:
    def __init__(self):
        self.decoder = Decoder()

    def generate_audio(self, songs, steps, sampler_mode="euler", edit=None):
        calls = 2 * steps - 1 if sampler_mode == "heun" else steps
        if edit is not None:
            first, last, draws = edit
            calls = 2 * draws * (last - first) + steps - last
        for _ in range(calls):
            self.decoder(hidden_states=Tensor(songs, 250, 64))
        return Tensor(songs, 64, 250)


class Vae:
    def encode(self, audio):
        return Tensor(1, 64, 250)

    def decode(self, latents):
        return latents


class Parts:
    """What both layouts of the handler have in common."""

    sampler_mode = "euler"
    fails = False

    def __init__(self):
        self.device, self.dtype = "cpu", "torch.bfloat16"
        self.last_init_params = {"config_path": "acestep-v15-turbo"}
        self.model, self.vae = Model(), Vae()
        self.more = {}

    def initialize_service(self, project_root, config_path, device="auto"):
        return "done", True

    def service_generate(
        self,
        captions,
        lyrics,
        infer_steps=60,
        shift=1.0,
        sampler_mode="euler",
        infer_method="ode",
        task_type="",
        flow_edit_morph=False,
        flow_edit_n_min=0.0,
        flow_edit_n_max=1.0,
        flow_edit_n_avg=1,
    ):
        if self.fails:
            raise ValueError("no words for a caption nobody may see")
        if task_type == "cover":
            self.tiled_encode(Tensor(1, 2, 480_000))
        window = (int(infer_steps * flow_edit_n_min), int(infer_steps * flow_edit_n_max), flow_edit_n_avg)
        return self.model.generate_audio(len(captions), infer_steps, sampler_mode, window if flow_edit_morph else None)

    def tiled_decode(self, latents, chunk_size=None):
        return [self.vae.decode(latents) for _ in range(3)]

    def tiled_encode(self, audio, chunk_size=None, overlap=None):
        first, _ = (self.vae.encode(audio) for _ in range(2))
        return first

    def _songs(self, songs):
        return [{"tensor": Tensor(2, 480_000), "sample_rate": 48_000} for _ in range(songs)]
