"""Options as programs declare them, and config/README.md, which is made from them."""

from pathlib import Path

import pytest
from jaxway.config.documentation import readme
from jaxway.config.options import options_of
from jaxway.config.schema import ConfigurationError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("{'a': {'type': 'integer', 'default': 2**14, 'description': ''}}", "must be literal"),
        ("{'a': {'type': 'integer', 'description': ''}}", "OPTIONS.a has no default"),
    ],
)
def test_a_programs_bad_options_are_one_sentence(tmp_path, options, sentence):
    file = tmp_path / "benchmark_bad.py"
    file.write_text(f"OPTIONS = {options}")
    with pytest.raises(ConfigurationError, match=sentence):
        options_of(str(file))


def test_readme_is_up_to_date():
    """`make config/README.md` makes it from the schema and the programs' OPTIONS."""
    assert (ROOT / "config/README.md").read_text() == readme()
