"""Starts the server: a socket, the link with the token, uvicorn."""

from __future__ import annotations

import json
import logging
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from graftlm.errors import ConfigError, ResourceError
from graftlm.studio.place import Place, kept_token

__all__ = ["hosts_of", "serve"]

_MOST_CONNECTIONS = 100
"""Further ones are answered 503. A browser opens six for a page."""
_KEEP_ALIVE_SECONDS = 5
_HEADER_SECONDS = 10.0


def serve(
    runs: Path,
    *,
    models: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed: Sequence[str] = (),
    open_page: bool = False,
    as_json: bool = False,
) -> None:
    """Serve the studio of ``runs`` until Ctrl-C.

    Args:
        runs: the runs folder; it is created if it is missing.
        models: a folder of models that may be chosen.
        host: the address to listen on.
        port: the port; 0 for any free one.
        allowed: further host names that requests may name.
        open_page: open the link in the user's browser.
        as_json: print the address as one JSON object.

    Raises:
        ConfigError: FastAPI or uvicorn is not installed, or ``models`` is no folder.
        ResourceError: the port is taken, or the runs folder cannot be written.
    """
    try:
        import uvicorn

        from graftlm.serve.patience import patient
        from graftlm.studio.app import create_app
        from graftlm.studio.guard import TAKE_SECONDS
    except ImportError as error:
        raise ConfigError(
            f"`graftlm studio` needs {error.name}: pip install 'graftlm[studio]'"
        ) from error
    if models is not None and not models.is_dir():
        raise ConfigError(f"--models {models}: there is no such folder")
    try:
        listening = socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Is a studio running there "
            "already? Choose another --port."
        ) from error
    with listening:
        bound = listening.getsockname()[1]
        token = kept_token()
        place = Place(runs.absolute(), models and models.absolute())
        app = create_app(place, token, hosts_of(host, bound, allowed))
        link = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{bound}/#token={token}"
        if as_json:
            print(json.dumps({"url": link, "runs": str(place.runs)}), flush=True)
        else:
            print(f"graftlm studio: {link}", flush=True)
            print("Ctrl-C ends the page's server; runs go on.", file=sys.stderr)
        if open_page:
            webbrowser.open(link)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            http=patient(_HEADER_SECONDS, TAKE_SECONDS),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listening])


def hosts_of(host: str, port: int, allowed: Sequence[str]) -> set[str]:
    """The values of the Host header that the server answers to.

    An address that stands for all addresses says no name: then the user names them.
    """
    names = {"127.0.0.1", "localhost", *allowed}
    if host not in ("0.0.0.0", "::"):
        names.add(f"[{host}]" if ":" in host else host)
    return {f"{name.lower()}:{port}" for name in names}
