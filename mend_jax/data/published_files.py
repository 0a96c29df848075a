"""Where the raw files of data sets are published, and how to get them.

The addresses are those of the authors, or of well-known copies, as they were in 2026; a repository
may move. A file with a known sha256
(`Recipe.published`) is checked against it; every data set is checked by reading it.
"""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from mend_jax.data.sources.wiki_big_edit import INTERVALS, file_name
from mend_jax.errors import DataError, did_you_mean
from mend_jax.io.progress import Progress

_ROME = "https://rome.baulab.info/data/dsets"
_NQ = "https://raw.githubusercontent.com/google-research-datasets/natural-questions/master/nq_open"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data"
_KILT = "http://dl.fbaipublicfiles.com/KILT"
_MQUAKE = "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets"
_QAEDIT = "https://raw.githubusercontent.com/WanliYoung/Revisit-Editing-Evaluation/main/data"
_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
_EDITING = "https://huggingface.co/datasets/zjunlp/EasyEdit/resolve/main/counterfact"
_RIPPLE_EDITS = (
    "https://media.githubusercontent.com/media/edenbiran/RippleEdits/main/data/benchmark"
)
_WIKI_BIG_EDIT = "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main"
_RIPPLE_TRAIN = "https://raw.githubusercontent.com/leo-liuzy/RLEdit/main/data/raw/ctrlRE"
_RIPPLE = "https://raw.githubusercontent.com/leo-liuzy/mend/main/ctrl_RE_4K/meta-aug"

HOMES: Mapping[str, Mapping[str, str]] = {
    "counterfact": {
        **{
            f"counterfact/counterfact-{name}.json": f"{_EDITING}/counterfact-{name}.json"
            for name in ("train", "val", "edit")
        },
        "counterfact/counterfact.json": f"{_ROME}/counterfact.json",
    },
    "ctrl_ripple": {
        **{
            f"ctrl_ripple/{name}.json": f"{_RIPPLE_TRAIN}/{name}.json"
            for name in ("train_4K", "eval_4K")
        },
        **{
            f"ctrl_ripple/{name}.json": f"{_RIPPLE}/{name}.json"
            for name in ("test_id", "test_ood_entity", "test_ood_relation", "test_ood_both")
        },
    },
    "fever": {
        "fever/fever-train-kilt.jsonl": f"{_KILT}/fever-train-kilt.jsonl",
        "fever/fever-dev-kilt.jsonl": f"{_KILT}/fever-dev-kilt.jsonl",
    },
    "knowedit": {
        f"knowedit/wiki_counterfact/{split}_cf.json": (
            f"{_KNOWEDIT}/wiki_counterfact/{split}_cf.json"
        )
        for split in ("train", "test")
    },
    "mquake": {"mquake/MQuAKE-CF-3k.json": f"{_MQUAKE}/MQuAKE-CF-3k.json"},
    "nq_open": {
        f"nq_open/NQ-open.{name}.jsonl": f"{_NQ}/NQ-open.{name}.jsonl"
        for name in ("train", "dev", "efficientqa.dev.1.1")
    },
    "qaedit": {"qaedit/QAEdit_inter_1k.json": f"{_QAEDIT}/QAEdit_inter_1k.json"},
    "ripple_edits": {
        f"ripple_edits/{part}.json": f"{_RIPPLE_EDITS}/{part}.json"
        for part in ("popular", "random")
    },
    "wiki_big_edit": {
        file_name(interval): f"{_WIKI_BIG_EDIT}/{Path(file_name(interval)).name}"
        for interval in INTERVALS
    },
    "wikitext": {
        f"wikitext-2/{name}.txt": f"{_WIKITEXT}/wikitext-2/{name}.txt"
        for name in ("train", "valid", "test")
    },
    "zsre/mend": {
        f"zsre/zsre_mend_{name}.json": f"{_ROME}/zsre_mend_{name}.json"
        for name in ("train", "eval")
    },
}
_PIECE, _SECONDS = 1 << 20, 60


def fetch(name: str, root: Path, homes: Mapping[str, Mapping[str, str]] = HOMES) -> dict[Path, str]:
    """Get the published files of a data set that are not below `root` yet.

    A file is written whole or not at all.

    Returns:
      The files by path, and the address of each.

    Raises:
      DataError: a data set without published files, or a file that cannot be had: the message has
        the address, and where to put the file.
    """
    if name not in homes:
        hint = did_you_mean(name, list(homes))
        raise DataError(
            f"no published files are known for {name!r}{hint}: they are for {', '.join(homes)}"
        )
    files = {root / path: url for path, url in homes[name].items()}
    for path, url in files.items():
        if not path.exists():
            _download(url, path)
    return files


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as reply, unfinished.open("wb") as out:
            size = int(reply.headers.get("Content-Length") or 0)
            progress = Progress(f"fetch {path.name}, MB", max(size >> 20, 1))
            done = 0
            while piece := reply.read(_PIECE):
                out.write(piece)
                done += len(piece)
                progress.update(done >> 20)
        if size and done != size:
            raise DataError(f"{url}: {done:,} of {size:,} bytes came; fetch it again")
        unfinished.replace(path)
    except (OSError, ValueError, urllib.error.URLError) as e:
        raise DataError(
            f"{url} cannot be had ({e}): get it on another machine and put it to {path}"
        ) from e
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
