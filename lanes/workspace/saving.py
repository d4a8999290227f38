"""Saves a workspace to the server, or says in one line why not. Kept out: what is in it."""

from collections.abc import Callable
from typing import Any

import wandb  # noqa: TID251  (the account's name; all that logs lives in lanes/training)

from lanes.training.wandb_mode import find_mode, in_short

WAY_OUT = "--print or -o FILE.json writes the specification without a server"


def save(build: Callable[[str], Any], entity: str | None) -> str:
    """Save a workspace; returns its address.

    Args:
        build: makes it, for an account or team.
        entity: that; None: the account's own, or as WANDB_ENTITY says.

    Raises:
        ValueError: nobody is logged in, the server does not answer or does not take it; says what can be done.
    """
    mode, reason = find_mode(probe=True)
    if mode != "online":
        raise ValueError(f"the workspace cannot be saved: {reason}; {WAY_OUT}")
    try:
        entity = entity or wandb.Api().default_entity
        if not entity:
            raise ValueError("the account has no default entity: give --entity")
        built = build(entity)
        built.save()
        url: str = built.url
    except Exception as error:  # of wandb, its transport, the server
        raise ValueError(f"the workspace could not be saved: {in_short(error)}; {WAY_OUT}") from error
    return url
