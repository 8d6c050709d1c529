"""Sentences to train the codec on, from word lists and patterns of our own; heldout.txt has those
to test it on."""

from __future__ import annotations

import random
import re
from pathlib import Path

from plugins.files.lines import text_lines

HELD_OUT = Path(__file__).with_name("heldout.txt")

_WORDS = {
    "noun": """
        apple arch arrow badge bag ball bank barn basin basket beach beam bear bed bell belt bench
        bird blanket blouse boat bone book bottle bow bowl box boy branch bread breeze brick bridge
        broom brush bucket bus bush butter button cabin cage cake calf camel camp candle canoe cap
        car card carpet cart cat chain chair chalk chart cheese chest chicken child church city
        clock cloth cloud coach coast coat coin collar comb cook copper corn couch cow crane cream
        crow crowd crown cup curtain deer desk dish dog doll donkey door dove dragon drawer dress
        drum duck dust eagle ear edge egg elbow engine eye face fan farm feather fence fern field
        finger fire fish flag flame flask floor flower fly fog forest fork fox frame frog fruit
        garden gate girl glass globe glove goat goose grape grass guard guest guitar gull hammer
        hand harbor harp hat hawk hill hook horn horse hotel house ice ink island jacket jar jewel
        judge jug juice kettle key king kitchen kite knee knife knot ladder lake lamb lamp lane lark
        lawn leaf leather lemon letter lid light lion lock log machine map market mask match meadow
        meal menu milk mill mirror moon moth mountain mouse mouth mule museum mushroom nail neck
        needle nest net noise nose novel nut oak oar ocean office oil onion orange oven owl page
        paint palm pan paper parcel park path peach pear pebble pen pencil piano picture pie pig
        pigeon pillow pilot pipe plane plate plough pocket poem pond pony porch potato prize puddle
        purse puzzle queen rabbit radio rain rake ring river road robe robin rock roof room rope
        rose rug sack sail salt sand saw school seal seat shadow sheep sheet shelf shell ship shirt
        shoe shop shovel sign silk singer sister skirt sky snake snow soap sofa song soup spider
        spoon spring square stable stair star statue steam stick stone store storm stove straw
        stream street string sugar suit sun swan table tailor tea teacher tent theater thief thorn
        thread throne thumb ticket tiger toast tooth torch towel tower town toy track train tray
        treasure tree trunk tulip tunnel turkey umbrella uncle valley van vase vest village vine
        violin visitor voice wagon waiter wall watch water wave wheel whistle widow window wing
        winter wolf wood wool worker yacht yard
    """,
    "adjective": """
        ancient angry bitter black blue bold brave brief bright broken brown busy calm cheap clean
        clear clever cold cool crisp curved damp dark deep dim dirty dry dull dusty early eager
        empty faint fair famous fast fat fine firm flat fresh gentle giant glad golden grand gray
        great green happy hard heavy high hollow honest hot huge hungry idle jolly kind large late
        lazy light little lonely long loose loud low lucky mild modern muddy narrow neat new noisy
        odd old open pale patient plain polite poor pretty proud pure purple quick quiet rapid rare
        raw rich ripe rough round royal rusty sad safe salty shallow sharp shiny short shy silent
        silver simple sleepy slim slow small smart smooth soft solid sour square stale steep stiff
        strange strong sweet tall tame tender thick thin tiny tired ugly useful vast warm weak wet
        white wide wild wise wooden yellow young
    """,
    "did": """
        admired avoided bought borrowed broke brought brushed built buried burned carried carved
        caught chased checked chose cleaned closed collected counted covered crossed dragged drew
        dropped emptied examined filled finished fixed followed forgot found gathered guarded heard
        held helped hid hired ignored joined judged kept kicked kissed left lifted liked loaded lost
        loved made measured mended met missed moved needed noticed offered opened ordered owned
        packed painted passed placed planned pointed praised pressed pulled pushed raised reached
        remembered repaired returned rolled saved searched sent served shared shook showed shut
        sketched sold stole studied swept taught thanked threw tied took touched traded trusted
        turned used valued visited wanted warned washed watched welcomed wiped wrapped
    """,
    "went": """
        appeared arrived bounced broke climbed collapsed danced drifted faded fell flew floated
        froze grew hid hopped hurried jumped landed laughed leaned marched melted moved paused
        played ran rested rolled rose sailed sang sank shone shook slept slid slipped smiled stayed
        stood stopped stumbled swam traveled trembled turned vanished waited walked wandered
        whispered worked yawned
    """,
    "adverb": """
        again alone always badly bravely calmly carefully cheerfully early easily gladly gently
        happily heavily here kindly loudly neatly nearby often outside politely proudly quickly
        quietly safely silently slowly softly sometimes soon suddenly there together twice upstairs
        well yesterday
    """,
    "preposition": """
        above across against along among around before behind below beneath beside between beyond by
        down from in inside into near off on onto outside over past through toward under up with
        without
    """,
    "number": """
        one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
        sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    """,
    "time": """
        Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May
        June July August September October November December
    """,
    "person": "he she they we everyone nobody somebody",
    "owner": "my your his her our their",
    "verb": """
        answer believe bring buy carry change choose climb close count cover cut draw drink drive
        eat enjoy explain fetch fill find finish fix follow forget give guess hear help hide hold
        imagine join keep know learn leave lift like listen look make measure mention move notice
        offer open order paint plan play please prove pull push read remember repeat rest return say
        search sell send share show sing sit sleep smell speak stand start stay teach tell think
        touch travel try turn understand use visit wait walk want warm wash watch wear win wish work
        write
    """,
}
_PATTERNS = """
    The {adjective} {noun} {went} {preposition} the {noun}.
    The {noun} {went} {adverb} {preposition} the {adjective} {noun}.
    {person} {did} the {adjective} {noun} {preposition} the {noun}.
    {person} {did} {owner} {noun} and {went} {adverb}.
    A {adjective} {noun} and a {adjective} {noun} {went} {preposition} {owner} {noun}.
    The {noun} of the {noun} is {adjective} and {adjective}.
    {owner} {noun} {did} a {adjective} {noun} on {time}.
    {number} {adjective} men {did} the {noun} {preposition} the {noun}.
    Please {verb} the {noun} before you {verb} the {noun}.
    Did {person} {verb} the {adjective} {noun} last {time}?
    We will {verb} {number} or {number} times in {time}.
    If you {verb} {adverb}, the {noun} will be {adjective}.
    Never {verb} {preposition} a {adjective} {noun}.
    When the {noun} {went}, the {noun} was {adjective}.
    It was a {adjective} {noun}, but {person} {did} it {adverb}.
    There were {number} of them {preposition} the {adjective} {noun}.
    {person} {did} the {noun}, the {noun} and the {noun}.
    Why would {person} {verb} such a {adjective} {noun}?
    {adverb}, the {adjective} {noun} {did} {owner} {noun}.
    On {time} {person} {went} {preposition} the {noun} with {owner} {noun}.
"""


def training(count: int, *, seed: int) -> list[str]:
    """`count` different sentences: grammatical, hardly sensible, every word as likely as every
    other of its kind."""
    draw = random.Random(seed)
    words = {kind: text.split() for kind, text in _WORDS.items()}
    patterns = list(map(str.strip, _PATTERNS.strip().split("\n")))
    forbidden = set(held_out())
    sentences: dict[str, None] = {}  # ordered, and none twice
    while len(sentences) < count:
        # All patterns in turn, so that each is as frequent as any other.
        sentence = patterns[len(sentences) % len(patterns)]
        while "{" in sentence:
            kind = sentence[sentence.index("{") + 1 : sentence.index("}")]
            sentence = sentence.replace(f"{{{kind}}}", draw.choice(words[kind]), 1)
        # "an apple", but nothing for words that are only said so: "a honest", "an useful".
        sentence = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
        sentence = sentence[0].upper() + sentence[1:]
        if sentence not in forbidden:
            sentences[sentence] = None
    return list(sentences)


def held_out() -> list[str]:
    """Sentences no part of the codec is fitted to."""
    return [line for _, line in text_lines(HELD_OUT)]
