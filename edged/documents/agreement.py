"""Whether another embedder of the same model speaks the language of the stored vectors.

Variants of one model share a fingerprint, yet quantisation moves vectors. Before such a swap, passages of the
user's own library are embedded again and compared with what is stored. The thresholds are from the pairs
measured in docs/decisions/0022-hot-swap.md.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edged.backend import Variant
from edged.documents.index import check_family
from edged.documents.library import Library
from edged.documents.sample import Sample
from edged.errors import IndexMismatch
from edged.stages.encoder import Encoder, Vectors

SAMPLE = 64
"""Passages: about a second of an embedder on one core."""
NEIGHBOURS = 10
LEAST_COSINE = 0.98
"""Mean cosine between stored and new vectors of the same passages."""
LEAST_OVERLAP = 0.9
"""Share of the ten nearest passages that both vectors of a passage find in the index, on average."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """An embedder compared with the vectors that a library holds."""

    passages: int
    """How many were compared."""
    mean_cosine: float
    least_cosine: float
    overlap: float
    """Share of the `NEIGHBOURS` nearest that the stored and the new vector of a passage have in common."""

    @property
    def enough(self) -> bool:
        """Whether the new vectors may search the stored ones."""
        return self.mean_cosine >= LEAST_COSINE and self.overlap >= LEAST_OVERLAP


def measure(library: Library, encoder: Encoder) -> Agreement | None:
    """Embed a sample of the library again and compare; None while it is empty.

    `IndexMismatch` when the documents were embedded by another model.
    """
    if library.manifest is None:
        return None
    check_family(library.manifest, encoder.fingerprint)
    sample = library.sample(SAMPLE)
    if not sample.ids:
        return None
    vectors, _ = encoder.embed(sample.texts, "passage")
    return _compared(library, sample, vectors)


def _compared(library: Library, sample: Sample, vectors: Vectors) -> Agreement:
    cosines = np.einsum("ij,ij->i", sample.vectors, vectors)
    stored, new = (library.nearest(rows, NEIGHBOURS) for rows in (sample.vectors, vectors))
    shared = [len(set(a) & set(b)) / max(len(a), 1) for a, b in zip(stored, new, strict=True)]
    return Agreement(
        passages=len(sample.ids),
        mean_cosine=round(float(cosines.mean()), 4),
        least_cosine=round(float(cosines.min()), 4),
        overlap=round(float(np.mean(shared)), 4),
    )


def check_agreement(agreement: Agreement, variant: Variant) -> None:
    """Refuse an embedder that would find other passages: `IndexMismatch` with the figures."""
    if agreement.enough:
        return
    raise IndexMismatch(
        f"{variant.model} {variant.name} does not agree with the stored vectors: on {agreement.passages} "
        f"passages of the library the mean cosine is {agreement.mean_cosine:.3f} (at least {LEAST_COSINE:g} "
        f"is needed; the worst is {agreement.least_cosine:.3f}) and {agreement.overlap:.0%} of the "
        f"{NEIGHBOURS} nearest are the same (at least {LEAST_OVERLAP:.0%}); configure this variant and run "
        "`edgectl ingest --re-embed` to embed the documents with it"
    )
