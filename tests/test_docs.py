"""The generated sections of the documents are fresh: `make docs` would change nothing."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("section", generate.SECTIONS, ids=lambda s: f"{s.document}:{s.name}")
def test_a_generated_section_is_fresh(section):
    document = (ROOT / section.document).read_text()
    assert generate.filled(section, document) == document, "run `make docs`"
