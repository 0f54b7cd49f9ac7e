"""What an evaluation measures: the systems that were named, a protocol's, and the baselines beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..evaluation.protocols import protocol as protocol_of
from ..evaluation.registry import BASELINES, Spec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which systems are measured on which tasks.

    Args:
        systems: In the order of the tables.
        implied: Names of those that nobody asked for: they are left out where they cannot be had.
        tasks: Names of the tasks; empty: all that are there.
        pairs: Systems to be compared with each other.
        against: The system that the others are compared with; None: a baseline.
        notes: Sentences for the report.
    """

    systems: tuple[Spec, ...]
    implied: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    against: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        names: Sequence[str],
        protocol: str | None,
        *,
        model: str | None,
        cold_start: Path | None,
        checkpoints: Path | None,
        built: Path | None,
        think: int | None,
        baselines: bool,
        against: str | None,
    ) -> Plan:
        """Reads the names of systems.

        Raises:
            InputError: An unknown one, or two of one name; a protocol that cannot run.
        """
        asked = [Spec.parse(name) for name in names]
        tasks: tuple[str, ...] = ()
        pairs: tuple[tuple[str, str], ...] = ()
        notes: tuple[str, ...] = ()
        if protocol is not None:
            found = protocol_of(
                protocol, model=model, cold_start=cold_start, checkpoints=checkpoints, built=built, think=think
            )
            asked += found.systems
            tasks, pairs, notes = found.tasks, found.pairs, (f"Protocol {protocol}: {found.note}",)
        elif not asked:
            asked = [Spec.parse("model")]
        named = {spec.name for spec in asked}
        implied = [Spec.parse(name) for name in BASELINES if baselines and name not in named]
        systems = [*implied, *asked]
        seen: dict[tuple[str, tuple[str, ...]], Spec] = {}
        for spec in systems:
            if seen.setdefault((slug(spec.name), spec.tasks), spec) is not spec:
                raise InputError("system", f"{spec.name!r} stands twice; give one of them another name: …,name=OTHER")
        if against is not None and against not in {spec.name for spec in systems}:
            raise InputError("against", f"{against!r} is none of {', '.join(spec.name for spec in systems)}")
        return cls(
            systems=tuple(systems),
            implied=frozenset(spec.name for spec in implied),
            tasks=tasks,
            pairs=pairs,
            against=against,
            notes=notes,
        )


def slug(name: str) -> str:
    """A name as a file may have it."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "system"
