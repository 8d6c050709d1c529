"""What is said in a recording, and whether it is what is written.

scorers.py      waveform -> transcript, voice, predicted quality; which are missing
takes.py        takes of one text -> what is heard in each, the best first
recogniser.py   waveform -> words, by faster-whisper
comparison.py   what is heard against what is written, letter by letter
text.py         normalisation of texts, errors of words and characters
page.py         a page to listen to clips, in the form of page.html

Knows neither corpora nor systems: evaluation, preparation and speaking listen through it."""
