"""`CalibrationSource`: named text to calibrate on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class DataAccess:
    """How a source may reach data.

    Args:
        data_dir: A local mirror of hub data sets laid out by their ids, or `None` for the hub.
    """

    data_dir: Path | None = None


class CalibrationSource(ABC):
    """Yields documents of text; never from a split that lowbit evaluates on.

    `domain` names the data set family, so that a result can say that calibration and evaluation are in-domain.
    """

    name: ClassVar[str]
    domain: ClassVar[str]
    separator: ClassVar[str] = "\n\n"

    @abstractmethod
    def documents(self, access: DataAccess) -> Iterator[str]:
        """Yield the documents in their stored order.

        Raises:
            LowbitError: The data set is not reachable; the message says where it was looked for.
        """
