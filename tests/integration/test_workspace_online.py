"""`lanes workspace` and a stand-in server: the workspace arrives whole, or one line says why not and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.wandb_processes import HANGS_S, end_group, start
from tests.wandb_server import WandbServer

ARGUMENTS = ["-m", "lanes", "workspace", "--lanes", "2", "--layer", "conv1"]


class WorkspaceServer(WandbServer):
    """Takes workspaces as well."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[dict[str, Any]] = []

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
            return super()._graphql(query, variables)
        self.views.append(variables)
        return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}


def _called(home: Path, *more: str, **environment: str) -> tuple[int, str, str]:
    process = start([*ARGUMENTS, *more], home, **environment)
    try:
        out, words = process.communicate("", timeout=HANGS_S)
    finally:
        end_group(process)
    return process.returncode, out, words


def _account(server: WandbServer) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}


def test_the_workspace_arrives_with_its_sections(tmp_path: Path) -> None:
    with WorkspaceServer() as server:
        code, out, words = _called(tmp_path, "--project", "mine", **_account(server))
        assert code == 0, words
        [view] = server.views
        assert server.unknown == []
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "mine", "lanes")
    made = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in made][:3] == [
        *("Filters, lane by lane", "What each lane has become", "Do lanes differ?")
    ]
    keys = [key for panel in made[0]["panels"] for key in panel["config"]["mediaKeys"]]
    assert keys == ["filters/lane0/conv1", "filters/lane1/conv1"]
    address = f"{server.url}/me/mine?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    assert out.split()[0] == address


@pytest.mark.parametrize("why", ["no key", "nobody answers", "403"])
def test_why_it_was_not_saved_is_one_line(why: str, tmp_path: Path) -> None:
    with WorkspaceServer() as server:
        server.fault = {"no key": None, "nobody answers": "refuse", "403": "403"}[why]
        account = {"WANDB_BASE_URL": server.url} if why == "no key" else _account(server)
        code, out, words = _called(tmp_path, **account)
        assert server.views == []
    assert (code, out) == (2, "")
    lines = [line for line in words.splitlines() if line.strip()]
    assert len(lines) == 1, words
    assert {"no key": "no API key", "nobody answers": "does not answer", "403": "injected"}[why] in lines[0]
    assert "--print or -o FILE.json" in lines[0]
