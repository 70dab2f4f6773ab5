"""The site: which one it is, and one sentence for each way in which it cannot be used."""

from pathlib import Path

import pytest
from jaxway.config.load import load
from jaxway.config.schema import ConfigurationError
from jaxway.config.site import load_site

ROOT = Path(__file__).parents[2]


def test_relative_scratch_is_one_sentence(monkeypatch, jureca):
    monkeypatch.setenv("SCRATCH", "scratch")
    with pytest.raises(ConfigurationError, match="must be an absolute path"):
        load_site(ROOT)


def test_scratch_with_a_space_is_one_sentence(monkeypatch, jureca):
    monkeypatch.setenv("SCRATCH", "/p/my scratch")
    with pytest.raises(ConfigurationError, match="takes no path with spaces"):
        load_site(ROOT)


def test_environment_of_another_checkout_is_one_sentence(tmp_path, jureca):
    with pytest.raises(
        ConfigurationError, match=f"these rules are of {tmp_path}: run `make setup`"
    ):
        load_site(tmp_path)


def test_missing_site_is_one_sentence(monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "profiles/nowhere")
    with pytest.raises(ConfigurationError, match="invalid site file"):
        load_site(ROOT)


def test_site_with_an_unknown_key_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text("nmae: x")
    monkeypatch.setenv("JAXWAY_SITE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="did you mean 'name'"):
        load_site(ROOT)


def test_one_process_where_there_is_no_launcher(monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "profiles/local")
    site = load_site(ROOT)
    with pytest.raises(ConfigurationError, match="has no launcher"):
        load({"train": {"a": {"nodes": 2}}}, site)
