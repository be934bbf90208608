"""Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

No library reads them from packets: httpx-sse and openai's client want a response of httpx, which takes five times the
CPU of aiohttp for a streamed answer, and aiohttp-sse-client (0.2.1, from 2021) asks again by itself when a stream
breaks off, which here would be a second answer. Neither bounds the size of an event.
"""

_MAX_EVENT_BYTES = 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventError(ValueError):
    """An event is larger than any that a server would send."""


class EventReader:
    """Takes a stream apart into events, wherever its packets begin and end.

    Comments, fields other than `data`, and a byte order mark at the beginning are skipped. What is not ended by an
    empty line is no event.
    """

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a line that is not over
        self._data: list[bytes] = []  # the lines of an event that is not over
        self._size = 0
        self._after_cr = False
        self._begun = False

    def push(self, packet: bytes) -> list[bytes]:
        """The data of each event that this packet completes.

        Raises:
            EventError: If an event exceeds a mebibyte.
        """
        # Nearly every packet is one event of one line.
        is_simple = packet.startswith(b"data: ") and packet.endswith(b"\n\n") and not (self._rest or self._data)
        if is_simple and packet.find(b"\n") == len(packet) - 2 and b"\r" not in packet:
            self._begun, self._after_cr = True, False
            return [packet[len(b"data: ") : -len(b"\n\n")]]
        if self._after_cr and packet:  # `\r\n` is one end of a line, also over two packets
            packet = packet.removeprefix(b"\n")
            self._after_cr = False
        if packet:
            self._after_cr = packet.endswith(b"\r")
        if b"\n" not in packet and b"\r" not in packet:
            self._rest += packet
            self._check_size()
            return []

        # The last line is complete only if its end has come.
        *lines, last = (bytes(self._rest) + packet).splitlines(keepends=True)
        if last.endswith((b"\n", b"\r")):
            lines.append(last)
            last = b""
        self._rest = bytearray(last)

        # An empty line ends an event that has data.
        events = []
        for line in lines:
            line = line.rstrip(b"\r\n")
            if not self._begun:
                line, self._begun = line.removeprefix(_BYTE_ORDER_MARK), True
            if line:
                self._add(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
        self._check_size()
        return events

    def _add(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)

    def _check_size(self) -> None:
        if self._size + len(self._rest) > _MAX_EVENT_BYTES:
            raise EventError(f"an event of more than {_MAX_EVENT_BYTES} bytes")
