"""Audio files, codes, delayed frames."""
