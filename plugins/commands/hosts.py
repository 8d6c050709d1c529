"""Which names a browser may have for the page's server.

A page of a stranger may let its own name mean this machine, and then ask the server as if it were
its own (DNS rebinding). What it cannot do is ask under a name that is the server's: so the `Host`
header has to be one. Or it asks under the server's name, without being shown the answer, which
would do to start a job: then a browser says whose page asks, in `Origin`."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

_PORT = re.compile(r":\d+$")
_REFUSAL = b"this server has another name: start it with --host and the name that is to be used\n"


class OnlyOwnNames:
    """ASGI: requests under other names are answered with status 403.

    host: what the server listens on, a name or an address."""

    def __init__(self, app: Callable[..., Awaitable[None]], host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._is_own(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _is_own(self, scope: dict[str, Any]) -> bool:
        names = [_name_in(scope)]
        # Of programs that are no browser, and of a link that was clicked, there is none.
        for key, value in scope["headers"]:
            if key == b"origin":
                names.append(value.decode("latin-1").partition("://")[2])
        return all(is_own(name, self._host) for name in names)


def _name_in(scope: dict[str, Any]) -> str:
    names = [value for key, value in scope["headers"] if key == b"host"]
    # None, or two that two programs may read otherwise, are no name.
    return names[0].decode("latin-1") if len(names) == 1 else ""


def is_own(name: str, host: str) -> bool:
    """Whether `name`, of a `Host` header, is one of a server that listens on `host`.

    Any port: a tunnel may have another. An address that was typed cannot be a stranger's name, so
    where the server listens on all of them, all are its own."""
    name = _PORT.sub("", name.strip().lower()).removesuffix(".")
    host = host.lower()
    address = _address(name)
    listens = _address(host)
    if address is None:
        names = {host}
        if is_loopback(host) or (listens is not None and listens.is_unspecified):
            names.add("localhost")
        if not is_loopback(host):
            names |= _own_names()
        return name in names - {""}
    if is_loopback(host):
        return address.is_loopback
    return listens is None or listens.is_unspecified or address == listens


@cache  # a name server may take seconds, and everybody who asks would wait
def _own_names() -> frozenset[str]:
    own = socket.gethostname().lower()
    return frozenset({own, f"{own}.local", socket.getfqdn().lower()})


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """In brackets or not."""
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
