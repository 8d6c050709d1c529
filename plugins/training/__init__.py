"""What surrounds the steps of a training; the steps themselves are `plugins.trainer`.

before     arguments.py    words of the command line -> MS-SWIFT's; the line that resumes a run
           config_file.py  the YAML file of a run
           start.py        what a run lacks, in one line
           sft_help.py     `higgs-audio sft --help`, and that of `rlhf`
           options.py      what would silently train something else is refused
           preferences.py  what `rlhf` has beside: its options, its meter, the reference
           run_lock.py     one training at a time writes an output folder
           tuning.py       what MS-SWIFT's tuner options train, and whether loading finds it
           preflight/      what is about to be trained, proved before the first step
in a step  packs.py        MS-SWIFT's packs of rows
           workers.py      processes that encode and collate
           optimizer.py    base and audio learning rate
           adamw.py        AdamW whose steps arrive in bf16 weights
           meters.py       losses, padding, speed, memory between two log lines
           sick_steps.py   a loss or gradient that is no number
           exhausted.py    a disk or a GPU's memory that is full
between    saves.py        checkpoint folders: written, sealed, and which may go
           resume.py       a run that is killed and resumed equals one that is not
           samples.py      prompts that are spoken while the model trains
           stopping.py     a signal: finish the step, save, say how to go on
           card.py         the card of its folder
after      ending.py       last log line, samples, card: also of a run that was killed before them
around     launcher.py     MS-SWIFT's launcher without a process between a signal and the training
           terminal.py     what is shown, and what goes into the log of the run's folder
           signals.py      what a signal does to a process that is not in a step
"""
