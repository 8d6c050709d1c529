"""The embedded codec and how it came to be: `python -m demo.recipes.codec` trains it, `.evaluate`
judges it.

sentences.py   word lists -> sentences
corpus.py      sentences -> one long waveform, spoken by two voices of flite
targets.py     waveform -> latents (log-mel, PCA) and eight residual codebooks of them
network.py     the class of transformers, narrow: built, initialised, written to demo/codec/
losses.py      two waveforms -> how different they sound
training.py    the encoder learns the latents, the decoder the sound of quantised ones
evaluate.py    round trip of held-out sentences: word error rate, use of the codebooks, pictures
"""
