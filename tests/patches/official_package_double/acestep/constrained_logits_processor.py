class MetadataConstrainedLogitsProcessor:
    def __call__(self, input_ids, scores):
        return scores

    def update_state(self, generated_token_id):
        pass
