"""The ids of the published 3B checkpoint (its config.json), for prompts in the real vocabulary."""


class PublishedConfig:
    audio_bos_token_id, audio_token_id, audio_delay_token_id = 128013, 128016, 128014
    pad_token_id, audio_stream_bos_id, audio_stream_eos_id = 128001, 1024, 1025
    num_codebooks, codebook_size = 8, 1026
