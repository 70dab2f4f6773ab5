"""Registries: credentials, pauses, and how long a failing one is asked again."""

import json

import pytest
import requests
from jaxway.container import registry
from jaxway.container.registry import RegistryError, Repository, TemporaryError


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"Retry-After": "7"}, 7), ({"Retry-After": "soon"}, None), ({}, None)],
)
def test_retry_after_in_seconds(header, seconds):
    answer = requests.Response()
    answer.headers.update(header)
    assert registry.retry_after(answer) == seconds


def test_retry_after_as_a_date(monkeypatch):
    monkeypatch.setattr(registry.time, "time", lambda: 784111770.0)
    answer = requests.Response()
    answer.headers["Retry-After"] = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110, section 5.6.7
    assert registry.retry_after(answer) == 7


def test_credentials_come_from_the_variables_then_from_a_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert registry.credentials("h.org") is None
    login = tmp_path / ".docker/config.json"
    login.parent.mkdir()
    login.write_text(json.dumps({"auths": {"h.org": {"auth": "YWxpY2U6YTpi"}}}))  # alice:a:b
    assert registry.credentials("h.org") == ("alice", "a:b")
    assert registry.credentials("other.org") is None
    monkeypatch.setenv("APPTAINER_DOCKER_USERNAME", "bob")
    monkeypatch.setenv("APPTAINER_DOCKER_PASSWORD", "c")
    assert registry.credentials("h.org") == ("bob", "c")


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that were waited, without waiting."""
    waited = list[float]()
    monkeypatch.setattr(registry.time, "sleep", waited.append)
    return waited


def attempt_of(*problems):
    """An attempt that raises these, one after the other, and then succeeds."""
    left = [*problems]

    def attempt():
        if left:
            raise left.pop(0)
        return "done"

    return attempt


def test_backoff_starts_anew_after_progress(pauses):
    broke, further = TemporaryError("broke"), TemporaryError("broke", progress=True)
    attempt = attempt_of(broke, broke, further, broke)
    assert Repository("h.org", "a", lambda line: None).with_retries(attempt) == "done"
    assert pauses == [1, 2, 1, 2]


def test_failure_that_stays_ends_the_attempts(pauses):
    problems = [TemporaryError("status 500")] * 9
    with pytest.raises(RegistryError, match=r"^h.org: status 500, 5 times; try again later"):
        Repository("h.org", "a", lambda line: None).with_retries(attempt_of(*problems))
    assert pauses == [*registry.BACKOFF_S]


def test_long_wait_is_left_to_the_user(pauses):
    with pytest.raises(RegistryError, match="asks to wait; try again in 3,600 s"):
        Repository("h.org", "a", lambda line: None).with_retries(
            attempt_of(TemporaryError("status 429", retry_after_s=3600))
        )
    assert not pauses
