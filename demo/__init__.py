"""The embedded default: a base that reads, its codec, and one run of prepare -> train -> speak in a
voice that it never heard."""
