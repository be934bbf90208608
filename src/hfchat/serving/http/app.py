"""The web application: routes, limits and the shape of every error around an engine that is handed in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from hfchat.safety.guards import Finding, Guards
from hfchat.serving.collecting.feedback import Collector, FeedbackHandler, add_feedback
from hfchat.serving.http.auth import OPEN_PATHS, ApiKeys, Auth
from hfchat.serving.http.checks import HeadLimit, HostCheck, ResponseHeaders, WebSocketOrigin
from hfchat.serving.http.connections import MAX_REQUESTS
from hfchat.serving.http.documentation import add_documentation
from hfchat.serving.http.limits import BodyLimit, Gate, GateKeeper, Slots, WebSocketLimit
from hfchat.serving.http.logs import log_request
from hfchat.serving.http.metrics import CONTENT_TYPE, Metrics
from hfchat.serving.http.rates import RateLimit
from hfchat.serving.http.record import Recording, RecordOfRequest, record_of
from hfchat.serving.openai import responses_protocol
from hfchat.serving.openai.card import add_cards
from hfchat.serving.openai.chat import ChatFormat, Conversation
from hfchat.serving.openai.completions import CompletionFormat, PlainPrompt
from hfchat.serving.openai.errors import ApiError, error_responses
from hfchat.serving.openai.fields import invalid_request
from hfchat.serving.openai.generation import Service, respond
from hfchat.serving.openai.guarding import Guarding, log_finding
from hfchat.serving.openai.protocol import ChatCompletion, Completion, Model, ModelList
from hfchat.serving.openai.requests import ChatCompletionRequest, CompletionRequest
from hfchat.serving.openai.responses import ResponsesFormat, with_fields_of_responses
from hfchat.serving.openai.responses_requests import ResponsesRequest
from hfchat.serving.settings import ServerSettings
from hfchat.serving.versions.models import ServedModels
from hfchat.serving.versions.readiness import Readiness

_PAGE = Path(__file__).parents[1] / "page"
_MAX_HEAD_BYTES = 32 * 1024
_MAX_BODY_BYTES = 1024 * 1024
_MAX_BODY_S = 30.0
_BODY_BYTES_PER_S = 64 * 2**20  # of one API key: a quarter of what a core reads and checks, or less
_MAX_WEBSOCKETS = 32  # of one key
_MAX_ALL_WEBSOCKETS = 256
_IDLE_WEBSOCKET_S = 300.0
_RATE_LIMITED = ("/v1/",)  # which GraphQL's fields ask too
# The page loads its own files and talks to its own server, nothing else; no page may frame it that is not allowed to.
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors {}"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(
    settings: ServerSettings,
    models: ServedModels,
    guards: Guards | None = None,
    keys: ApiKeys | None = None,
    collector: Collector | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        settings: Names and limits; `settings.host` decides whether only local requests are answered.
        models: Generate the answers. The application loads, starts and stops them.
        guards: Look at prompts and answers; the application closes them.
        keys: Who may use it; anyone if None.
        collector: Keeps feedback, and is run by the application; None takes no feedback.

    Returns:
        The application. For the server that starts and stops it, its `state` has `gate`
        (`hfchat.serving.http.limits.Gate`) and `loading`, the task that ends when all models can answer, or with what
        went wrong.
    """

    gate = Gate()
    # Prompts that guards look at have places of their own: a slow guard must not keep answers out.
    places = settings.max_concurrent_requests, settings.max_waiting_requests
    slots = Slots(*places, settings.max_wait_seconds, settings.max_generation_seconds)
    metrics = Metrics(slots, lambda: gate.inside, lambda: models.engines)

    def on_finding(finding: Finding) -> None:
        log_finding(finding)
        metrics.finding(finding)

    guarding = Guarding(guards, Slots(*places, settings.max_wait_seconds), on_finding)
    rate_limit = RateLimit(settings.requests_per_minute) if settings.requests_per_minute else None
    token_limit = RateLimit(settings.tokens_per_minute) if settings.tokens_per_minute else None
    on_answered = collector.answered if collector else None
    service = Service(models, slots, guarding, settings.default_max_tokens, on_answered, rate_limit, token_limit)

    # The framework's own pages of documentation would load from a CDN.
    lifespan = partial(_running, service=service, collector=collector)
    app = FastAPI(title="hfchat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.gate = gate
    # Some routes take whatever is left of a path for a name, so the order counts.
    _add_generation(app, service)
    add_feedback(app, FeedbackHandler(collector, metrics.feedback, logs_content=settings.log_content))
    _add_models(app, models, settings)
    _add_probes(app, settings, slots, Readiness(models, gate), metrics)
    _add_pages(app)
    if settings.graphql:
        from hfchat.serving.graphql import add_graphql

        add_graphql(app)
    _answer_errors(app)

    _add_layers(app, settings, keys, gate, rate_limit, metrics)
    return app


@asynccontextmanager
async def _running(app: FastAPI, service: Service, collector: Collector | None) -> AsyncIterator[None]:
    app.state.loading = asyncio.create_task(service.models.start())
    try:
        async with collector.running() if collector else nullcontext():
            yield
    finally:
        app.state.loading.cancel()
        await asyncio.wait({app.state.loading})
        await service.models.stop()
        await service.guarding.close()


# OpenAPI 3.1 has no word for streams; the schema is that of one event.
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_GENERATION = {
    200: {"content": {"text/event-stream": {"schema": _EVENT}}},
    **error_responses(400, 404, 408, 413, 415, 500, 503, 504),
}


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_GENERATION)
    async def chat_completions(request: ChatCompletionRequest, record: RecordOfRequest) -> Response:
        return await respond(
            service, request, [Conversation(request.chat())], ChatFormat(bool(request.logprobs)), record
        )

    @app.post("/v1/completions", response_model=Completion, responses=_GENERATION)
    async def completions(request: CompletionRequest, record: RecordOfRequest) -> Response:
        prompts = [PlainPrompt(prompt) for prompt in request.prompts]
        return await respond(service, request, prompts, CompletionFormat(request.logprobs is not None), record)

    @app.post("/v1/responses", response_model=responses_protocol.Response, responses=_GENERATION)
    async def responses(request: ResponsesRequest, record: RecordOfRequest) -> Response:
        chat = request.chat_request()
        try:
            return await respond(service, chat, [Conversation(chat.chat())], ResponsesFormat(request), record)
        except ApiError as error:
            raise with_fields_of_responses(error) from error

    @app.get("/v1/models", responses=error_responses())
    async def list_models() -> ModelList:
        return ModelList(data=service.models.list())


