"""How to serve a model: each option of `hfchat serve` once, with its help, its type and its checks."""

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from hfchat.errors import UserError
from hfchat.gguf.weight_types import WeightName
from hfchat.registry.versions import Registry

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?")


def _check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(
            f"must be `https://host` or `https://host:port` in lower case, not {origin!r}; "
            "name each site: there is no `*`"
        )
    return origin


def _check_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError(f"must be a name without a port, such as chat.example.org, not {host!r}")
    return host


@dataclass(frozen=True)
class _Only:
    """Marks a field that has a meaning for some servers only; for others it must be left at its default."""

    applies: Callable[["ServerSettings"], object]
    complaint: str


_FEEDBACK = _Only(lambda settings: settings.feedback is not None, "is for --feedback, which names the database")
_MODEL_HERE = _Only(
    lambda settings: not settings.upstreams, "is for a model on this machine; upstreams have their own"
)
_UPSTREAMS = _Only(lambda settings: settings.upstreams, "is for upstreams; MODEL must then be their URLs")

_AtLeastOne = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Origins = list[Annotated[str, AfterValidator(_check_origin)]]


def _help(text: str, metavar: str | None = None, **more: str) -> dict[str, str]:
    """What the parser is told about a field; `aliases` is how its option is spelled where that is not as its key."""
    return {"help": text, **({"metavar": metavar} if metavar else {}), **more}


