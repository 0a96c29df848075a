"""Paraphrases of claims: each rule on made-up claims, and properties of all rules."""

import pytest

from mend_jax.data.sources.fever import paraphrases
from mend_jax.data.sources.fever.grammar import parse, with_article
from mend_jax.data.sources.fever.paraphrases import (
    RULES,
    ClaimRule,
    fitting_paraphrases,
    paraphrase,
)

NAMES = ("Tall Trees", "Tall Trees (film)", "Ann Lee", "The Rooks", "Ada's Way", "Lisk")

# rule, claim, what it makes of it
MADE = (
    ("date_first", "Tall Trees was released in 1994.", "In 1994, Tall Trees was released."),
    ("date_first", "The Rooks formed on May 2, 2001.", "On May 2, 2001, The Rooks formed."),
    ("date_first", "The rook was seen in June.", "In June, the rook was seen."),
    ("date_last", "In 1994, Tall Trees was released.", "Tall Trees was released in 1994."),
    ("birth_year", "Ann Lee was born in 1901.", "The year of birth of Ann Lee is 1901."),
    ("birthplace", "Ann Lee was born in Oslo.", "The birthplace of Ann Lee is Oslo."),
    ("active", "Tall Trees was directed by Ann Lee.", "Ann Lee directed Tall Trees."),
    ("active", "Tall Trees was written and directed by a cook.",
     "A cook wrote and directed Tall Trees."),
    ("active", "Tall Trees is written by Ann Lee in 1990.", "Ann Lee wrote Tall Trees in 1990."),
    ("active", "Lisk is owned by Ann Lee and Bo Ek.", "Ann Lee and Bo Ek own Lisk."),
    ("passive", "Ann Lee directed Tall Trees.", "Tall Trees was directed by Ann Lee."),
    ("passive", "Ann Lee wrote a poem in 1920.", "A poem was written by Ann Lee in 1920."),
    ("stars_in", "Tall Trees stars Bo Ek as a thief.", "Bo Ek stars as a thief in Tall Trees."),
    ("stars_in", "Tall Trees stars Bo Ek and Ann Lee.", "Bo Ek and Ann Lee star in Tall Trees."),
    ("from_country", "Ann Lee is an Irish actress.", "Ann Lee is an actress from Ireland."),
    ("comes_from", "Ann Lee was Norwegian.", "Ann Lee came from Norway."),
    ("works_as", "Ann Lee is a stage actress.", "Ann Lee works as a stage actress."),
    ("turned", "Lisk is the capital of Ulm.", "The capital of Ulm is Lisk."),
    ("called", "There is a river called the Lisk.", "The Lisk is a river."),
    ("called", "There is a club called Lisk F.C.", "Lisk F.C. is a club."),
    ("basis", "Tall Trees is based on a song.", "The source of Tall Trees is a song."),
    ("untrue", "Ann Lee is not a cook.", "It is not true that Ann Lee is a cook."),
    ("genitive", "Ann Lee's first film was long.", "The first film of Ann Lee was long."),
    ("described", "Lisk is a river.", "Lisk can be described as a river."),
    ("fitting", "Lisk was a river.", '"A river" was a fitting description of Lisk.'),
    ("synonym", "Ann Lee refused to sing.", "Ann Lee declined to sing."),
    ("synonym", "Ann Lee did not sing.", "Ann Lee didn't sing."),
    ("synonym", "Ann Lee is only a cook.", "Ann Lee is nothing but a cook."),
    ("noun", "Ann Lee sold the film.", "Ann Lee sold the movie."),
    ("record", "The Rooks sing loudly.", "According to the record, The Rooks sing loudly."),
    ("record", "The crow sings.", "According to the record, the crow sings."),
    ("date_cleft", "The Rooks formed in 1994.", "It was in 1994 that The Rooks formed."),
    ("who_cleft", "Lisk was built by Ann Lee.", "It was Ann Lee that built Lisk."),
    ("in_cast", "Tall Trees starred Bo Ek.", "Tall Trees had Bo Ek in its cast."),
    ("cast_has", "Bo Ek stars in Tall Trees.", "The cast of Tall Trees has Bo Ek in it."),
    ("is_what", "Ann Lee was a cook.", "A cook is what Ann Lee was."),
    ("it_is", "Lisk is near Ulm.", "It is Lisk that is near Ulm."),
    ("aside_accounts", "Lisk is near Ulm.", "Lisk, by all accounts, is near Ulm."),
    ("as_known", "Lisk is near Ulm.", "Lisk is near Ulm, as is well known."),
)  # fmt: skip


def made(claim):
    parsed = parse(claim, NAMES)
    return {r.name: text for kind in (False, True) for r, text in fitting_paraphrases(parsed, kind)}


