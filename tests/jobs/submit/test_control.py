"""An end to a job, whatever the cluster says meanwhile."""

from __future__ import annotations

import pytest
from commands import shoal
from dashboard import Dashboard

from jobs.submit.control import stop

STOPPED = (200, {"stopped": True})


@pytest.mark.parametrize(
    ("state", "note"),
    [
        ("STOPPED", "submit the same command again, and it continues"),
        ("SUCCEEDED", "it was done before it was stopped"),
        ("FAILED", "it failed before it was stopped"),
    ],
)
def test_what_became_of_it_is_said(dashboard: Dashboard, state: str, note: str) -> None:
    dashboard.tell("RUNNING", state)
    dashboard.tell(STOPPED, path="/api/jobs/j/stop")
    values = stop(dashboard.client, "j").values
    assert (values["state"], values["note"]) == (state, note)


def test_a_question_without_an_answer_is_asked_again(dashboard: Dashboard) -> None:
    dashboard.tell("RUNNING", (0, ""), "STOPPED")
    dashboard.tell(STOPPED, path="/api/jobs/j/stop")
    assert stop(dashboard.client, "j").values["state"] == "STOPPED"
    assert dashboard.asked.count("/api/jobs/j") == 3


@pytest.mark.parametrize("words", [["submit", "show", "/"], ["jobs", "stop", "j"], ["jobs", "list"]])
def test_json_that_could_not_be_written_is_refused_before_anything_is_asked(
    words: list[str], dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard.url)
    option = ["--json", "/no/dir/x"]
    ended = shoal(words[0], *option, *words[1:]) if words[0] == "submit" else shoal(*words, *option)
    assert ended.exit_code == 2
    assert "--json /no/dir/x is in a folder that does not exist" in ended.output
    assert dashboard.asked == []
