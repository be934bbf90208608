"""Errors in OpenAI's shape (https://platform.openai.com/docs/guides/error-codes)."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetail


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for the API's description. Every route may answer 401, 403 and 429."""
    return {status: {"model": ErrorResponse} for status in sorted({401, 403, 429, *statuses})}


class ApiError(Exception):
    """An answer in OpenAI's error shape. `param` is the field to blame, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        type = type or ("server_error" if status >= 500 else "invalid_request_error")
        self.body = ErrorResponse(error=ErrorDetail(message=message, type=type, param=param, code=code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)
