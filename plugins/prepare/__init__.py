"""Speech corpora -> JSONL rows to train on (L4).

clips.py          Utterance -> the clips that it gives, or why it is unfit
quality.py        the rules of that; processing.py: resampled, trimmed, levelled, augmented
run.py            in parallel and restartable; ray_executor.py: over a cluster
outputs.py        the names of all files, and whether they are this preparation's own
rows.py           clips -> rows, split, files; pairing.py, similarity.py, references.py: voices to clone from
encode.py         clips -> codes in the cache (needs torch)
report.py         what was kept and rejected
flags.py          the command line of `prepare_dataset.py`
cli.py            what it does, step after step

But for `encode.py` it needs neither torch nor MS-SWIFT nor transformers: it also runs on the
machine that merely holds the corpus."""
