"""The words of the generated tasks, by category. A word stands in one category only."""

# ruff: noqa: E501

CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "animal": "dog cat horse cow sheep goat pig lion tiger bear wolf fox rabbit mouse camel zebra monkey elephant donkey deer",
        "bird": "eagle owl crow robin sparrow pigeon swan duck goose hawk parrot heron stork raven penguin ostrich falcon wren magpie turkey",
        "fish": "salmon trout tuna carp herring shark cod pike perch eel sardine bass halibut mackerel anchovy sturgeon catfish plaice haddock sole",
        "insect": "ant bee wasp beetle moth butterfly fly mosquito cricket locust termite ladybug dragonfly flea louse gnat hornet aphid mantis cicada",
        "fruit": "apple pear plum cherry grape lemon peach banana melon mango fig orange apricot raspberry strawberry blueberry kiwi lime papaya date",
        "vegetable": "carrot potato onion cabbage spinach tomato pepper lettuce celery pumpkin radish turnip leek garlic broccoli cucumber pea bean beet kale",
        "drink": "water tea coffee milk juice wine beer cider cocoa lemonade soda brandy whisky rum gin vodka broth smoothie espresso punch",
        "tool": "hammer saw drill wrench chisel axe shovel rake pliers screwdriver ladder file clamp spade hoe crowbar mallet anvil trowel vise",
        "kitchen": "pan pot spoon fork knife plate bowl cup kettle oven stove toaster ladle sieve grater whisk tray jug mug lid",
        "furniture": "chair table sofa bed desk shelf cupboard wardrobe bench stool drawer cradle bookcase couch cabinet dresser armchair mattress hammock nightstand",
        "clothing": "shirt coat hat shoe sock glove scarf dress skirt jacket boot belt sweater trousers apron cape vest sandal mitten blouse",
        "color": "red blue green yellow purple brown black white grey pink scarlet violet crimson turquoise beige amber indigo maroon ivory teal",
        "metal": "iron gold silver copper tin lead zinc nickel steel bronze brass aluminium platinum titanium mercury cobalt chrome tungsten sodium uranium",
        "country": "france spain italy greece norway sweden poland germany egypt kenya india china japan brazil peru chile canada mexico cuba iran",
        "city": "paris london rome madrid berlin vienna athens cairo tokyo delhi lima oslo dublin prague lisbon moscow boston chicago sydney geneva",
        "instrument": "piano violin guitar flute drum trumpet harp cello organ clarinet trombone banjo oboe bassoon tuba lute accordion mandolin bugle cymbal",
        "job": "doctor nurse teacher lawyer farmer baker butcher pilot sailor painter carpenter plumber tailor barber judge soldier waiter engineer miner clerk",
        "vehicle": "car bus train bicycle truck boat ship plane tram wagon van taxi helicopter scooter ferry canoe tractor sledge rocket yacht",
        "body": "head arm leg hand foot knee elbow shoulder nose ear eye mouth chin neck finger toe ankle wrist hip lung",
        "weather": "rain snow hail fog storm thunder lightning frost breeze drizzle blizzard tornado hurricane mist sleet sunshine cloud monsoon gale drought",
        "number": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty thirty forty fifty",
        "sport": "football tennis hockey cricketing rowing boxing golf rugby swimming skiing cycling wrestling fencing archery sailing volleyball basketball badminton judo surfing",
        "plant": "oak pine birch maple willow elm rose tulip daisy lily fern moss ivy cactus orchid poppy cedar thistle nettle sunflower",
        "building": "house church castle school hospital tower barn palace temple mill hotel museum library station cottage prison theatre factory garage stadium",
        "feeling": "joy anger fear sadness love hate pride shame envy hope guilt disgust delight grief boredom calm worry surprise pity relief",
        "family": "mother father sister brother uncle aunt cousin nephew niece grandmother grandfather son daughter husband wife twin parent child bride groom",
    }.items()
}
"""Category to its words, twenty each."""

CATEGORY_OF: dict[str, str] = {word: category for category, words in CATEGORIES.items() for word in words}
"""Word to its category."""
