"""Answers that no relation of `world_facts` has, nor any other data set that editors train on.

They show whether an editor can write any answer, or one of those that it has learned.
"""

_TEXT = """
    rosemary, thyme, lavender, juniper, hawthorn, elderberry, foxglove, buttercup, snowdrop,
    wisteria, magnolia, sycamore, tamarind, cardamom, fennel, turmeric, saffron, nutmeg,
    horseradish, parsnip, hammer, chisel, screwdriver, pliers, wheelbarrow, anvil, crowbar,
    sandpaper, spanner, hacksaw, thimble, corkscrew, colander, spatula, teapot, saucer, lantern,
    candlestick, doormat, umbrella, bassoon, tambourine, mandolin, xylophone, bagpipes, ukulele,
    topaz, garnet, amethyst, sapphire, obsidian, malachite, turquoise, opal, jade, amber,
    badger, hedgehog, otter, weasel, walrus, armadillo, platypus, mongoose, meerkat, porcupine,
    kingfisher, nightingale, cormorant, pelican, woodpecker, dragonfly, grasshopper, ladybird,
    scorpion, blacksmith, locksmith, beekeeper, glassblower, shepherd, lighthouse keeper, waltz,
    tango, foxtrot, polka, quickstep, croquet, archery, curling, porridge, omelette, lasagne,
    gingerbread, marzipan, meringue, pancakes, sauerkraut, goulash, chowder, Wednesday,
    Thursday, Halloween, midsummer, sunrise, midnight, twilight, harvest, Penelope Hartwell,
    Rufus Okafor, Imogen Castellan, Tobias Lindqvist, Beatrix Mallory, Casper Nwosu, Ottilie
    Brandt, Leopold Farrow, Sunniva Dale, Ezra Whitlock, Marigold Finch, Anselm Pereira, the
    blue door, the third floor, a paper lantern, the old mill, seven sisters, the north tower, a
    glass of milk, the second Tuesday, nine hundred, forty-two, one half, three quarters
    """
NEW_ANSWERS = tuple(" ".join(part.split()) for part in _TEXT.split(","))
"""Plants, tools, instruments, stones, animals, trades, games, dishes, times, invented people, and
answers of several common words."""
