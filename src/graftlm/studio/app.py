"""The server's answers: the page, and the interface that it asks.

    GET    /                         the page              GET  /assets/…      its parts
    GET    /api/machine              memory, models, versions
    GET    /api/uploads              the files             PUT  /api/uploads/NAME   a new one
    GET    /api/uploads/NAME/columns their columns         DELETE /api/uploads/NAME
    POST   /api/commands             what a request would run
    GET    /api/jobs                 the commands          POST /api/jobs      start one
    GET    /api/jobs/ID              its state and result  POST /api/jobs/ID/stop
    GET    /api/runs                 the runs              POST /api/runs/stop
    GET    /api/runs/curves?run=…    curves of one or more runs
    GET    /api/runs/samples?run=…   answers at evaluations
    GET    /api/chat                 the model held warm   DELETE /api/chat    let it go
    POST   /api/chat                 ask: lines of JSON, as the answers are written

All but the page need the token; see `guard.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from graftlm.errors import ArtifactError, GraftLMError, RequestError, ResourceError
from graftlm.files import finite
from graftlm.studio.commands import AnyRequest, words_of
from graftlm.studio.guard import Guard
from graftlm.studio.jobs import Jobs, shown
from graftlm.studio.machine import facts
from graftlm.studio.place import Place
from graftlm.studio.runs import Runs
from graftlm.studio.samples import Samples
from graftlm.studio.talk import Question, Talk
from graftlm.studio.uploads import Upload, columns_of, remove_partial, uploaded, uploads

__all__ = ["create_app"]

ASSETS = Path(__file__).parent / "assets"
_MOST_UPLOAD = 5_000_000_000
_MOST_RUNS_AT_ONCE = 12


def create_app(
    place: Place,
    token: str,
    hosts: Collection[str],
    *,
    most_upload: int = _MOST_UPLOAD,
    still_seconds: float = 20.0,
) -> Guard:
    """The application, guarded.

    Args:
        place: the studio's folders.
        token: what every request to the interface must have.
        hosts: the ``name:port`` that the server answers to.
        most_upload: the most bytes of an uploaded file, packed and unpacked.
        still_seconds: how long a request's body may stand still.
    """
    place.prepare()
    remove_partial(place)
    runs, jobs, talk, samples_of = Runs(place), Jobs(place), Talk(place), Samples(place)

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await talk.close()  # it holds a model; the jobs go on

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/assets", StaticFiles(directory=ASSETS), name="assets")

    @app.exception_handler(GraftLMError)
    async def wrong(_request: Request, error: Exception) -> JSONResponse:
        codes = ((ArtifactError, 404), (ResourceError, 413), (RequestError, 400))
        code = next((code for kind, code in codes if isinstance(error, kind)), 500)
        return JSONResponse({"error": str(error)}, code)

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def misshapen(_request: Request, error: Any) -> JSONResponse:
        said = [
            f"{'.'.join(str(w) for w in one['loc'][1:])}: {one['msg']}" for one in error.errors()
        ]
        return JSONResponse({"error": "\n".join(said)}, 422)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(ASSETS / "index.html")

    @app.get("/api/machine")
    def machine() -> dict[str, Any]:
        return facts(place) | {"most_upload": most_upload}

    @app.get("/api/uploads")
    def listed() -> list[dict[str, Any]]:
        return uploads(place)

    @app.put("/api/uploads/{name}")
    async def receive(name: str, request: Request) -> dict[str, str]:
        length = request.headers.get("content-length", "")
        upload = Upload(place, name, most_upload, int(length) if length.isdecimal() else None)
        try:
            async for block in request.stream():
                await run_in_threadpool(upload.write, block)
            return {"name": await run_in_threadpool(upload.finish)}
        finally:
            upload.discard()

    @app.get("/api/uploads/{name}/columns")
    def columns(name: str) -> dict[str, Any]:
        return columns_of(uploaded(place, name))

    @app.delete("/api/uploads/{name}")
    def removed(name: str) -> dict[str, str]:
        uploaded(place, name).unlink()
        return {"name": name}

    @app.post("/api/commands")
    def command(asked: Annotated[AnyRequest, Body()]) -> dict[str, str]:
        return {"command": shown(words_of(asked, place, runs))}

    @app.get("/api/jobs")
    def all_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 30) -> list[dict[str, Any]]:
        return [_in_short(jobs.described(job)) for job in jobs.all()[:limit]]

    @app.post("/api/jobs")
    def start(asked: Annotated[AnyRequest, Body()]) -> dict[str, Any]:
        job = jobs.start(asked.kind, words_of(asked, place, runs), asked.about())
        return {"id": job.id, "command": job.command}

    @app.get("/api/jobs/{id}")
    def one_job(id: str) -> JSONResponse:
        return JSONResponse(finite(jobs.described(jobs.one(id))))

    @app.post("/api/jobs/{id}/stop")
    def stop_job(id: str) -> dict[str, str]:
        jobs.stop(jobs.one(id))
        return {"id": id}

    @app.get("/api/runs")
    def all_runs() -> JSONResponse:
        return JSONResponse(finite(runs.all()))

    @app.post("/api/runs/stop")
    def stop_run(
        run: Annotated[str, Body()], now: Annotated[bool, Body()] = False
    ) -> dict[str, str]:
        runs.stop(run, now=now)
        return {"run": run}

    @app.get("/api/runs/curves")
    def curves(run: Annotated[list[str], Query(max_length=_MOST_RUNS_AT_ONCE)]) -> JSONResponse:
        drawn = [{"run": runs.described(name), "curves": runs.curves(name)} for name in run]
        return JSONResponse(finite(drawn))

    @app.get("/api/runs/samples")
    def samples(run: str) -> JSONResponse:
        return JSONResponse(samples_of.in_run(runs.folder(run), run))

    @app.get("/api/chat")
    def warm() -> dict[str, Any]:
        return talk.state()

    @app.post("/api/chat")
    async def ask(question: Question) -> StreamingResponse:
        folder = await run_in_threadpool(runs.folder, question.run)
        lines = _lines(talk.answers(folder, question))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @app.delete("/api/chat")
    async def let_go() -> dict[str, Any]:
        await talk.close()
        return talk.state()

    return Guard(app, hosts, token, still_seconds)


def _in_short(job: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job.items() if name not in ("result", "said")}


async def _lines(said: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """What is said, a line of JSON each. An error is the last: the status is sent already."""
    try:
        async with contextlib.aclosing(said):
            async for one in said:
                yield json.dumps(one).encode() + b"\n"
    except GraftLMError as error:
        yield json.dumps({"error": str(error)}).encode() + b"\n"
