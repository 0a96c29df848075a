"""Plain prose out of MediaWiki markup, good enough for short passages of running text."""

from __future__ import annotations

import html
import re

from mend_jax.data.prose import join_sentences

_INNER_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", re.S)
_REFERENCE = re.compile(r"<ref\b[^>]*?/>|<ref\b.*?</ref>", re.S | re.I)
_BLOCK = re.compile(r"<(math|gallery|table|code|source|pre|timeline|score)\b.*?</\1>", re.S | re.I)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_TAG = re.compile(r"<[^<>]*>")
_MEDIA = re.compile(r"\[\[(?:file|image|category)\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.I)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_OUTSIDE = re.compile(r"\[(?:https?:|//)\S*\s*([^\]]*)\]")
_ODD_GAPS = re.compile(r"\(\s*[;,]?\s*\)|\(\s*[;,]\s*")
_BROKEN = re.compile(r"[{}\[\]|<>=*#_\\]|\(\)|\.\.|,,|, ,|\bpp?\. |https?:|ISBN")
_SENTENCE = re.compile(r"(?<=[a-z0-9)\"’'][.!?])\s+(?=[A-Z][a-z]+\b)")
_ENOUGH = 40  # words


def paragraphs(markup: str) -> list[str]:
    """Return the paragraphs of running text in an article's markup."""
    text = _REFERENCE.sub("", _COMMENT.sub("", html.unescape(markup)))
    text = _BLOCK.sub("", text)
    while (less := _INNER_TEMPLATE.sub("", text)) != text:
        text = less
    text = _LINK.sub(r"\1", _MEDIA.sub("", text))
    text = _TAG.sub("", _OUTSIDE.sub(r"\1", text)).replace("'''", "").replace("''", "")
    text = html.unescape(text).replace("\xa0", " ")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return [_ODD_GAPS.sub("", ln) for ln in lines if ln and ln[0].isalpha() and len(ln) > 120]


def passages(paragraph: str, least: int = 25, most: int = 60) -> list[str]:
    """Return runs of whole sentences of `least` to `most` words, without leftovers of markup."""
    found = _SENTENCE.split(paragraph.strip())
    return join_sentences(found, _is_clean, _is_whole, least, most, _ENOUGH)


def _is_clean(sentence: str) -> bool:
    return bool(sentence.split()) and sentence.isascii() and not _BROKEN.search(sentence)


def _is_whole(sentence: str) -> bool:
    return sentence[0].isupper() and sentence[-1] in ".!?"