def _add_models(app: FastAPI, models: ServedModels, settings: ServerSettings) -> None:
    sources = {settings.model_id: settings.folder} | dict(adapter.split("=", 1) for adapter in settings.adapters)
    add_cards(app, models, sources)

    @app.get("/v1/models/{model_id:path}", responses=error_responses(404))
    async def retrieve_model(model_id: str) -> Model:
        return models.find(model_id)


def _add_probes(app: FastAPI, settings: ServerSettings, slots: Slots, readiness: Readiness, metrics: Metrics) -> None:
    """What the machinery around asks."""

    @app.get("/health", responses=error_responses())
    async def health() -> JSONResponse:
        """Whether the process is alive. Whether it can answer is for `/ready` to say."""
        state = {"running": slots.running, "waiting": slots.waiting}
        return JSONResponse({"status": "ok", "model": settings.model_id, **state})

    @app.get("/ready", responses=error_responses(503))
    async def ready() -> JSONResponse:
        """Whether an answer can be generated now: a token was, within the last seconds."""
        await readiness.check()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", include_in_schema=False)
    async def prometheus(record: RecordOfRequest) -> Response:
        if settings.metrics_keys and record.key_name not in settings.metrics_keys:
            raise ApiError(403, "This API key may not read the metrics.", code="metrics_forbidden")
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE))
    add_documentation(app)


def _add_layers(
    app: FastAPI,
    settings: ServerSettings,
    keys: ApiKeys | None,
    gate: Gate,
    rate_limit: RateLimit | None,
    metrics: Metrics,
) -> None:
    """What every request passes before a route gets it, from the innermost layer to the outermost."""
    app.add_middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES, max_s=_MAX_BODY_S, bytes_per_s=_BODY_BYTES_PER_S)
    app.add_middleware(GateKeeper, gate=gate, open_paths=OPEN_PATHS | {"/metrics"}, max_inside=MAX_REQUESTS)
    app.add_middleware(WebSocketLimit, max_each=_MAX_WEBSOCKETS, max_all=_MAX_ALL_WEBSOCKETS, idle_s=_IDLE_WEBSOCKET_S)
    if keys is not None:
        app.add_middleware(Auth, keys=keys, rate_limit=rate_limit, limited=_RATE_LIMITED)
    _add_checks_of_origin(app, settings, has_keys=keys is not None)
    app.add_middleware(HeadLimit, max_bytes=_MAX_HEAD_BYTES)
    policy = _POLICY.format(" ".join(settings.allow_frames) or "'none'")
    app.add_middleware(ResponseHeaders, headers=_HEADERS | {"Content-Security-Policy": policy})
    app.add_middleware(Recording, sinks=(log_request, metrics.request), with_content=settings.log_content)


def _add_checks_of_origin(app: FastAPI, settings: ServerSettings, has_keys: bool) -> None:
    """Layers that decide which pages' requests are answered."""
    if settings.allow_origins:  # outside of the keys: a browser asks, without one, before it sends one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends a dozen of its own
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(WebSocketOrigin, origins=settings.allow_origins)
    if settings.is_local or not has_keys or settings.allow_hosts:  # a page of another site has no key
        app.add_middleware(HostCheck, hosts=settings.hosts, any_address=not settings.is_local)


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape, those of the framework included."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        record_of(request.scope).blame(error)
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await api_error(request, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        messages = {
            404: f"There is nothing at {request.url.path}.",
            405: f"{request.method} is not allowed at {request.url.path}.",
        }
        message = messages.get(error.status_code, str(error.detail))
        return await api_error(request, ApiError(error.status_code, message, headers=error.headers))
