"""The web application: routes, limits and the shape of every error around an engine that is handed in."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from hfchat.serving.chat import ChatHandler
from hfchat.serving.engine import Engine
from hfchat.serving.limits import BodyLimit, HostCheck, ResponseHeaders, Slots
from hfchat.serving.protocol import (
    ApiError,
    ChatCompletion,
    ChatCompletionRequest,
    ErrorResponse,
    Model,
    ModelList,
    invalid_request,
)

if TYPE_CHECKING:
    from hfchat.serving.server import ServerSettings

_LOGGER = logging.getLogger("hfchat.serving")
_PAGE = Path(__file__).with_name("page")
_MAX_BODY_BYTES = 1024 * 1024
_HEADERS = {
    # The page loads its own files and talks to its own server, nothing else; no other page may frame it.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(settings: "ServerSettings", engine: Engine) -> FastAPI:
    """Build the application.

    Args:
        settings: Names and limits; `settings.host` decides whether only local requests are answered.
        engine: Generates the answers. The application starts and stops it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()

    app = FastAPI(title="hfchat", lifespan=lifespan, docs_url=None, redoc_url=None)  # their pages load from a CDN
    slots = Slots(settings.max_concurrent_requests, settings.max_waiting_requests)
    chat = ChatHandler(settings.model_id, engine, slots, settings.default_max_tokens)
    model = Model(id=settings.model_id, created=int(time.time()))

    errors = {status: {"model": ErrorResponse} for status in (400, 404, 413, 429, 500)}

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=errors)
    async def chat_completions(request: ChatCompletionRequest) -> Response:
        return await chat(request)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(data=[model])

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> Model:
        if model_id != model.id:
            message = f"The model '{model_id}' does not exist; this server has '{model.id}'."
            raise ApiError(404, message, param="model", code="model_not_found")
        return model

    @app.get("/health")
    async def health() -> JSONResponse:
        state = {"running": slots.running, "waiting": slots.waiting}
        if engine.error is not None:
            return JSONResponse({"status": "error", "error": engine.error, **state}, 503)
        return JSONResponse({"status": "ok", "model": model.id, **state})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE))

    _answer_errors(app)
    app.add_middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES)
    app.add_middleware(ResponseHeaders, headers=_HEADERS)
    if settings.is_local:
        app.add_middleware(HostCheck, hosts={"localhost", "127.0.0.1", "[::1]", settings.host})
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape, those of the framework included."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_request(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        messages = {
            404: f"There is nothing at {request.url.path}.",
            405: f"{request.method} is not allowed at {request.url.path}.",
        }
        message = messages.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        _LOGGER.error("unexpected error at %s", request.url.path, exc_info=error)
        return ApiError(500, "Something in the server went wrong; its log says what.").response()
