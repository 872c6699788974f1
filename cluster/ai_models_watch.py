"""The aiModels.json of a running worker: what it says now, or what it last said validly.

Whoever follows the file asks `look` now and then; the file is small, so its content is compared
and not its time, which tells nothing where it is replaced behind a link. What is invalid changes
nothing. It is complained about once, and only when it was the same at two looks: editors and
copies write a file in parts, and take it away for a moment when they replace it.
"""

import logging
import os
from pathlib import Path

from cluster.ai_models import AIModels, load_ai_models
from cluster.ai_models_source import is_short_form
from cluster.errors import AIModelsError

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the file."""


class AIModelsWatch:
    """Follows one aiModels.json. Not for several threads at once."""

    def __init__(self, source: str, *, last_good: Path | None = None, quiet: bool = False) -> None:
        """Reads it for the first time.

        Args:
            source: the file, or the short form, which never changes.
            last_good: where the content of a valid file is kept, for the next process to begin
                with when the file is invalid by then.
            quiet: say nothing, as another process that follows the same file does.

        Raises:
            AIModelsError: it is invalid, and there is no last good one.
        """
        self._source = source
        self._last_good = last_good
        self._quiet = quiet
        self._seen = self._content()
        self._complained: bytes | None = None
        self.current: AIModels
        """What is to be served."""
        try:
            self.current = load_ai_models(source)
        except AIModelsError as error:
            if last_good is None or not last_good.is_file():
                raise
            self._accepted: bytes | None = None
            self._complain(error)
            self.current = load_ai_models(last_good)
        else:
            self._accept()

    def look(self, *, again: bool = False) -> bool:
        """Reads the file if it changed and returns whether `current` did.

        Args:
            again: somebody asked for it, and wants to hear of problems that were told before.
        """
        if is_short_form(self._source):
            return False
        content = self._content()
        settled, self._seen = content == self._seen or again, content
        if content == self._accepted:
            self._complained = None
            return False
        if content == self._complained and not again:
            return False
        try:
            models = load_ai_models(self._source)
        except AIModelsError as error:
            if settled:
                self._complain(error)
            return False
        changed = models.models != self.current.models
        self.current = models
        if changed:
            self._log(logging.INFO, f"{models.source} changed")
        self._accept()
        return changed

    def _content(self) -> bytes:
        """What is in the file; in its place, why it cannot be read."""
        try:
            return Path(self._source).expanduser().read_bytes()
        except (OSError, RuntimeError, ValueError) as error:
            return repr(error).encode()

    def _accept(self) -> None:
        self._accepted, self._complained = self._seen, None
        for warning in self.current.warnings:
            self._log(logging.WARNING, warning)
        if self._last_good is None or is_short_form(self._source):
            return
        # Whole or not at all: the process may be killed at any moment, and several keep the same
        # copy. It holds tokens.
        new = self._last_good.with_suffix(f".{os.getpid()}")
        try:
            new.touch(mode=0o600)
            new.write_bytes(self._seen)
            new.replace(self._last_good)
        except OSError as error:
            logger.warning("no copy of the valid file is kept: %s", error)

    def _complain(self, error: AIModelsError) -> None:
        self._complained = self._seen
        for problem in error.problems:
            self._log(logging.ERROR, problem)
        self._log(logging.ERROR, "nothing is changed; the models are served as before")

    def _log(self, level: int, text: str) -> None:
        logger.log(logging.DEBUG if self._quiet else level, "%s", text)
