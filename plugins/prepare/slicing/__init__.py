"""Recordings of any length -> clips with transcripts: ``--dataset_type recordings``.

    Track (plugins.audio.tracks) --tape--> Stretch: at most 29 s from pause to pause, its speech
    Stretch --hearing--> words with times --cutting--> where clips begin and end, their words
    clip --judging--> what is doubtful about it; --scripts--> the words as its author wrote them

    all speech of all recordings --diarising, voices--> who speaks when

settings.py   what a user may choose
channels.py   two channels -> who speaks when in each; crosstalk.py: one without the other's voice
tape.py       sound in a stream -> stretches, by silero-vad
hearing.py    stretch -> words, by faster-whisper
memory.py     the same, but for what a killed run has heard already
cutting.py    speech and words -> clips; arithmetic only
judging.py    samples, words and levels of a clip -> its measures and doubts
joining.py    pieces -> the turns of a conversation
scripts.py    subtitles or a whole text -> the words of each clip
voices.py     speech -> embeddings -> speakers
diarising.py  recordings -> who speaks when
progress.py   how far it is, in seconds of sound
sliced.py     clips on the disk, and the note of them for the next run
corpus.py     the folder -> utterances
"""
