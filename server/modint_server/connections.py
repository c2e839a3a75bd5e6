"""What a connection may do before its request is known: a bounded head, in bounded time, and not too many.

No key is known at that point, so every client has the same bounds. h11 reads bodies behind an offer of HTTP/2
(Java's client makes one with every plain request) and frames streams to HTTP/1.0 clients by the connection's
end; httptools does neither.
"""

import asyncio
from typing import Any

import h11
from h11._readers import ContentLengthReader
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0  # from the first byte of a request, or from an empty connection, to the end of its headers
MAX_CONNECTIONS = 2048
MAX_WAITING_BYTES = 2**20  # of a body, that were read and not yet asked for
EVENTS_A_TURN = 100  # h11 takes 15 µs for a chunk of a body, however short: other connections have their turn


class BoundedConnection(H11Protocol):
    """One connection; closed if its request's head is too long or too late, or if there are too many."""

    head_s = HEAD_S
    max_connections = MAX_CONNECTIONS
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = self._reader = _Reader()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = _Flow(transport)
        if len(self.connections) > self.max_connections:
            transport.close()
        else:
            self._begin_head()

    def data_received(self, data: bytes) -> None:
        if not self._reader.takes_for_body(data):
            super().data_received(data)
            return
        self.cycle.body += data
        if len(self.cycle.body) > MAX_WAITING_BYTES:
            self._flow.pause_reading()
        self.cycle.message_event.set()

    def handle_events(self) -> None:
        if self._flow.held:  # the next turn goes on
            return
        self._reader.left = EVENTS_A_TURN
        super().handle_events()
        if self._reader.left == 0:
            self._flow.hold()
            self.loop.call_soon(self._go_on)
        self._watch_head()

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self._flow.release()
            self.handle_events()

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None and self.conn.trailing_data[0]:
            self._begin_head()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer has begun
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _begin_head(self) -> None:
        self._timer = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Reader(h11.Connection):
    """Reads so many events and then says that it needs data; refuses long heads that came at once as well."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.left = EVENTS_A_TURN

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.left == 0:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE and self._receive_buffer._data.startswith(b"\r\n"):
            self._receive_buffer.maybe_extract_at_most(2)  # an empty line (RFC 9112, 2.2), which h11 refuses
        event = super().next_event()
        if event is not h11.NEED_DATA and event is not h11.PAUSED:
            self.left -= 1
        if isinstance(event, h11.Request) and _length(event) > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("the headers are too long")
        return event

    def takes_for_body(self, data: bytes) -> bool:
        """Whether all of the data are of the body of a request whose answer has not begun, and not its last:
        then they count as read, without the events that h11 makes of them.
        """
        body: Any = self._reader
        is_within = (
            isinstance(body, ContentLengthReader)
            and len(data) < body._remaining
            and not self._receive_buffer
            and self.our_state is h11.SEND_RESPONSE
        )
        if is_within:
            body._remaining -= len(data)
        return is_within


def _length(request: h11.Request) -> int:
    return len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)


class _Flow(FlowControl):
    """Reads nothing from the socket while what it read before is not worked off."""

    held = False

    def hold(self) -> None:
        self.held = True
        self._transport.pause_reading()

    def release(self) -> None:
        self.held = False
        if not self.read_paused:
            self._transport.resume_reading()

    def resume_reading(self) -> None:
        if self.held:
            self.read_paused = False
        else:
            super().resume_reading()
