"""Speech corpora -> JSONL rows to train on (L4).

corpora.py   folder of a known layout -> Utterance, one per recording or transcript
rows.py      Utterance -> checked clip with its row; split; files
cli.py       the command line of `prepare_dataset.py`

Needs neither torch nor MS-SWIFT nor transformers: it also runs on the machine that merely holds the corpus.
"""
