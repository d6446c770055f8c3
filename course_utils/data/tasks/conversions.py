"""Conversions between formats: dates, times of day, numbers and units, each with one right answer that a rule gives."""

import calendar
import random

from course_utils.data.tasks.base import Item, Task, fits, items_from, words

MONTHS = tuple(calendar.month_name[1:])
_ONES = words("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""")
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
UNITS = {"km": ("m", 1000), "m": ("cm", 100), "kg": ("g", 1000), "l": ("ml", 1000), "euros": ("cents", 100)}
"""Unit to the smaller one, and how many of those it is."""


def date_formats(year: int, month: int, day: int) -> dict[str, str]:
    """Return a date in the formats iso, long, dots and american.

    Args:
        year: year, four digits.
        month: month, from 1.
        day: day, from 1.
    """
    name = MONTHS[month - 1]
    return {
        "iso": f"{year}-{month:02}-{day:02}",
        "long": f"{day} {name} {year}",
        "dots": f"{day:02}.{month:02}.{year}",
        "american": f"{name} {day}, {year}",
    }


def number_words(number: int) -> str:
    """Return a number in British words, such as "three hundred and forty-two".

    Args:
        number: from 0 to 9999.

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number <= 9999:
        raise ValueError(f"number={number}: expected 0 to 9999")
    if number < 20:
        return _ONES[number]
    if number < 100:
        ones = number % 10
        return _TENS[number // 10 - 2] + (f"-{_ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    joint = " and " if 0 < rest < 100 else " "
    return f"{number_words(number // size)} {name}" + (joint + number_words(rest) if rest else "")


def ordinal(number: int) -> str:
    """Return a number as an ordinal in digits, such as "342nd".

    Args:
        number: a number of 0 or more.
    """
    last = 0 if 10 <= number % 100 < 20 else number % 10
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }".replace(" ", "")


def clock_words(hour: int, minute: int) -> str:
    """Return a time of day as one says it: "quarter past three", "ten to four", "noon" being "twelve o'clock".

    Args:
        hour: 0 to 23.
        minute: 0 to 59.
    """
    before, distance = ("past", minute) if minute <= 30 else ("to", 60 - minute)
    named = _ONES[(hour + (minute > 30) - 1) % 12 + 1]
    if not minute:
        return f"{named} o'clock"
    return f"{ {15: 'quarter', 30: 'half'}.get(distance) or number_words(distance) } {before} {named}".strip()


def _date(generator: random.Random) -> dict[str, str]:
    year, month = generator.randint(1950, 2049), generator.randint(1, 12)
    return date_formats(year, month, generator.randint(1, calendar.monthrange(year, month)[1]))


def _iso_date(generator: random.Random, split: str) -> Item | None:
    date = _date(generator)
    answers = {"date_long": date["long"], "date_dots": date["dots"], "date_american": date["american"]}
    return (date["iso"], answers) if fits(split, [("date", date["iso"])]) else None


def _written_date(generator: random.Random, split: str) -> Item | None:
    date = _date(generator)
    text = date[generator.choice(("long", "dots"))]
    return (text, {"date_iso": date["iso"]}) if fits(split, [("date", date["iso"])]) else None


def _time(generator: random.Random, split: str) -> Item | None:
    hour, minute = generator.randrange(24), generator.randrange(60)
    text = f"{hour:02}:{minute:02}"
    answers = {
        "clock_12": f"{(hour - 1) % 12 + 1}:{minute:02} {'pm' if hour >= 12 else 'am'}",
        "clock_words": clock_words(hour, minute),
        "clock_french": f"{hour} h {minute:02}",
    }
    return (text, answers) if fits(split, [("time", text)]) else None


def _number(generator: random.Random) -> int:
    return generator.randrange(10 ** generator.choice((1, 2, 3, 3, 4, 4)))


def _digits(generator: random.Random, split: str) -> Item | None:
    number = _number(generator)
    answers = {
        "number_words": number_words(number),
        "digit_names": " ".join(_ONES[int(digit)] for digit in str(number)),
        "ordinal": ordinal(number),
        "parity": "odd" if number % 2 else "even",
    }
    return (str(number), answers) if fits(split, [("number", str(number))]) else None


def _spelled(generator: random.Random, split: str) -> Item | None:
    number = _number(generator)
    return (number_words(number), {"number_digits": str(number)}) if fits(split, [("number", str(number))]) else None


def _amount(generator: random.Random, split: str) -> tuple[str, str] | None:
    """Draw an amount of one to three digits, some with a tenth; return it in the larger and in the smaller unit."""
    unit = generator.choice(tuple(UNITS))
    smaller, factor = UNITS[unit]
    tenths = generator.randrange(1, 100) if generator.random() < 0.5 else 10 * generator.randrange(1, 1000)
    amount = f"{tenths // 10}.{tenths % 10}" if tenths % 10 else str(tenths // 10)
    large = f"{amount} {unit}"
    return (large, f"{tenths * factor // 10} {smaller}") if fits(split, [("amount", large)]) else None


def _smaller(generator: random.Random, split: str) -> Item | None:
    found = _amount(generator, split)
    return found and (found[0], {"smaller_unit": found[1]})


def _larger(generator: random.Random, split: str) -> Item | None:
    found = _amount(generator, split)
    return found and (found[1], {"larger_unit": found[0]})


_dates, _written = items_from("dates", _iso_date), items_from("written dates", _written_date)
_times, _numbers = items_from("times", _time), items_from("numbers", _digits)
_spellings = items_from("spelled numbers", _spelled)
_large, _small = items_from("large units", _smaller), items_from("small units", _larger)
_KIND = "conversion"
TASKS = (
    Task("date_long", "Write the date with the month's name.", _KIND, "date in words: ", "dates", _dates),
    Task("date_dots", "Write the date with dots.", _KIND, "date with dots: ", "dates", _dates),
    Task("date_american", "Write the date, month first.", _KIND, "american date: ", "dates", _dates, held_out=True),
    Task("date_iso", "Write the date as year-month-day.", _KIND, "iso date: ", "written dates", _written),
    Task("clock_12", "Write the time with am or pm.", _KIND, "12-hour clock: ", "times", _times),
    Task("clock_words", "Say the time.", _KIND, "time in words: ", "times", _times),
    Task("clock_french", "Write the time as in French.", _KIND, "french clock: ", "times", _times, held_out=True),
    Task("number_words", "Write the number in words.", _KIND, "number in words: ", "numbers", _numbers),
    Task("digit_names", "Name the digits one by one.", _KIND, "digits by name: ", "numbers", _numbers),
    Task("ordinal", "Write the ordinal number.", _KIND, "ordinal: ", "numbers", _numbers, held_out=True),
    Task(
        "parity",
        "Is the number odd or even?",
        _KIND,
        "odd or even: ",
        "numbers",
        _numbers,
        labels=("even", "odd"),
        held_out=True,
    ),
    Task("number_digits", "Write the number in digits.", _KIND, "number in digits: ", "spelled numbers", _spellings),
    Task("smaller_unit", "Convert to the smaller unit.", _KIND, "smaller unit: ", "large units", _large),
    Task("larger_unit", "Convert to the larger unit.", _KIND, "larger unit: ", "small units", _small, held_out=True),
)
