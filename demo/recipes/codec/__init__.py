"""The embedded codec and how it came to be: `python -m demo.recipes.codec` trains it, `.evaluate`
judges it.

sentences.py   words and patterns -> sentences
corpus.py      sentences -> speech of three voices of flite and one of Piper
common.py      the same text in several voices -> what they have in common, frame by frame
targets.py     waveform -> latents (log-mel, PCA) and eight residual codebooks of them
network.py     the earlier codec -> encoder and decoder to start from; what is written
losses.py      two waveforms -> how different they sound
adversary.py   waveforms -> how they are told from recordings
training.py    the encoder learns the latents, the decoder the sound of quantised ones
evaluate.py    round trip of held-out sentences: word error rate, quality, codebooks, pictures
"""
