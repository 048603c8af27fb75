"""rich's console for texts that others wrote: they are shown as they are, never obeyed, and without secrets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from conf.safety.secrets import without_known
from conf.safety.streams import Guarded
from conf.safety.texts import for_terminal


class SafeConsole(Console):
    """No markup and no emoji in texts; a style is given as ``style=``, or by a ``rich.text.Text``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    @property
    def file(self) -> IO[str]:
        """What lies below the guard: rich's own escape sequences pass, and ``render`` leaves no others."""
        found = super().file
        return found.raw if isinstance(found, Guarded) else found

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def print(self, *objects: Any, **how: Any) -> None:
        """What others print while a bar is shown comes as a Text."""
        super().print(*(_without_secrets(each) if isinstance(each, Text) else each for each in objects), **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(for_terminal(without_known(text)), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not segment.text:
                yield segment
            else:
                yield Segment(for_terminal(segment.text), segment.style)


def _without_secrets(text: Text) -> Text:
    shown = without_known(text.plain)
    return text if shown == text.plain else Text(shown, style=text.style)
