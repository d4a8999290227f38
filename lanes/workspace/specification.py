"""A workspace in the words of wandb-workspaces, which is loaded when it is needed. Kept out: which panels there are."""

import os
from collections.abc import Sequence
from typing import Any

from lanes.workspace.panels import Panel, Section

STEP_KEY = "trainer/global_step"  # what the logger steps by


def workspace(parts: Sequence[Section], *, entity: str, project: str, name: str) -> Any:
    """Build the workspace, a ``wandb_workspaces.workspaces.Workspace``; asks nothing of any server.

    Args:
        parts: its sections.
        entity: account or team; "" if it is not to be saved.
        project: of which it shows the runs.
        name: what it is called.

    Raises:
        ValueError: wandb-workspaces is not installed, or refuses the name.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or wandb looks up a host when it is loaded
    try:
        import wandb_workspaces.workspaces as ws  # noqa: PLC0415  (an extra)
    except ImportError as missing:
        raise ValueError(f"a workspace needs wandb-workspaces ({missing}): pip install wandb-workspaces") from missing
    made = [
        ws.Section(
            name=part.name,
            panels=[_panel(panel) for panel in part.panels],
            is_open=part.is_open,
            layout_settings=ws.SectionLayoutSettings(columns=part.columns, rows=_rows(part)),
        )
        for part in parts
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=made,
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY, group_by_prefix="last"),
    )


def as_json(built: Any) -> str:
    """The specification as it goes to the server; identifiers of panels are drawn anew each time."""
    text: str = built._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return text


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr  # noqa: PLC0415

    if panel.pictures:
        # What lies side by side in a panel ("gallery") are runs. Of the choice "step" all steps would, without slider.
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), mode="gallery", gallery_axis="run")
    return wr.LinePlot(title=panel.title, x=STEP_KEY, y=list(panel.keys), log_y=panel.log_y or None)


def _rows(part: Section) -> int:
    """As many rows as there are, up to two: the rest is on further pages of the section."""
    return min(2, -(-len(part.panels) // part.columns))
