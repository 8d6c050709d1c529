"""What is about to be trained, proved on the user's own model and rows: the map.

report.py           findings of checks, one line each
environment.py      versions and optional parts
codec.py            a clip there and back, given codes against the codec's
labels.py           the batch of one row against an oracle of its own; shown readably
probe.py            cross-entropies that only the right labels, codes and texts give
packed.py           rows of one sequence, which must not see each other
leaks.py            the same audio where it must not be
uncoded.py          rows whose clips the CPU has to encode while a GPU waits
plan.py             what of a command decides about GPU memory
memory.py           GPU memory of a plan
before_training.py  the checks that each training run makes before its first step
plan_lines.py       what is about to be done, and at the end how to speak with it
dry_run.py          what would be trained, how, and in how much memory

`higgs-audio doctor` (`plugins.commands.doctor`) makes them without a training.
"""
