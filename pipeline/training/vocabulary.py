"""A small byte-pair vocabulary in which every word of the captions is one token."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from pipeline.training.checkpoints import write_atomically

# open_clip's tokenizer has 256 bytes, 256 bytes that end a word, the merges, and two markers
N_FIXED = 256 + 256 + 2
_END = "</w>"


def merges(captions: Iterable[str]) -> list[tuple[str, str]]:
    """Learn byte-pair merges until every word is one symbol.

    The most frequent pair is merged first, as in Sennrich et al. 2016; of equally frequent pairs,
    the first in alphabetical order. A tokenizer that applies the merges in this order repeats
    these very steps, so each word becomes one token.
    """
    counts = Counter(w for c in captions for w in re.findall(r"[a-z]+", c.lower()))
    words = {w: (*w[:-1], w[-1] + _END) for w in sorted(counts)}
    learned: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in words.values()):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        words = {word: _merge(symbols, best) for word, symbols in words.items()}
    return learned


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def write_merges(path: Path, captions: Iterable[str]) -> int:
    """Write the merges as open_clip reads them, and return the size of the vocabulary."""
    learned = merges(captions)
    # no newline after the last merge: open_clip would read an empty merge there
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in learned)])
    content = gzip.compress(text.encode(), mtime=0)
    # not rewritten where it is up to date: another training may be reading it
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return N_FIXED + len(learned)
