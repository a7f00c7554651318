"""Secrets in commands, which a cluster would show to everybody who sees its jobs."""

from __future__ import annotations

import pytest

from jobs.submit.confidential import require_no_secret
from jobs.submit.parse import parse_command
from models.errors import ShoalError

SECRETS = {
    "https://me:hunter2@h/x.tar": "a name or a password",
    "https://me:hunter2@h:0/x.tar": "a name or a password",
    "https://hunter2@h/x.tar": "a name or a password",
    "https://me:a/hunter2@h/x.tar": "a name or a password",
    "s3://me:hunter2@b/x": "a name or a password",
    "s3://me:a/hunter2@b/x": "a name or a password",
    "abfss://c:hunter2@account.dfs.core.windows.net/x": "a name or a password",
    "https://h/x.tar?X-Amz-Date=1&X-Amz-Signature=hunter2": "the option 'X-Amz-Signature'",
    "https://h/x.tar?sv=1&sig=hunter2": "the option 'sig'",
    "s3://b/t?secret_key=hunter2": "the option 'secret_key'",
}


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("word", ["{}", "{{s3://a,{}}}", "--set=backbone.weights={}", "--set=a=[s3://b/x, {}]"])
def test_a_secret_in_any_word_is_refused_and_not_repeated(url: str, word: str) -> None:
    parsed = parse_command(["run", *(["/in"] if word.startswith("-") else []), word.format(url), "--output", "/o"])
    with pytest.raises(ShoalError, match="commands that run here") as raised:
        require_no_secret(parsed)
    assert SECRETS[url] in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "word",
    [
        "abfss://container@account1.dfs.core.windows.net/a@b",
        "s3://b/a@b:c?region=eu-west-1",
        "{s3://a,s3://b}/x-{0..9}.tar",
        "https://h:8443/a@b.tar?version=3",
        "file:///a@b",
        "/a@b?token",
        "me@host:folder",
    ],
)
def test_what_is_no_secret(word: str) -> None:
    require_no_secret(parse_command(["run", word, "--output", "/o", f"--set=x={word}"]))
