"""Questions of one's own beside the library that is to be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.config import load
from edged.rungs.named import lacking_in
from edged.rungs.record import Place

from .cli.test_governor import run as edgectl
from .ingestion import run

EXAMPLES = Path(__file__).parents[2] / "examples" / "documents"


@pytest.fixture
def filled(tmp_path, library, encoder) -> Path:
    run(library, EXAMPLES, encoder)
    path = tmp_path / "config.toml"
    path.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n[library]\ndir = "{library}"\n')
    return path


def test_documents_are_found_by_their_end_and_lines_where_passages_are(filled):
    lacking = lacking_in(load(filled, {}))
    name = next(path.name for path in sorted(EXAMPLES.rglob("*.md")))
    assert lacking(Place(source=name)) == lacking(Place(source=name, first_line=1, last_line=90)) == ""
    assert lacking(Place(source=name, first_line=9000)).startswith("relevant names the lines 9000 to 9000")
    assert lacking(Place(source=f"x{name}")).startswith(f"relevant names 'x{name}'")


def test_a_misspelt_document_is_refused_before_anything_is_asked(filled, tmp_path):
    questions = tmp_path / "own.jsonl"
    questions.write_text("\n" + json.dumps({"question": "q", "relevant": ["nosuchdoc.md"]}))
    found = edgectl("--config", str(filled), "ladder", "measure", "--questions", str(questions))
    assert found.exit_code == 1
    assert "error [bad_request]" in found.output
    assert "line 2: relevant names 'nosuchdoc.md'" in found.output
    assert not list(tmp_path.glob("**/ladder.json"))
