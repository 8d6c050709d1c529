"""The folder of a speech corpus -> its utterances, one by one.

Each reader yields `Utterance`, or `Rejected` where text or recording is missing or a line does not
fit, in an order that depends on the corpus alone. A fault of the whole corpus (no metadata, no such
column, another encoding) raises `UserError`. Readers open transcripts, never audio, and know
nothing about rows to be written.

utterance.py       what they yield; how the file that a corpus names is found
trees.py           VCTK, LibriTTS and LibriSpeech, a folder with a transcript beside each clip
transcripts.py     the text beside a clip
audio_folder.py    the metadata.csv that such a folder may have
leftovers.py       the files in it that are neither
kaldi.py           Kaldi's wav.scp and text
records.py         the lines of a table
recordings.py      the files that a list names, perhaps on another system
tables.py          LJSpeech, CSV and TSV, GPT-SoVITS lists
shapes.py          rows as other programs write them -> rows of ours
canonical.py       one shape for rows, for training and for jsonl.py
pairs.py           rows with a rejected answer beside the chosen one
jsonl.py           our own rows
dataset_tables.py  the tables in a Hugging Face dataset (imports `datasets` when called)
huggingface.py     a Hugging Face dataset
"""

from plugins.corpora.dataset_tables import is_dataset
from plugins.corpora.huggingface import read_huggingface
from plugins.corpora.jsonl import read_jsonl
from plugins.corpora.kaldi import read_kaldi
from plugins.corpora.tables import Columns, read_custom, read_gpt_sovits, read_ljspeech
from plugins.corpora.trees import read_folder, read_libritts, read_vctk
from plugins.corpora.utterance import Rejected, Utterance

__all__ = [
    "Columns",
    "Rejected",
    "Utterance",
    "is_dataset",
    "read_custom",
    "read_folder",
    "read_gpt_sovits",
    "read_huggingface",
    "read_jsonl",
    "read_kaldi",
    "read_libritts",
    "read_ljspeech",
    "read_vctk",
]
