"""Shapes: how much of a machine the VM gets. Launch digests depend on its CPUs, RTMR0 on its memory and devices."""

from __future__ import annotations

import re
from dataclasses import dataclass

from image.errors import ImageError

GIB = 1 << 30
_OWN = re.compile(r"(?P<cpus>[1-9]\d{0,3})cpu-(?P<gib>[1-9]\d{0,5})gib(-(?P<gpus>[1-9]\d?)gpu)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One size of VM."""

    name: str
    cpus: int
    memory: int  # bytes
    gpus: int = 0


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="small", cpus=2, memory=4 * GIB),
        Shape(name="h200x1", cpus=24, memory=192 * GIB, gpus=1),
        Shape(name="h200x8", cpus=128, memory=1536 * GIB, gpus=8),
    )
}


def shape_named(name: str) -> Shape:
    """A known shape, or one that its name describes: `8cpu-64gib`, `8cpu-64gib-1gpu`."""
    if name in SHAPES:
        return SHAPES[name]
    described = _OWN.fullmatch(name)
    if described is None:
        raise ImageError(
            f"no shape {name!r}", f"Known are {', '.join(SHAPES)}, and any like 8cpu-64gib or 8cpu-64gib-1gpu"
        )
    cpus, gib, gpus = (int(described[part] or 0) for part in ("cpus", "gib", "gpus"))
    return Shape(name=name, cpus=cpus, memory=gib * GIB, gpus=gpus)
