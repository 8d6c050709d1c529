"""Speech corpora -> JSONL rows to train on.

cli.py            the command, step after step; summary.py: what it says
parser.py         its flags; flags.py: which of them go together
reading.py        the flags of a corpus -> its reader's entries
checking.py       a corpus -> its fit clips and all that is rejected
slicing/          recordings of any length -> utterances: cut at pauses, heard, told apart
clips.py          Utterance -> the clips that it gives, or why it is unfit
quality.py        the rules of that; processing.py: resampled, trimmed, levelled, augmented
run.py            in parallel and restartable; ray_executor.py: over a cluster
listening.py      what is heard in each clip; transcripts.py: whether that is what is written
rows.py           clips -> rows, split, files
dialogues.py      clips -> dialogues
references.py     references that rows bring along; pairing.py, similarity.py: new ones
encode.py         clips -> codes in the cache (needs torch)
report.py         what was kept and rejected; page.py: the same to be listened to
outputs.py        the names of all files, and whether they are this preparation's own

But for `encode.py` and telling voices apart it needs neither torch nor MS-SWIFT nor transformers:
it also runs on the machine that merely holds the corpus."""