@pytest.mark.parametrize(("rule", "claim", "wording"), MADE)
def test_each_rule_makes_its_paraphrase(rule, claim, wording):
    assert made(claim)[rule] == wording


@pytest.mark.parametrize(
    ("rule", "claim"),
    [
        ("date_first", "Ann Lee did not sing in 1994."),  # she may have sung in other years
        ("date_cleft", "Ann Lee only sang in 1994."),
        ("date_first", "Ann Lee won a prize for a film released in 1994."),  # the film's date
        ("date_first", "Tall Trees is a film in 1994."),
        ("birthplace", "Ann Lee was born in May."),
        ("active", "Tall Trees was only directed by Ann Lee."),
        ("active", "Tall Trees was written by Ann Lee for Bo Ek."),
        ("who_cleft", "Tall Trees was directed by nobody."),
        ("passive", "Ann Lee won the Cup three times."),
        ("passive", "Tall Trees won Ann Lee a prize."),
        ("stars_in", "Tall Trees stars in the sky."),
        ("in_cast", "Tall Trees stars Bo Ek as a thief."),
        ("from_country", "Lisk is a French stream."),  # it may be from elsewhere
        ("turned", "Lisk is the river of Ulm, founded in 1900."),
        ("is_what", "Lisk is one of the rivers."),
        ("untrue", "Ann Lee is not only a cook."),
        ("it_is", "Ann Lee is not near Ulm."),
        ("noun", "Ann Lee saw TV Land."),
        ("called", "There is a river called Lisk that is long."),
    ],
)
def test_rules_that_would_change_the_meaning_do_not_fit(rule, claim):
    assert rule not in made(claim)


def test_every_rule_is_tried_here():
    assert {rule.name for rule in RULES} - {"it_is_true", "fact", "say", "colon", "aside_record",
                                            "sources", "case", "established"} == {
        rule for rule, _, _ in MADE}  # fmt: skip
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("claim", [
    "Lisk", "?", "Lisk is", "is Lisk", "Is it?", "A", "Lisk is near Ulm", "Lisk  is a\nriver ..",
    'Ann Lee said "yes."', "Was it Ann Lee's F.C.", "(Lisk) is near.", "It is 1994.", "x" * 500,
    "1994 was the year in which it rained in 1994.", '"', "Ada's Way is Ada's", "'s first is it.",
])  # fmt: skip
@pytest.mark.parametrize("unseen", [False, True])
def test_any_text_gets_a_paraphrase(claim, unseen):
    for key in range(8):
        found = paraphrase(claim, NAMES, key, unseen)
        assert found.text.strip() and found.text != claim and found.unseen == unseen
        assert found.text[-1] in '.?!"'


def test_the_key_alone_chooses_and_uses_every_rule_that_fits():
    claim = "Tall Trees was directed by Ann Lee in 1990."
    found = {key: paraphrase(claim, NAMES, key) for key in range(40)}
    assert found == {key: paraphrase(claim, reversed(NAMES), key) for key in range(40)}
    assert {p.rule for p in found.values()} == {"active"}  # the date is not its own
    plain = {paraphrase("Ann Lee is an Irish cook.", NAMES, key).rule for key in range(40)}
    assert plain == {"described", "fitting"}


def test_a_paraphrase_equal_to_the_claim_is_not_used(monkeypatch):
    same = ClaimRule("same", 0, False, lambda claim: claim.text)
    monkeypatch.setattr(paraphrases, "RULES", (same, *RULES))
    assert paraphrase("Lisk is near Ulm.", NAMES, 0).rule != "same"


def test_training_rules_and_held_out_rules_share_no_form():
    """No claim gets the same paraphrase by rules of the two kinds."""
    for _, claim, _ in MADE:
        parsed = parse(claim, NAMES)
        seen, held_out = (
            {t for _, t in fitting_paraphrases(parsed, kind)} for kind in (False, True)
        )
        assert seen and held_out and not seen & held_out


def test_a_claim_is_split_at_its_verb():
    parsed = parse("Tall Trees (film) was long.", NAMES)
    assert (parsed.subject, parsed.predicate) == ("Tall Trees (film)", "was long")
    parsed = parse("Rain has come (song) is long.", ["Rain has come"])
    assert (parsed.subject, parsed.predicate) == ("Rain has come (song)", "is long")
    parsed = parse("The Lisk is long.", NAMES)
    assert (parsed.subject, parsed.inner) == ("The Lisk", "the Lisk")
    assert parse("The Rooks are loud.", NAMES).inner == "The Rooks"
    for claim in ("In Ulm it is wet.", "Ann, who sings, is here.", "There is a river."):
        assert parse(claim, NAMES).subject == ""


def test_articles():
    said = [with_article(noun) for noun in ("actor", "hour", "university", "cook", "one-man show")]
    assert said == ["an actor", "an hour", "a university", "a cook", "a one-man show"]
