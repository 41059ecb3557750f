"""The hooks: called once, before the configuration is validated. Offering is not running.

A plugin is a module with functions of these names, marked `@hookimpl`. What a run uses of all
that is offered, its configuration says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from trainer.api import Evaluation, Objective

PROJECT = "trainer"  # also the entry-point group of installed plugins
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def trainer_objectives() -> list[type[Objective]]:
    """The Objective classes this plugin offers: what a student can be taught."""


@hookspec
def trainer_evaluations() -> list[type[Evaluation]]:
    """The Evaluation classes this plugin offers: what can be measured of a model."""


@hookspec
def trainer_commands(cli: click.Group) -> None:
    """Add commands to `clip-unlearn`: `cli.add_command(...)`."""
