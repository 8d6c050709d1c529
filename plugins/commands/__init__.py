"""Subcommands of `higgs-audio` that are more than a few lines: the map.

flags.py       flags that several of them have
speak.py       one text into a file or a pipe
speak_list.py  a list of texts into a folder, to be gone on with
app/           a page in the browser
serve.py       the speech endpoint of OpenAI's clients
serve_flags.py its flags
serving/       what answers there: HTTP -> orders -> one running batch
hosts.py       whether a request names this server: page and endpoint
new_voice/     recordings to a voice, by all the other commands in turn
evaluate.py    a model's speech scored beside its base, the codec and the recordings
preferences.py texts -> takes of each: the best ones to train on, pairs for DPO
preference_flags.py  its flags
inspect_files.py     whether audio files say that they are synthetic
doctor.py      everything that a training needs, proved before it
export.py      base and LoRA -> one folder for a server, with its model card
vllm_omni.py   what vLLM-Omni reads of such a folder
"""
