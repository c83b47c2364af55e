"""The words that problems are made of: everyday, lower case, ASCII, each in one list only."""

from __future__ import annotations


def _split(text: str, by: str | None = None) -> list[str]:
    return [word.strip() for word in text.split(by)]


CATEGORIES = {
    "animal": _split("""
        horse tiger camel otter eagle mouse sheep zebra rabbit lizard donkey falcon spider turtle monkey penguin
        dolphin hamster giraffe squirrel"""),
    "fruit": _split("""
        apple mango grape peach lemon melon cherry banana papaya apricot plum pear fig lime raspberry coconut quince
        nectarine strawberry pineapple"""),
    "tool": _split("""
        hammer saw drill wrench shovel ladder chisel pliers rake axe screwdriver trowel crowbar sickle spanner mallet
        anvil tweezers scissors wheelbarrow"""),
    "musical instrument": _split("""
        piano violin flute guitar trumpet drum harp cello banjo clarinet tuba organ oboe ukulele trombone xylophone
        mandolin bassoon accordion saxophone"""),
    "vehicle": _split("""
        bus train bicycle tram lorry canoe ferry scooter helicopter rocket sledge tractor van ship glider taxi yacht
        motorcycle submarine carriage"""),
    "profession": _split("""
        baker nurse pilot farmer teacher lawyer tailor dentist plumber waiter judge gardener butcher librarian
        carpenter surgeon barber chemist sailor painter"""),
}
NOUNS = [word for words in CATEGORIES.values() for word in words]
ADJECTIVES = _split("""
    small big old young quick slow happy tired quiet loud clever brave calm polite hungry friendly famous honest lucky
    gentle""")
VERBS = _split("watches follows finds likes helps draws paints remembers calls chases greets admires")
PLACES = _split(
    """in the garden; near the river; at the station; behind the house; on the hill; after lunch; every morning;
    before sunset; at the market; in the rain""",
    by=";",
)
NAMES = _split("""
    Mia Omar Lena Ravi Sofia Kenji Nora Tomas Aisha Pedro Ingrid Samir Julia Mateo Priya Viktor Amara Oskar Leila
    Hugo""")
CITIES = _split("""
    Oslo Lima Cairo Madrid Toronto Nairobi Vienna Osaka Lisbon Dublin Warsaw Athens Havana Jakarta Helsinki Prague
    Bogota Seoul Delhi Boston""")
