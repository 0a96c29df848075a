"""Passages of Wikitext: tokenisation undone, articles separated, unusable files."""

import gzip

import pytest
from support.raw_files import ROOT

from mend_jax import data
from mend_jax.data import prose
from mend_jax.data.sources import wikitext
from mend_jax.errors import DataError

NEEDS_FILES = pytest.mark.skipif(
    not list(ROOT.glob("wikitext-2/*train*")), reason=f"no wikitext-2 files below {ROOT}"
)


def sentence(word, n_words=30):
    return " ".join([word.capitalize(), *[word] * (n_words - 1), "."])


def article(title, *paragraphs):
    body = "".join(f" {p} \n" for p in paragraphs)
    return f" \n = {title} = \n \n{body} \n = = Notes = = \n \n"


def write(root, folder="wikitext-2", name="{}.txt", pack=lambda data: data, **texts):
    (root / folder).mkdir(exist_ok=True, parents=True)
    usual = {s: article(f"About {s}", sentence(s), sentence(s)) for s in ("train", "valid", "test")}
    for split, text in {**usual, **texts}.items():
        (root / folder / name.format(split)).write_bytes(pack(text.encode()))
    return root


@pytest.mark.parametrize(
    "tokens, text",
    [
        ("Ned 's two @-@ storey house cost $ 1 @,@ 500 @.@ 50 .",
         "Ned's two-storey house cost $1,500.50."),
        ('" Go , " he said ( twice ) , " or don \'t ! "', '"Go," he said (twice), "or don\'t!"'),
        ("In 2011 – 12 they won 3 – 2 – 1 – a record .", "In 2011–12 they won 3–2–1 – a record."),
        ("The players ' votes ; the ' best ' one : 7", "The players' votes; the 'best' one: 7"),
        ("in the ' 60s Bob 's ' One ' was", "in the '60s Bob's 'One' was"),
        ("At 7 : 30 it was − 5 ° C , 45 ° north , 9 %", "At 7:30 it was −5 °C, 45° north, 9%"),
        ("and / or them — not US $ 3 or £ 2 [ sic ]", "and/or them—not US$3 or £2 [sic]"),
        ("they ’ ll say O 'Neill is in , yes ? No ...", "they’ll say O'Neill is in, yes? No..."),
    ],
)  # fmt: skip
def test_tokenisation_is_undone(tokens, text):
    assert wikitext.detokenise(tokens.split()) == text


def test_sentences_end_at_tokens_of_punctuation():
    line = 'He met Dr. No. 5 of St. Ives . " It is . " she said . " So ! " ( He left . ) 3 saw it'
    found = [" ".join(s) for s in wikitext.sentences(line)]
    assert found == [
        "He met Dr. No. 5 of St. Ives .", '" It is . " she said .', '" So ! "', "( He left . )",
        "3 saw it",
    ]  # fmt: skip


def test_articles_begin_with_a_heading_between_blank_lines():
    text = article("One", "Text a .", "= Not a heading = ", "Text b .") + article(
        "Two @-@ B", "C ."
    )
    found = list(wikitext.articles("no article yet . \n" + text))
    assert found == [("One", ["Text a .", "Text b ."]), ("Two @-@ B", ["C ."])]


def test_passages_hold_whole_sentences_and_no_unknown_words():
    known, unknown = sentence("ash"), sentence("oak").replace("oak .", "<unk> .")
    counts = wikitext.collections.Counter()
    text = article(
        "Trees of <unk>", f"{known} {known} {known} {unknown} {known}", sentence("elm", 24)
    )
    rows = wikitext.text_rows(text, "train", counts)
    whole = " ".join(["Ash", *["ash"] * 29]) + "."
    assert [r["far"] for r in rows] == [f"{whole} {whole}", whole, whole]
    assert [r["key"] for r in rows] == [f"train/00000/00{i}" for i in range(3)]
    assert {r["subject"] for r in rows} == {"Trees of <unk> (train article 0)"}
    assert dict(counts) == {
        "articles": 1, "sentences": 6, "sentences_with_unk": 1, "passages": 3,
    }  # fmt: skip


