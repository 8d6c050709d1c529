"""The embedded default: a tiny model and codec of the real classes, and one run of prepare -> train
-> speak."""
