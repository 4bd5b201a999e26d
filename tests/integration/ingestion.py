"""Ingest and questions through their public doors, with a real embedder."""

from edged import plugins
from edged.config import Library as Settings
from edged.documents.ingest import ingest
from edged.documents.library import Library
from edged.stages.encoder import Encoder

SETTINGS = Settings(chunk_tokens=64, overlap_tokens=8)
MANUAL = "# Router\n\nIntro.\n\n## Reset\n\nHold the button for ten seconds to restore factory settings.\n"


def open_encoder(variant) -> Encoder:
    backend = plugins.load("onnx")
    device = next(device for device in backend.devices() if device.id == "cpu")
    return Encoder(backend.open(variant, device, {"threads": 1}), variant)


def run(library, paths, encoder, *, prune=False, re_embed=False, settings=SETTINGS):
    paths = paths if isinstance(paths, list) else [paths]
    return ingest(
        library, paths, encoder, settings, prune=prune, progress=lambda step: None, re_embed=re_embed
    )


def ask(library: Library, encoder: Encoder, question: str, count: int = 3):
    vectors, _ = encoder.embed([question], "query")
    return library.search([question], vectors, encoder.fingerprint, count)[0]
