"""An X/Y grid as far as it is drawn: as one picture, and as JSON."""

import json
from dataclasses import dataclass

from PIL import Image

from dalle_core.compare import Axis, Cell, best, sheet
from dalle_core.studio.pool import Picture


@dataclass(frozen=True)
class Grid:
    """The best candidate of each cell by (column, row); cells that are not drawn yet are missing."""

    x: Axis
    y: Axis
    pictures: dict[tuple[int, int], Picture]

    def and_(self, cell: Cell, picture: Picture) -> "Grid":
        return Grid(self.x, self.y, self.pictures | {(cell.column, cell.row): picture})

    @property
    def scores(self) -> dict[tuple[int, int], float | None]:
        return {place: picture.drawn.score for place, picture in self.pictures.items()}

    def sheet(self) -> Image.Image:
        """One labelled picture. Raises InputError when a cell's file has gone."""
        return sheet(self.x, self.y, {place: picture.image() for place, picture in self.pictures.items()}, self.scores)

    def to_json(self) -> str:
        """What each cell was drawn from, in the order of drawing, and the (column, row) of the best."""
        cells = [
            {"x": self.x.values[column], "y": self.y.values[row]} | picture.drawn.to_json()
            for (column, row), picture in self.pictures.items()
        ]
        found = {"x": self.x.name, "y": self.y.name, "best": best(self.scores), "cells": cells}
        return json.dumps(found, ensure_ascii=False, indent=1)
