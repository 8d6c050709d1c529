"""The base that reads and how it came to be: `python -m demo.recipes.base` trains it, `.evaluate`
judges it.

words.txt      the closed vocabulary, by what a word can do in a phrase; patterns of phrases
heldout.txt    sentences over it of which training has no four words in a row
unknown.txt    sentences with words that are not in it
phrases.py     vocabulary -> phrases, half of them grammatical, half words in any order
flite.py       phrase -> speech and the end of each word, through flite's C library
moved.py       a voice's latents -> codes of a voice that nobody has
corpus.py      phrases -> clips of named voices and others: codes, and the end of each word
samples.py     clips -> samples of training: phrases joined, turns of one voice
network.py     a token for each word; the real class, nine million parameters
guide.py       a loss that shows some heads of attention which word is being said
training.py    the loop: prompt, collator, model and losses of the kit; resumes
evaluate.py    what the model says -> word error rate and stop rate per voice; its card
"""
