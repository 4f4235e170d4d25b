"""List the fitted models of a folder with the numbers of their cards."""

from __future__ import annotations

from dataclasses import dataclass

from varflow.settings.flags import parse


@dataclass(frozen=True)
class Models:
    """What lies in a folder of fitted models: the one of the repository, or run folders of your own side by side.

    Each is opened with ``vf.load("models/NAME")``, and every verb that takes a RUN takes its folder.
    """

    folder: str = "models"
    """The folder."""


def main(arguments: list[str]) -> int:
    options = parse(Models, arguments, "folder")
    from varflow.runs.collection import collection, table

    found = collection(options.folder)
    print(table(found))
    print(f'use one: run = vf.load("{found[0].folder}"), or varflow sample {found[0].folder}')
    return 0
