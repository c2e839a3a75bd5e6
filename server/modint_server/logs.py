"""JSON logs, one line a request, without prompts, images, answers or keys."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("modint_server")
CORE = logging.getLogger("modint_guard")  # what the guard could not do, while the client got its answer


class JsonLines(logging.Formatter):
    """Writes a record as `{"time", "level", "event", ...}`, with the fields of `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(level: str) -> None:
    """Sends the lines of gateway and guard to stderr; the process that runs the app calls it once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (LOGGER, CORE):
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False


def event(name: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs one line. `fields` are counts, names and times, never the content of a request or an answer."""
    LOGGER.log(level, name, extra={"fields": fields})
