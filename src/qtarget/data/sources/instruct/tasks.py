"""What is asked for, and the right answer to it, however that is to be written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from qtarget.data.sources.instruct import lexicon

LIST, NUMBERS, TEXT, VERBATIM, COUNT = "list", "numbers", "text", "verbatim", "count"
"""Kinds of answers: a list of words or of numbers, a text, one whose letters must not be touched, a number."""


@dataclass(frozen=True)
class Task:
    """request: the instruction. pieces: the right answer, the items of a list or one text or number."""

    request: str
    pieces: tuple[str, ...]
    kind: str


def copy_list(rng: Random) -> Task:
    items = _items(rng)
    return _task(rng, ("Copy this list: {items}.", "Repeat these words: {items}."), items, LIST, items=_listed(items))


def copy_sentence(rng: Random) -> Task:
    sentence = _sentence(rng)
    templates = ('Repeat this sentence: "{sentence}".', 'Copy the sentence "{sentence}".')
    return _task(rng, templates, [sentence], TEXT, sentence=sentence)


def pick(rng: Random) -> Task:
    category, odd, others = _odd_one(rng)
    items = _shuffled(rng, [odd, *others])
    templates = (
        "Which of these is the {category}: {items}?",
        "Find the {category} in this list: {items}.",
        "Here are some words: {items}. Which one is the {category}?",
    )
    return _task(rng, templates, [odd], TEXT, category=category, items=_listed(items))


def sort_words(rng: Random) -> Task:
    items = _items(rng)
    templates = (
        "Sort these words alphabetically: {items}.",
        "Put these words in alphabetical order: {items}.",
        "Here are some words: {items}. Sort them from A to Z.",
    )
    return _task(rng, templates, sorted(items), LIST, items=_listed(items))


def sort_backwards(rng: Random) -> Task:
    items = _items(rng)
    templates = ("Sort these words from Z to A: {items}.", "Put these words in reverse alphabetical order: {items}.")
    return _task(rng, templates, sorted(items, reverse=True), LIST, items=_listed(items))


def sort_by_length(rng: Random) -> Task:
    by_length = {len(word): word for word in _shuffled(rng, lexicon.NOUNS)}
    items = rng.sample(list(by_length.values()), rng.randint(3, 4))
    templates = (
        "Sort these words from shortest to longest: {items}.",
        "Order these words by length, shortest first: {items}.",
    )
    return _task(rng, templates, sorted(items, key=len), LIST, items=_listed(items))


def sort_up(rng: Random) -> Task:
    numbers = _numbers(rng)
    templates = (
        "Sort these numbers from smallest to largest: {items}.",
        "Put these numbers in ascending order: {items}.",
    )
    return _task(rng, templates, map(str, sorted(numbers)), NUMBERS, items=_listed(numbers))


def sort_down(rng: Random) -> Task:
    numbers = _numbers(rng)
    templates = (
        "Sort these numbers from largest to smallest: {items}.",
        "Put these numbers in descending order: {items}.",
    )
    return _task(rng, templates, map(str, sorted(numbers, reverse=True)), NUMBERS, items=_listed(numbers))


def reverse(rng: Random) -> Task:
    items = _items(rng)
    templates = (
        "Reverse the order of this list: {items}.",
        "Give these words in the opposite order: {items}.",
        "Write this list with the last word first and the first word last: {items}.",
    )
    return _task(rng, templates, items[::-1], LIST, items=_listed(items))


def count_letter(rng: Random) -> Task:
    word = rng.choice(lexicon.NOUNS)
    letter = rng.choice(word) if rng.random() < 0.9 else rng.choice("abcdefghiklmnoprstu")
    templates = (
        'How many times does the letter "{letter}" occur in the word "{word}"?',
        'Count the letter "{letter}" in the word "{word}".',
    )
    return _task(rng, templates, [str(word.count(letter))], COUNT, letter=letter, word=word)


def count_letters(rng: Random) -> Task:
    word = rng.choice(lexicon.NOUNS + lexicon.ADJECTIVES)
    templates = ('How many letters does the word "{word}" have?', 'Count the letters of the word "{word}".')
    return _task(rng, templates, [str(len(word))], COUNT, word=word)


def count_words(rng: Random) -> Task:
    sentence = _sentence(rng)
    templates = (
        'How many words does this sentence have: "{sentence}"?',
        'Count the words of the sentence "{sentence}".',
    )
    return _task(rng, templates, [str(len(sentence.split()))], COUNT, sentence=sentence)


def count_word(rng: Random) -> Task:
    word, *others = rng.sample(lexicon.NOUNS, 3)
    items = _shuffled(rng, [word] * rng.randint(1, 5) + others)
    templates = (
        'How often does "{word}" stand in this list: {items}?',
        'Count how often "{word}" stands in this list: {items}.',
    )
    return _task(rng, templates, [str(items.count(word))], COUNT, word=word, items=_listed(items))


def count_category(rng: Random) -> Task:
    category, other = rng.sample(list(lexicon.CATEGORIES), 2)
    members = rng.sample(lexicon.CATEGORIES[category], rng.randint(1, 4))
    items = _shuffled(rng, members + rng.sample(lexicon.CATEGORIES[other], rng.randint(1, 3)))
    templates = ("How many of these are {category}s: {items}?", "Count the {category}s in this list: {items}.")
    return _task(rng, templates, [str(len(members))], COUNT, category=category, items=_listed(items))


def replace_word(rng: Random) -> Task:
    sentence = _sentence(rng)
    old = rng.choice([word for word in sentence.split() if word in lexicon.NOUNS + lexicon.ADJECTIVES])
    new = rng.choice([word for word in lexicon.NOUNS + lexicon.ADJECTIVES if word not in sentence.split()])
    changed = " ".join(new if word == old else word for word in sentence.split())
    templates = (
        'Replace "{old}" with "{new}" in this sentence: "{sentence}".',
        'In the sentence "{sentence}", change "{old}" to "{new}".',
    )
    return _task(rng, templates, [changed], TEXT, old=old, new=new, sentence=sentence)


def remove_word(rng: Random) -> Task:
    items = _items(rng)
    word = rng.choice(items)
    templates = ('Remove "{word}" from this list: {items}.', 'Write this list without "{word}": {items}.')
    return _task(rng, templates, [item for item in items if item != word], LIST, word=word, items=_listed(items))


def remove_category(rng: Random) -> Task:
    category, odd, others = _odd_one(rng)
    items = [*others]
    items.insert(rng.randint(0, len(others)), odd)
    templates = ("Remove the {category} from this list: {items}.", "Write this list without the {category}: {items}.")
    return _task(rng, templates, others, LIST, category=category, items=_listed(items))


def remove_vowels(rng: Random) -> Task:
    word = rng.choice(lexicon.NOUNS)
    templates = (
        'Remove all vowels (a, e, i, o, u) from the word "{word}".',
        'Write the word "{word}" without its vowels (a, e, i, o, u).',
    )
    return _task(rng, templates, ["".join(letter for letter in word if letter not in "aeiou")], TEXT, word=word)


def join_words(rng: Random) -> Task:
    items, mark = _items(rng), rng.choice("-+/*=~")
    templates = (
        'Join these words with "{mark}" and no spaces: {items}.',
        'Write these words as one, with "{mark}" between them and no spaces: {items}.',
    )
    return _task(rng, templates, [mark.join(items)], VERBATIM, mark=mark, items=_listed(items))


def first_letters(rng: Random) -> Task:
    items = _items(rng)
    templates = (
        "Join the first letters of these words, without spaces: {items}.",
        "Take the first letter of each of these words and write them as one word: {items}.",
    )
    return _task(rng, templates, ["".join(item[0] for item in items)], TEXT, items=_listed(items))


def capitalise(rng: Random) -> Task:
    sentence = _sentence(rng)
    templates = (
        'Begin each word of this sentence with a capital letter: "{sentence}".',
        'Write the sentence "{sentence}" with the first letter of each word in upper case.',
    )
    return _task(rng, templates, [sentence.title()], VERBATIM, sentence=sentence)


def capitals(rng: Random) -> Task:
    sentence = _sentence(rng)
    templates = (
        'Write this sentence in capital letters: "{sentence}".',
        'Turn the sentence "{sentence}" into upper case.',
    )
    return _task(rng, templates, [sentence.upper()], VERBATIM, sentence=sentence)


def repeat(rng: Random) -> Task:
    word, times = rng.choice(lexicon.NOUNS), rng.randint(2, 5)
    templates = ('Write the word "{word}" {times} times.', 'Say "{word}" {times} times.')
    return _task(rng, templates, [word] * times, LIST, word=word, times=times)


def spell_backwards(rng: Random) -> Task:
    word = rng.choice([word for word in lexicon.NOUNS if len(word) <= 6])
    templates = (
        'Spell the word "{word}" backwards.',
        'Write the letters of "{word}" in reverse order, without spaces.',
    )
    return _task(rng, templates, [word[::-1]], TEXT, word=word)


Maker = Callable[[Random], Task]

ECHOES: tuple[Maker, ...] = (copy_list, copy_sentence, pick)
"""Nothing hard is asked: for problems whose point is the form of the answer."""
ORDER: tuple[Maker, ...] = (sort_words, sort_backwards, sort_by_length, sort_up, sort_down, reverse)
COUNTING: tuple[Maker, ...] = (count_letter, count_letters, count_words, count_word, count_category)
TRANSFORMATION: tuple[Maker, ...] = (
    replace_word,
    remove_word,
    remove_category,
    remove_vowels,
    join_words,
    first_letters,
    capitalise,
    capitals,
    repeat,
    spell_backwards,
)


def _task(rng: Random, templates: tuple[str, ...], pieces: Iterable[str], kind: str, **values: object) -> Task:
    return Task(rng.choice(templates).format(**values), tuple(pieces), kind)


def _items(rng: Random) -> list[str]:
    return rng.sample(lexicon.NOUNS, rng.randint(3, 5))


def _numbers(rng: Random) -> list[int]:
    return rng.sample(range(1, 100), rng.randint(3, 5))


def _sentence(rng: Random) -> str:
    """Five to twelve words, none of its nouns or adjectives twice."""
    adjectives, nouns = rng.sample(lexicon.ADJECTIVES, 2), rng.sample(lexicon.NOUNS, 2)
    subject, other = (
        f"the {adjective} {noun}" if rng.random() < 0.5 else f"the {noun}"
        for adjective, noun in zip(adjectives, nouns, strict=True)
    )
    location = f" {rng.choice(lexicon.PLACES)}" if rng.random() < 0.5 else ""
    return f"{subject} {rng.choice(lexicon.VERBS)} {other}{location}"


def _odd_one(rng: Random) -> tuple[str, str, list[str]]:
    """A category, one word of it, and two to four words of another."""
    category, other = rng.sample(list(lexicon.CATEGORIES), 2)
    odd = rng.choice(lexicon.CATEGORIES[category])
    return category, odd, rng.sample(lexicon.CATEGORIES[other], rng.randint(2, 4))


def _shuffled(rng: Random, items: Sequence[str]) -> list[str]:
    return rng.sample(list(items), len(items))


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