def test_prose_is_split_into_usable_sentences():
    text = 'Mr. Hall met J. B. Fry at No. 10 in Jan. 1950. "He left." Was it 3 p.m. by then? Yes.'
    assert prose.sentences(text) == [
        "Mr. Hall met J. B. Fry at No. 10 in Jan. 1950.", '"He left."',
        "Was it 3 p.m. by then?", "Yes.",
    ]  # fmt: skip
    assert prose.usable('"This is é one," he said (of 3).')
    for bad in ("no capital here.", "No end here", "Too short.", "An (open one is.", 'A " is odd.',
                "Some {{markup}} is.", "A 漢 is here.", "Lost words ( , 1900) here."):  # fmt: skip
        assert not prose.usable(bad), bad


@pytest.mark.parametrize("name", ["{}.txt", "wiki.{}.tokens.gz"])
def test_a_folder_becomes_a_text_set(tmp_path, name):
    pack = gzip.compress if name.endswith("gz") else lambda data: data
    write(tmp_path, name=name, pack=pack, valid=article("About <unk>", sentence("oak")))
    found = data.load("wikitext", tmp_path, tmp_path / "prepared")
    assert {k: len(v) for k, v in found.splits.items()} == dict(train=2, validation=1, test=2)
    row = found.split("train")[0]
    assert row["subject"] == "About train" and len(row["far"].split()) == 30 and not row["prompt"]
    assert found.notes["counts"]["validation"]["articles"] == 1
    assert found.notes["dropped_for_a_shared_title"] == {}


def test_another_config_reads_another_folder(tmp_path):
    write(tmp_path, "wikitext-103")
    assert data.load("wikitext/103", tmp_path, tmp_path / "p").name == "wikitext/103"
    with pytest.raises(DataError, match="no config 'zork': use one of default, 103"):
        data.load("wikitext/zork", tmp_path, tmp_path / "p")
    with pytest.raises(DataError, match="wikitext-2/train.txt or .* not below"):
        data.load("wikitext", tmp_path, tmp_path / "p")


def test_an_article_in_two_splits_stays_in_the_later_one(tmp_path):
    text = article("The Same", sentence("elm")) + article("Other", sentence("ash"))
    write(tmp_path, train=text, test=article("the same", sentence("fir")))
    made = wikitext.recipe("default", tmp_path).build()
    assert [r["subject"] for r in made.splits["train"]] == ["Other"]
    assert made.notes["dropped_for_a_shared_title"] == {"train": 1}


def test_files_that_cannot_be_used(tmp_path):
    cut = lambda data: gzip.compress(data)[:-9]  # noqa: E731
    cases = {
        "cut": (dict(name="{}.txt.gz", pack=cut), "train.txt.gz: the gzip stream breaks off"),
        "latin": (dict(pack=lambda data: data + b"\nna\xefve"), r"train.txt:\d+: not UTF-8 text"),
        "plain": (dict(valid="no heading . \n"), "valid.txt: no articles in it; .* = Title = "),
        "poor": (dict(test=article("T", "Short .")), "test.txt: no passages of whole sentences"),
    }
    for folder, (changed, message) in cases.items():
        write(tmp_path / folder, **changed)
        with pytest.raises(DataError, match=message):
            data.load("wikitext", tmp_path / folder, tmp_path / "prepared")


@pytest.mark.full
@NEEDS_FILES
def test_the_published_files():
    made = (recipe := wikitext.recipe("default", ROOT)).build()
    counts = made.notes["counts"]
    assert counts["train"]["articles"] == 600 and counts["validation"]["articles"] == 60
    sources = recipe.file_records()
    assert [s["published"] for s in sources.values()] == [True, True, None]
    assert made.notes["dropped_for_a_shared_title"] == {}
    assert len(made.splits["train"]) > 10_000 < 20 * len(made.splits["test"])
    texts = [row["far"] for held in made.splits.values() for row in held]
    assert all(25 <= len(text.split()) <= 90 for text in texts)
    assert not any(odd in text for text in texts for odd in ("<unk>", "@-@", " ,", "( ", " 's "))
    keys = [row["key"] for held in made.splits.values() for row in held]
    assert len(set(keys)) == len(keys)
