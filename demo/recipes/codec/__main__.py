"""`python -m demo.recipes.codec`: corpus, training, weights. Two cores, two hours; killed, it goes
on where it was.

Needs flite (apt-get install flite). Works in output_codec/, writes demo/codec/.
"""

from __future__ import annotations

import sys

from demo.recipes.codec import corpus, network, sentences, training
from demo.run import CODEC, ROOT
from plugins.errors import UserError

WORK = ROOT / "output_codec"


def main() -> int:
    recipe = training.Recipe()
    num_voices = len(corpus.VOICES)
    texts = sentences.training(recipe.sentences * num_voices, seed=recipe.seed)
    samples = WORK / "samples.npy"
    # Each voice says sentences of its own, so that the codec hears twice as many.
    of_voice = {voice: texts[i::num_voices] for i, voice in enumerate(corpus.VOICES)}
    corpus.synthesise(samples, of_voice)
    network.save(training.train(recipe, samples, WORK), CODEC)
    training.write_curves(WORK, CODEC / "loss.csv")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
