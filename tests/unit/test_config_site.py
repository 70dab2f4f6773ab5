"""The site: which one it is, and one sentence for each way in which it cannot be used."""

from pathlib import Path

import pytest
from examples import make_site
from jaxway.config import site
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


@pytest.fixture
def no_profile(monkeypatch, tmp_path):
    """As Snakemake without --profile, on a machine without a name."""
    monkeypatch.setenv("JAXWAY_SITE", "")
    monkeypatch.delenv("JAXWAY_SITE")
    monkeypatch.delenv("SYSTEMNAME", raising=False)
    monkeypatch.setattr(site, "SYSTEM_NAME_FILE", tmp_path / "systemname")


def test_a_machine_with_a_profile_is_not_used_without(no_profile, monkeypatch, tmp_path):
    """By its variable or, in a shell that has lost that, by its file."""
    monkeypatch.setenv("SYSTEMNAME", "juwelsbooster")
    with pytest.raises(ConfigurationError, match="add `--profile profiles/juwels-booster`"):
        load_site(ROOT)
    monkeypatch.delenv("SYSTEMNAME")
    (tmp_path / "systemname").write_text("jurecadc\n")
    with pytest.raises(ConfigurationError, match="add `--profile profiles/jureca`"):
        load_site(ROOT)
    monkeypatch.setenv("JAXWAY_SITE", "profiles/local")  # as --profile profiles/local does
    assert load_site(ROOT).name == "local"


@pytest.mark.parametrize("name", ["", "laptop", "None"])
def test_any_other_machine_needs_no_profile(no_profile, monkeypatch, name):
    monkeypatch.setenv("SYSTEMNAME", name)
    assert load_site(ROOT).name == "local"


def test_site_with_an_unknown_key_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text("nmae: x")
    monkeypatch.setenv("JAXWAY_SITE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="did you mean 'name'"):
        load_site(ROOT)


def test_unknown_gpu_is_one_sentence():
    with pytest.raises(ConfigurationError, match=r"site.gpu: A100 is not in profiles/gpus.yaml"):
        make_site(gpu="A100")


def test_one_process_where_there_is_no_launcher(monkeypatch):
    monkeypatch.setenv("JAXWAY_SITE", "profiles/local")
    with pytest.raises(ConfigurationError, match="has no launcher"):
        load({"train": {"a": {"nodes": 2}}}, load_site(ROOT))
