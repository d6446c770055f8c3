"""Forms of words that spelling rules give: plurals, past tenses and their like.

Half of the words are invented, as in Berko's test of what children know of grammar (Berko, 1958: one wug, two wugs): a
form that was never seen can only come from the rule.
"""

import random
import re
from itertools import product

from course_utils.data.tasks.base import Item, Task, items_from, pool, words

NOUNS = words("""
actor ant apple arch army arrow ash baby bag ball banana bank battery bay beach bear bed bee bell belt bench berry
bike bird blouse boat book bottle bowl box boy brush bus bush button cable cake camera candle car card carpet cat
chair cherry chicken church city clock cloud coat coin country crash crown cup daisy day desk diary dish dog donkey
door dress drum duck duty ear egg engine face factory fairy family fence field film finger flag floor flower fly
forest fork fox frog game garden gate girl glass guitar hammer hat hen hill horse inch island jacket jar jelly jewel
judge key king kitten lady lamp lemon letter library lion lorry lunch map match meal minute mirror monkey month moon
moth nail needle nest nurse ocean orange owl park party path patch peach pen pencil penny picture pig pillow pirate
plane plate play pocket pony pouch prize puppy queen rabbit ray river road robot rock room rose sandwich school sea
ship shoe shop song spoon spy star stone story street student table tax teacher tent ticket tiger torch tower town toy
train tray tree trumpet turkey umbrella valley village wall watch week well whale wheel window wing wish witch word
worm wrist
""")
VERBS = words("""
add agree answer arrive ask bake bark beg believe blink boil bounce brush call camp carry chase chat cheer clap clean
climb close cook copy cough cover crawl cross cry dance deny drag dress drop dry earn empty end enjoy enter fail fetch
fill fix float fold follow fry gather grab grin guess hand happen hate help hop hope hug hunt hurry invite jog join joke
jump kick kiss knock knot land laugh learn lift like listen live look love march marry mix move nail name need nod
notice obey offer open order pack paint pass pat phone place plan play pour pray press push race rain reach reply rest
rob roll rub rush sail save scan scream serve share shop shout skip slip smile snow spy stay step stir stop study talk
tap taste thank tidy tip touch trip trot try turn use visit wait walk want wash watch water wave whip whisper
wish work worry wrap yell
""")
"""Regular verbs; those of two syllables are stressed on the first or do not end in one vowel and one consonant."""
_ONSETS = words("bl dr fl gl kr pl sm sn spl skr thr v w y z")
_RIMES = words("""
ab ack ad ag ane ap arp ask atch ax ay eat eb eck ed eg elk ep ibe ick ig ime inty ip ish isp iss ob ock og olm ond oom
op ope oss ox oy ub uck ude ug ulby unk up ush utch uzz
""")
_REAL = words("bled drunk fled glad krap plap smeg snatch snuck thrash vag wed wog wop")
"""What the parts also make: irregular words, and words that nobody wants to read."""
_invented = sorted({f"{onset}{rime}" for onset, rime in product(_ONSETS, _RIMES)} - {*NOUNS, *VERBS, *_REAL})
REAL_NOUNS, REAL_VERBS = pool("word form", NOUNS), pool("word form", VERBS)
INVENTED_VERBS = pool("word form", _invented)
INVENTED_NOUNS = pool(
    "word form", [f"{'aeio'[len(word) % 4]}{word}" if place % 2 else word for place, word in enumerate(_invented)]
)
"""Words of each split, for all forms alike."""


def with_s(word: str) -> str:
    """Return the plural of a regular noun, or the third person of a regular verb.

    Args:
        word: in lower case, not ending in o, f or a single z.
    """
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def doubled(word: str) -> str:
    """Return a word as it stands before -ed and -ing: one syllable with one vowel and one consonant doubles the last.

    Args:
        word: a verb in lower case, not ending in c.
    """
    return word + word[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word) else word


def past(verb: str) -> str:
    """Return the past tense of a regular verb.

    Args:
        verb: a verb in lower case, not ending in c.
    """
    if verb.endswith("e"):
        return f"{verb}d"
    return f"{verb[:-1]}ied" if re.search(r"[^aeiou]y$", verb) else f"{doubled(verb)}ed"


def ing(verb: str) -> str:
    """Return the -ing form of a verb.

    Args:
        verb: a verb in lower case, not ending in c, ie, oe or ye.
    """
    return f"{verb[:-1]}ing" if re.search(r"[^e]e$", verb) else f"{doubled(verb)}ing"


def _noun(generator: random.Random, split: str) -> Item:
    word = generator.choice(generator.choice((REAL_NOUNS, INVENTED_NOUNS))[split])
    return word, {"plural": with_s(word), "article": f"{'an' if word[0] in 'aeiou' else 'a'} {word}"}


def _verb(generator: random.Random, split: str) -> Item:
    word = generator.choice(generator.choice((REAL_VERBS, INVENTED_VERBS))[split])
    return word, {"past": past(word), "third_person": f"she {with_s(word)}", "ing": ing(word)}


_nouns, _verbs = items_from("nouns", _noun), items_from("verbs", _verb)
_KIND = "conversion"
TASKS = (
    Task("plural", "Write the plural of the noun.", _KIND, "plural: ", "nouns", _nouns),
    Task("article", "Put a or an before the noun.", _KIND, "article: ", "nouns", _nouns, held_out=True),
    Task("past", "Write the past tense of the verb.", _KIND, "past tense: ", "verbs", _verbs),
    Task("third_person", "Write what she does.", _KIND, "third person: ", "verbs", _verbs),
    Task("ing", "Write the -ing form of the verb.", _KIND, "ing form: ", "verbs", _verbs, held_out=True),
)
