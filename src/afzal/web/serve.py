"""The process that serves a page: socket, addresses and orderly shutdown."""

from __future__ import annotations

import secrets
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from afzal.errors import AfzalError
from afzal.web.folder import AnnotationFolder, AnnotationJob
from afzal.web.security import NO_UPLOADS, App, Guard


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where a page is served.

    Attributes:
        host: the address to bind; loopback unless people on other machines need to reach the page.
        port: 0 for a free one.
        names: further names accepted in the Host header, such as those of a proxy.
    """

    host: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = ()


def bind_socket(options: ServerOptions) -> socket.socket:
    """Bind a socket to the host and port.

    Raises:
        AfzalError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((options.host, options.port))
    except OSError as error:
        sock.close()
        raise AfzalError(
            f"cannot serve at {options.host}:{options.port}",
            why=error.strerror or str(error),
            remedy="choose another --port, or --port 0 for a free one",
        ) from None
    return sock


def rebind_socket(options: ServerOptions, port: int) -> socket.socket:
    """Bind a socket as :func:`bind_socket` does; if any port will do, to the last port if it is free."""
    if options.port == 0 and port != 0:
        try:
            return bind_socket(replace(options, port=port))
        except AfzalError:
            pass
    return bind_socket(options)


def allowed_hosts(options: ServerOptions, port: int) -> frozenset[str]:
    """The accepted Host headers."""
    own_names = {options.host, "localhost", "127.0.0.1", "::1"} - {"0.0.0.0", "::"}
    quoted = {f"[{name}]" if ":" in name else name for name in own_names}
    other_names = [name.lower() for name in options.names]
    return frozenset(f"{name}:{port}" for name in [*quoted, *other_names]) | frozenset(other_names)


def addresses(folder: AnnotationFolder, host: str, port: int) -> list[tuple[str, str]]:
    """Name (empty if nobody has signed in) and address of each annotator."""
    return [(name, f"{origin(host, port)}/a/{token}/") for token, name in folder.tokens.items()]


def origin(host: str, port: int) -> str:
    """The origin under which a browser on this machine reaches the server."""
    display_host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{display_host}:{port}"


def serve(
    job: AnnotationJob,
    options: ServerOptions,
    ready: Callable[[AnnotationFolder, list[tuple[str, str]]], None],
    until: Literal["stopped", "done"] = "stopped",
) -> AnnotationFolder:
    """Serve a job until SIGINT or SIGTERM, and return its folder, closed.

    Args:
        ready: called with the folder and the addresses once the page can be reached.
        until: ``done`` also stops serving when nobody has anything left to answer.

    Raises:
        AfzalError: the folder or the address cannot be used.
    """
    from afzal.web.app import application

    folder = AnnotationFolder(job, time.time)
    try:
        with rebind_socket(options, folder.port) as sock:
            port = sock.getsockname()[1]
            folder.remember_port(port)
            endings: list[Callable[[], None]] = []

            def finished() -> None:
                for end in endings if until == "done" else ():
                    end()  # the server sends pending replies before it stops

            def on_started(end: Callable[[], None]) -> None:
                endings.append(end)
                ready(folder, addresses(folder, options.host, port))

            if until == "done" and folder.session.queue.people and folder.session.queue.is_done():
                ready(folder, addresses(folder, options.host, port))
            else:
                run_server(application(folder, finished), options, sock, on_started)
    finally:
        folder.close()
    return folder


def serve_secret(
    letter: str,
    application_of: Callable[[str], App],
    options: ServerOptions,
    ready: Callable[[str], None],
    uploads: Mapping[str, int] = NO_UPLOADS,
) -> None:
    """Serve an application under a fresh secret address, ``/LETTER/TOKEN/``, until SIGINT or SIGTERM.

    Args:
        application_of: makes the application for a token.
        ready: called with the address once the page can be reached.
        uploads: as for :class:`afzal.web.security.Guard`.

    Raises:
        AfzalError: the address cannot be bound.
    """
    token = secrets.token_urlsafe(18)
    with bind_socket(options) as sock:
        address = f"{origin(options.host, sock.getsockname()[1])}/{letter}/{token}/"
        run_server(application_of(token), options, sock, lambda end: ready(address), uploads)


def run_server(
    app: App,
    options: ServerOptions,
    sock: socket.socket,
    ready: Callable[[Callable[[], None]], None],
    uploads: Mapping[str, int] = NO_UPLOADS,
) -> None:
    """Serve an application behind the :class:`afzal.web.security.Guard` until SIGINT or SIGTERM.

    Args:
        ready: called with a function that stops the server, once the page can be reached.
        uploads: as for :class:`afzal.web.security.Guard`.
    """
    import uvicorn

    settings = uvicorn.Config(
        Guard(app, allowed_hosts(options, sock.getsockname()[1]), uploads),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(settings)

    def end() -> None:
        server.should_exit = True

    # A signal before the server has started must not be lost; uvicorn raises it again after shutdown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end())
    sock.listen(settings.backlog)  # a page opened before the loop runs waits in the backlog
    ready(end)
    server.run(sockets=[sock])