@dataclass
class ServerSettings:
    """How to serve a model. The help of a field says what it does; `hfchat serve --help` shows them all."""

    model: str | list[str] = field(
        metadata=_help(
            "a folder, a registry, a Hub id or a .gguf file, e.g. outputs/demo/assistant/merged; or servers with an "
            "OpenAI-compatible API that have the model, e.g. http://host:8000/v1",
            "MODEL",
        )
    )
    upstream_model: Annotated[str | None, _UPSTREAMS] = field(
        default=None, metadata=_help("the model's name at these URLs (the only one there)", "NAME")
    )
    upstream_api_key_env: Annotated[str | None, _UPSTREAMS] = field(
        default=None, metadata=_help("the environment variable that has their API key", "VARIABLE")
    )
    host: str = field(default="127.0.0.1", metadata=_help("address to bind; other machines cannot reach %(default)s"))
    port: Annotated[int, Field(ge=1, le=65535)] = field(default=8000, metadata=_help("port (%(default)s)"))
    served_model_name: str | None = field(
        default=None, metadata=_help("the model's name in the API (that of its folder, or its Hub id)", "NAME")
    )
    max_concurrent_requests: _AtLeastOne = field(
        default=8,
        metadata=_help(
            "answers that are generated at a time (%(default)s); one more for an API key that has none while "
            "others have them all",
            "N",
        ),
    )
    max_waiting_requests: Annotated[int, Field(ge=0)] = field(
        default=32,
        metadata=_help("answers of each API key that may wait; more are refused with 429 (%(default)s)", "N"),
    )
    max_wait_seconds: _Positive = field(
        default=60, metadata=_help("how long a request may wait before it is refused with 503 (%(default)s)", "S")
    )
    max_generation_seconds: _Positive = field(
        default=600, metadata=_help("how long an answer may take before it is cut (%(default)s)", "S")
    )
    default_max_tokens: Annotated[_AtLeastOne, _MODEL_HERE] = field(
        default=1024, metadata=_help("length of an answer in tokens, if its request does not say (%(default)s)", "N")
    )
    drain_seconds: _NotNegative = field(
        default=30,
        metadata=_help(
            "how long running answers may go on after Ctrl-C or SIGTERM before they end with an error (%(default)s)",
            "S",
        ),
    )
    adapters: Annotated[list[str], _MODEL_HERE] = field(
        default_factory=list,
        metadata=_help(
            "an adapter of the model that answers beside it, under this name; repeatable",
            "NAME=FOLDER",
            aliases="--adapter",
        ),
    )
    guards: str | None = field(
        default=None, metadata=_help("guards of prompts and answers: a YAML file, or `default` (none)", "FILE.yaml")
    )
    api_keys: str | None = field(
        default=None,
        metadata=_help(
            "answer only those who show one of these keys, lines of `hfchat api-key`; also read from HFCHAT_API_KEYS",
            "FILE",
        ),
    )
    requests_per_minute: _AtLeastOne | None = field(
        default=None,
        metadata=_help("limit of each API key; a request for several answers counts as many times (none)", "N"),
    )
    tokens_per_minute: _AtLeastOne | None = field(
        default=None,
        metadata=_help(
            "limit of the tokens of each API key, of prompts and answers together (none). An answer that has "
            "begun is not cut; the key's next request waits until the tokens are paid",
            "N",
        ),
    )
    allow_anyone: bool = field(default=False, metadata=_help("serve other machines without API keys"))
    allow_origins: _Origins = field(
        default_factory=list,
        metadata=_help("a site whose pages may use the server (CORS); repeatable", "URL", aliases="--allow-origin"),
    )
    allow_frames: _Origins = field(
        default_factory=list,
        metadata=_help(
            "a site whose pages may show the chat page in a frame; repeatable", "URL", aliases="--allow-frame"
        ),
    )
    allow_hosts: list[Annotated[str, AfterValidator(_check_host)]] = field(
        default_factory=list,
        metadata=_help(
            "another name of this server, such as chat.example.org; repeatable. Without API keys, requests "
            "that were addressed to a name that is not its own are refused",
            "NAME",
            aliases="--allow-host",
        ),
    )
    metrics_keys: list[str] = field(
        default_factory=list,
        metadata=_help(
            "the API key of this name may read /metrics; repeatable (all may)", "NAME", aliases="--metrics-key"
        ),
    )
    log_content: bool = field(default=False, metadata=_help("log what is asked and answered, not only how much"))
    feedback: str | None = field(
        default=None, metadata=_help("store feedback with its conversations: an SQLite file or a URL (no)", "DATABASE")
    )
    keep_conversations: Annotated[bool, _FEEDBACK] = field(
        default=False,
        metadata=_help("also store the chats that nobody rates, unless their requests say `store: false`"),
    )
    feedback_redact: Annotated[bool, _FEEDBACK] = field(
        default=True, metadata=_help("take personal data, such as addresses, out of what is stored (yes)")
    )
    feedback_retention_days: Annotated[float | None, Field(gt=0, le=36_500, allow_inf_nan=False), _FEEDBACK] = field(
        default=None, metadata=_help("delete what is stored after that (never)", "DAYS")
    )
    feedback_max_gib: Annotated[_Positive, _FEEDBACK] = field(
        default=10,
        metadata=_help("size to which the SQLite file may grow; then nothing more is stored (%(default)s)", "GIB"),
    )
    trusted_keys: Annotated[list[str], _FEEDBACK] = field(
        default_factory=list,
        metadata=_help(
            "an API key of a front end that knows its users: each `user` that it names may rate an answer, "
            "while of other keys one opinion of each answer holds; repeatable",
            "NAME",
        ),
    )
    graphql: bool = field(default=False, metadata=_help("also answer GraphQL, at /graphql"))
    engine: Annotated[Literal["auto", "transformers", "llamacpp", "vllm"], _MODEL_HERE] = field(
        default="auto",
        metadata=_help(
            "what generates the answers: transformers, llamacpp or vllm (%(default)s: vllm on a GPU where it is "
            "installed, llamacpp on CPUs where it is installed, else transformers)",
            "ENGINE",
        ),
    )
    weights: Annotated[Literal["auto", "float32", "bfloat16", WeightName], _MODEL_HERE] = field(
        default="auto",
        metadata=_help(
            "float32 or bfloat16; for llamacpp a type of GGUF files such as bf16, q8_0 or q4_k_m (%(default)s: q8_0 "
            "for llamacpp, otherwise bfloat16 where the machine computes in it)",
            "TYPE",
        ),
    )
    max_drift: Annotated[_Positive | None, _MODEL_HERE] = field(
        default=None,
        metadata=_help(
            "how far the answers of a converted model may be from those of the model that was evaluated: mean KL "
            "divergence in nats a token (by the type of its weights); `hfchat serve` refuses to start beyond it",
            "NATS",
        ),
    )
    engine_args: Annotated[str, _Only(lambda settings: settings.engine == "vllm", "is for --engine vllm")] = field(
        default="",
        metadata=_help('arguments for `vllm serve`, such as "--tensor-parallel-size 4 --max-model-len 8192"', "ARGS"),
    )
    allow_template_mismatch: Annotated[bool, _MODEL_HERE] = field(
        default=False,
        metadata=_help("serve although the chat template is not the one that the model was trained with"),
    )
    upstreams: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        hints = get_type_hints(ServerSettings, include_extras=True)
        self._check("model", hints.pop("model"))
        models = [self.model] if isinstance(self.model, str) else self.model
        urls = tuple(model for model in models if model.startswith(("http://", "https://")))
        if not models or (urls and len(urls) < len(models)) or (not urls and len(models) > 1):
            raise UserError("MODEL must be one model, or one or more URLs of servers that have it")
        self.model, self.upstreams = models[0] if len(models) == 1 else models, urls
        for name, hint in hints.items():
            self._check(name, hint)

    def _check(self, name: str, hint: Any) -> None:
        """Check one field by its type, and convert it as far as the type allows."""
        try:
            setattr(self, name, TypeAdapter(hint).validate_python(getattr(self, name)))
        except ValidationError as error:
            fault = error.errors()[0]
            # pydantic says "Input should be greater than 0"; what our own checks raise is a whole sentence.
            problem = fault["msg"].replace("Input should be", "must be", 1) + f", not {fault['input']!r}"
            if fault["type"] == "value_error":
                problem = str(fault["ctx"]["error"])
            raise UserError(f"{option(name)} {problem}") from error
        default_factory = _FIELDS[name].default_factory
        default = _FIELDS[name].default if default_factory is MISSING else default_factory()
        for mark in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(mark, _Only) and not mark.applies(self) and getattr(self, name) != default:
                raise UserError(f"{option(name)} {mark.complaint}")

    @property
    def source(self) -> str:
        """Where the model comes from; of several upstreams, the first."""
        return self.model if isinstance(self.model, str) else self.model[0]

    @property
    def model_id(self) -> str:
        """The model's name in the API."""
        if self.served_model_name:
            return self.served_model_name
        if self.source.endswith(".gguf"):
            return Path(self.source).stem
        return Path(self.source).resolve().name if Path(self.source).is_dir() else self.source

    @property
    def folder(self) -> str:
        """Where the model is: of a registry, its link to the version that answers.

        Raises:
            UserError: If no version answers yet.
        """
        if not Registry.is_one(self.source):
            return self.source
        registry = Registry(self.source)
        registry.answering()
        return str(registry.current)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> set[str]:
        """The names by which this server may be addressed. Hugging Face tells a Space its name in `SPACE_HOST`."""
        if self.is_local:
            return {"localhost", "127.0.0.1", "[::1]", self.host, *self.allow_hosts}
        machine = socket.gethostname()
        space = {os.environ["SPACE_HOST"]} if "SPACE_HOST" in os.environ else set()
        return {"localhost", self.host, machine, f"{machine}.local", *space, *self.allow_hosts}

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


_FIELDS = {declared.name: declared for declared in fields(ServerSettings)}


def option(name: str) -> str:
    """The option of a field, as messages spell it."""
    if name == "model":
        return "MODEL"
    return _FIELDS[name].metadata.get("aliases", f"--{name.replace('_', '-')}")
