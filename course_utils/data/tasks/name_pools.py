"""Names of people and towns, many of them composed, so that a model must read names and cannot know them by heart.

Towns and family names end alike (Berg, Halden, Norwick...), so that a name alone does not tell what it names. One name
in six is held out: no training item of any task contains it.
"""

import random
from itertools import product

from course_utils.data.tasks.base import pool, words

_GIVEN = words("""
Ada Adam Agnes Ahmed Aisha Alma Amir Anna Anton Astrid Ben Bianca Boris Bruno Carla Carmen Chen Clara Daniel David
Diego Dina Edgar Elena Elias Ella Emil Emma Erik Esther Eva Farah Felix Fiona Frank Fritz Gina Greta Hana Hans Helen
Hugo Ida Igor Ines Ivan Jack Jana Jonas Judith Julia Karim Karl Kenji Kira Lars Laura Leila Leo Lina Louis Lucy Maria
Marco Marta Max Maya Mina Mohan Nadia Nina Noah Nora Olga Omar Oscar Otto Paula Pedro Petra Priya Rahul Rita Robert
Rosa Ruth Sam Sara Selma Simon Sofia Sven Tara Theo Tom Ursula Vera Victor Wanda Yuki Zara Zoe
""")
_SURNAMES = words("""
Adler Baker Bauer Becker Berg Brandt Brown Carter Chavez Costa Cruz Diaz Evans Fischer Fuchs Garcia Gomez Gray Haas
Hansen Hill Jansen Jones Kaya Keller Khan Kim Klein Kumar Lang Larsen Lee Lopez Martin Meyer Moreno Nagy Novak Olsen
Patel Perez Quinn Reed Roth Russo Santos Sato Silva Singh Stone Tanaka Turner Vogel Wagner Walker Weber West Wolf Young
""")
_TOWNS = words("""
Accra Athens Basel Bergen Berlin Bogota Boston Bremen Brno Cairo Chicago Cork Dakar Delhi Denver Dublin Florence Geneva
Ghent Hamburg Hanoi Havana Helsinki Jakarta Kobe Krakow Kyoto Lagos Leeds Leipzig Lima Lisbon London Lyon Madrid Malaga
Manila Milan Mumbai Nairobi Naples Oslo Paris Porto Prague Quito Riga Rome Seoul Seville Tampere Tokyo Turin
Utrecht Valencia Verona Vienna Warsaw Zagreb
""")
_FIRST = words("Al Be Ca Da El Fa Gi Ha Jo Ka Lo Ma Ne Or Pa Ri Sa Ta Vi Ze")
_LAST = words("bel dan dra fina lia lin mir na nara ric ro san ta ven vid zo")
_STARTS = words("Ald Bran Carl Dan East Fal Grim Hal Inger Kar Lind Mar Nor Os Pel Ros Silver Stam Tor Ulm Var Wal Win")
_ENDS = words("berg burg by dal den feld ford ham holm lund mer mond ow ridge stad ton vik wald wick worth")

_composed = [f"{start}{end}" for start, end in product(_STARTS, _ENDS)]
GIVEN = pool("given name", [*_GIVEN, *(f"{first}{last}" for first, last in product(_FIRST, _LAST))])
"""Given names of each split."""
SURNAMES = pool("family name", [*_SURNAMES, *_composed])
"""Family names of each split."""
TOWNS = pool("family name", [name for name in [*_TOWNS, *_composed] if name not in _GIVEN])
"""Towns of each split; the composed ones are family names, too, and belong to the same split in both uses."""
FIRMS = ("Bank", "Motors", "Press", "Foods", "Airlines", "Studio")
"""The second words of firms; the first is a family name or a town."""


def person(generator: random.Random, split: str) -> str:
    """Draw a full name.

    Args:
        generator: the source of chance.
        split: ``train`` or ``held_out``.
    """
    return f"{generator.choice(GIVEN[split])} {generator.choice(SURNAMES[split])}"


def firm(generator: random.Random, split: str) -> str:
    """Draw the name of a firm, such as "Oslo Bank" or "Berg Motors".

    Args:
        generator: the source of chance.
        split: ``train`` or ``held_out``.
    """
    return f"{generator.choice(generator.choice((SURNAMES, TOWNS))[split])} {generator.choice(FIRMS)}"
