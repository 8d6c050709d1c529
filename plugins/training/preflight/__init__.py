"""What is about to be trained, proved on the user's own model and rows. L3.

report.py           findings of checks, one line each
environment.py      versions and optional parts
labels.py           the batch of one row against an oracle of its own; shown readably
probe.py            cross-entropies that only the right labels, codes and texts give
leaks.py            the same audio where it must not be
plan.py             what of a command decides about GPU memory
memory.py           GPU memory of a plan
before_training.py  the checks that each training run makes before its first step
dry_run.py          what would be trained, how, and in how much memory
doctor.py           all of them: `higgs-audio doctor`
"""
