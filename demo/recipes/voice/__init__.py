"""Recordings of a voice that the base never heard, for the demo: `python -m demo.recipes.voice`.

sentences.txt   what the demo trains on: forty sentences over the base's vocabulary
"""
