"""Did it learn to speak? Texts spoken by several systems -> scores side by side, with intervals.

    items --speaking, run--> clips --scorers--> heard --scores--> rows --statistics--> summary

items.py        test rows -> what each system has to say, and in whose voice
formats.py      Seed-TTS-eval's `meta.lst` and VERSA's `wav.scp` and `text`, read and written
speaking.py     the systems (base, tuned ...), and batches of prompts -> speeches or failures
journal.py      what is done, through any kill
run.py          the resumable work: every clip is spoken once and heard once, through any kill
scores.py       what was heard -> scores of each item
taking.py       several takes of each text, resumable, by several processes
winners.py      takes, heard -> the best one, and a pair for DPO, as rows
statistics.py   scores of items -> means with 95 % intervals, and paired differences
report.py       per-item JSONL, summary.json, Markdown
plots.py        pictures of both
page.py         a page to listen to them all
"""
