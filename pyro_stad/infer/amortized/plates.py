"""The plates of a model: how long each is for other data, and which dimension it is along.

A plate that was as long as its data when the guide was made is as long as the data of each call. A
plate of another size, of which the data are a part, keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_stad.infer.amortized.sources import DataRows, LocalSite
from pyro_stad.model.sites import sampled

__all__ = ["Plates"]


class Plates:
    """The plates of a model.

    Arguments:
        trace: of the model.
        rows: what of its arguments are data.
        data: these data, by name.
    """

    def __init__(self, trace: Any, rows: list[DataRows], data: Mapping[str, Tensor]) -> None:
        stacks = {site["name"]: site["cond_indep_stack"] for site in sampled(trace)}
        self._of_site = {
            name: tuple(frame.name for frame in stack if frame.vectorized)
            for name, stack in stacks.items()
        }
        # What each site drew in this run, for shapes.
        self.values = {site["name"]: site["value"].detach() for site in sampled(trace)}
        frames = {f.name: f for stack in stacks.values() for f in stack if f.vectorized}
        self.frames: dict[str, Any] = frames
        self.of_data = {name for each in rows for name in each.plates}
        # Where to look for the length of a plate: an argument, and one of its dimensions.
        self._length = {
            name: (each.name, axis)
            for each in rows
            for axis, name in enumerate(each.plates)
            if data[each.name].shape[axis] == (frames[name].full_size or frames[name].size)
        }

    def resized(self, data: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return frames that are as long as these data."""
        found = {}
        for name, (argument, axis) in self._length.items():
            frame, size = self.frames[name], data[argument].shape[axis]
            whole = frame.size == (frame.full_size or frame.size)
            found[name] = frame._replace(
                full_size=size, size=size if whole else min(frame.size, size)
            )
        return found

    def members(self, rows: DataRows, value: Tensor, plates: Mapping[str, Any]) -> Tensor:
        """Return those rows of data that the subsamples of the plates are of.

        Raises:
            ValueError: if there are neither as many rows as a plate has members, nor as many as its
                subsample.
        """
        for axis, name in enumerate(rows.plates):
            plate, count = plates[name], value.shape[axis]
            if count == plate.subsample_size:
                continue
            if count != plate.size:
                raise ValueError(
                    f"argument {rows.name!r} has {count} rows along plate {name!r}, which has "
                    f"{plate.size} members, {plate.subsample_size} at a time; give all rows, or "
                    "those of the subsample"
                )
            with plate as index:
                value = value.index_select(axis, index)
        return value

    def pooled(self, site: LocalSite, index: int, embedding: Tensor) -> Tensor:
        """Return the mean of embeddings over the plates that a site is not in.

        Arguments:
            site: which one.
            index: place of its data among those that it looks at.
            embedding: of these, ``(*plates, width)``.

        Returns:
            Shape ``(*batch, width)``, with the dimensions of the plates where the model has them.
        """
        depth = max(-self.frames[name].dim for name in site.plates)
        shape, plates = [1] * depth, site.rows[index].plates
        for axis in reversed(range(len(plates))):
            if plates[axis] in site.plates:
                shape[self.frames[plates[axis]].dim] = embedding.shape[axis]
            else:
                embedding = embedding.mean(axis)
        return embedding.reshape(*shape, embedding.shape[-1])

    def aligned(self, upstream: str, value: Tensor, site: tuple[str, ...]) -> Tensor:
        """Return numbers ``(*batch, D)`` of an earlier variable as those that a site may look at.

        Of plates that the site is not in: the mean, along data; all members side by side, of a
        plate that has the same for all data, such as the weights of a regression.
        """
        for name in self._of_site[upstream]:
            if name in site:
                continue
            dim = self.frames[name].dim - 1
            if name in self.of_data:
                value = value.mean(dim, keepdim=True)
            else:
                value = value.movedim(dim, -1).flatten(-2).unsqueeze(dim)
        return value
