"""Requests to speech, frame by frame.

    text, recordings --voices--> Script --speaker--> prompt --decoding--> frames --speaker--> Speech

voices.py     texts, recordings, descriptions -> the lines to speak, each with its prompt
speaker.py    prompts -> speech, whole or as it comes: joins the files below
line.py       a line while it is spoken: delayed frames -> codes that are final
decoding.py   prompts -> delayed frames: the loop, and which rows go on
running.py    the same for rows that join and leave at any time: what a server speaks with
step.py       delayed frames -> logits of the next ones: the audio half of the model
sampling.py   logits -> codes
graphs.py     steps -> the same steps, compiled, and each recorded as one CUDA graph
takes.py      several takes of one prompt, the best first
speech.py     waveforms and their codes, joined and saved
"""
