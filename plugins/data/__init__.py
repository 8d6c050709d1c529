"""A row -> what the model reads of it.

    source --sources--> canonical row --rows--> Dialogue --clips--> with codes --prompt--> ids

wording.py   the fixed sentences of a prompt
text.py      texts as the model was shown them; long texts in pieces
tokens.py    the ids of the special tokens
dialogue.py  the nouns: clip, turn, reference, dialogue, encoded sample
scene.py     scene tags, voices in words, the numbers of speakers
codes.py     the paths and codes of a row -> clips
rows.py      a canonical row (`plugins.corpora.canonical`) -> Dialogue
clips.py     headers, codes and waveforms of a dialogue's clips
prompt.py    Dialogue -> ids and labels
sources.py   a JSONL file, a folder or a dataset -> checked rows
"""
