"""Bag of words: which words a client typed, from the rows of an embedding that moved.

Rules:

1. The gradient of an embedding is zero in every row whose word did not occur. A sum over clients is zero exactly where
   *nobody* used the word: masking turns the client's words into the cohort's, rare ones included, without a name.
2. Dense noise fills all rows and ends it. Noise on used rows only, or leaving out zero rows to save bytes, brings the
   leak back: this library does neither.

Sources: Melis et al. 2019 ("Exploiting Unintended Feature Leakage in Collaborative Learning", arXiv 1805.04049), on
embeddings; Fowl et al. 2023 ("Decepticons", arXiv 2201.12675) go on to whole sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp import FloatVector, RandomBytes

from .views import Observed, flat


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingKnowledge:
    """Where the embedding's gradient lies in the view.

    Attributes:
        words: rows.
        width: columns.
        offset: where it starts.
    """

    words: int
    width: int
    offset: int = 0


def word_scores(view: Observed, knowledge: EmbeddingKnowledge, *, rand: RandomBytes | None = None) -> FloatVector:
    """How much each word's row moved: float64[words]. On an exact sum, above 0 means that somebody used the word.

    Args:
        view: the gradient, or any multiple of it.
        knowledge: where the embedding is.
        rand: not used; every attack takes it.

    Raises:
        ValueError: the view ends before the embedding does.
    """
    start, size = knowledge.offset, knowledge.words * knowledge.width
    vector = flat(view)
    if len(vector) < start + size:
        raise ValueError(f"the view has {len(vector)} coordinates, the embedding ends at {start + size}")
    norms: FloatVector = np.linalg.norm(vector[start : start + size].reshape(knowledge.words, -1), axis=1)
    return norms
