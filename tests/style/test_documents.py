"""What the documents promise, held against the repository."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from repository import ROOT, tracked

DOCUMENTS = tracked("*.md")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_link_in_a_document_leads_somewhere(path: Path) -> None:
    missing = [
        target for target in LINK.findall(path.read_text()) if not (path.parent / target).exists()
    ]
    assert not missing


def test_decision_has_a_number_of_its_own() -> None:
    numbers = Counter(path.name[:4] for path in tracked("docs/decisions/*.md"))
    assert not [number for number, times in numbers.items() if times > 1 or not number.isdigit()]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    last = (ROOT / ".ci/run").read_text().strip().splitlines()[-1]
    assert last == "exec make test"
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_documents_show_the_examples_as_they_are() -> None:
    shown = "".join(path.read_text() for path in DOCUMENTS)
    for example in tracked("docs/examples/*.py"):
        code = example.read_text().split('"""', 2)[2].strip()
        assert code in shown, f"no document shows {example.name} as it is"


def test_conformance_table_names_tests_that_exist() -> None:
    table = (ROOT / "docs/virtio-conformance.md").read_text()
    named = set(re.findall(r"`(\w+_\w+_\w+)`", table))
    sources = (*tracked("tests/**/*.py"), *tracked("crates/**/*.rs"))
    defined = {
        name for path in sources for name in re.findall(r"\b(?:def|fn) (\w+)\(", path.read_text())
    }
    assert not named - defined
