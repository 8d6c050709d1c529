"""`higgs-audio new-voice`: recordings -> a voice, by the kit's own commands, one after the other.

    RECORDINGS --prepare--> rows --doctor--> proved --sft--> adapter --evaluate--> figures, a page

places.py   the folder of a voice; options that cannot be meant
recipe.py   how much speech -> the settings of its training, as a YAML file
verdict.py  the report of a preparation -> why its data will not do
state.py    which steps are done, and with what
process.py  one command of the kit as a process; signals reach it
adapter.py  the best checkpoint -> what speaks, with its card
steps.py    the steps in their order: command line, what it hangs on, what it leaves
summary.py  what came of it, for people

Nothing is done here that a command does not do: its line is shown, and can be typed again. A step
that was interrupted goes on by its own means.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path


def run(options: Namespace) -> int:
    """The subcommand: its exit code, that of a stopped training if a signal has ended it."""
    from plugins.commands.new_voice.process import Interrupted, stoppable
    from plugins.commands.new_voice.steps import Voice, again
    from plugins.commands.new_voice.summary import summary
    from plugins.files import lock
    from plugins.training.signals import STOPPED

    voice = Voice(options)
    try:
        with stoppable():
            voice.check()
            voice.hold()
            voice.make()
    except Interrupted as stop:
        print(f"\n{stop}; the same command goes on:\n{again(sys.argv[1:])}", flush=True)
        return STOPPED
    finally:
        lock.release(Path(voice.folder) / lock.NAME)
    print(summary(voice.places, voice.state, voice.steps))
    return 0
