"""All that knows MS-SWIFT's insides. It lies below training, which it never imports.

template.py        the one Template: short hooks that hand over to the files below
dicts.py           what MS-SWIFT carries between its hooks <-> rows and samples
code_check.py      whether cached codes still are those of their files and of this codec
dataset_loader.py  `--dataset` -> checked rows, as a table that MS-SWIFT takes
chat.py            a chat request -> a row, a speech -> a data URL
answers.py         rows -> spoken answers, in the terms of MS-SWIFT's engine
patches.py         what is replaced in MS-SWIFT, and why: one list, one version guard
"""
