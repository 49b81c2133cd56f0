"""The HTTP edge: the only asynchronous part.

POST /v1/score    ScoreRequest -> ScoreAnswer or RankingAnswer (contracts/scoring.py), or {"error": {...}}
GET  /v1/models   [ModelInfo, ...]: who answers
GET  /healthz     it answers
GET  /readyz      200 or 503, with reasons
GET  /metrics     Prometheus
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter
from typing import Final

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.scoring import Answer, ModelInfo, ScoreRequest
from runtime import metrics
from runtime.admin_app import Health
from scoring.errors import EXPIRED, Expired, Invalid, NotReady, Outcome, Overloaded, Refusal, Stopping, Unauthorized
from scoring.heads.request_decoding import MAX_REQUEST_BYTES, decode
from scoring.serve.request_queue import Submit

ANSWER_S: Final = 15.0
"""A request not answered in so many seconds is refused: something hangs."""
RETRY_AFTER_S: Final = 1
STATUS: Final[dict[Outcome, int]] = {
    "invalid": 400,
    "unauthorized": 401,
    "overloaded": 429,
    "failed": 500,
    "not_ready": 503,
    "expired": 504,
}

_encode = msgspec.json.Encoder().encode


def application(
    *, submit: Submit, models: Callable[[], list[ModelInfo]], health: Health, token: str | None = None
) -> Starlette:
    """
    :param models: who answers now.
    :param token: what `Authorization: Bearer` must carry for the pages under /v1; None = nothing.
    """

    async def score(request: Request) -> Response:
        with metrics.request_seconds.time():
            try:
                _check_token(request, token)
                reply = await _asked(submit, decode(await _body(request)))
            except (Invalid, Unauthorized, Overloaded, NotReady, Expired) as refusal:
                reply = refusal
            if isinstance(reply, Answer):
                metrics.score_requests.inc(1, "answered", "http")
                return _json(reply)
            metrics.score_requests.inc(1, reply.outcome, "http")
            return _refused(reply)

    async def list_models(request: Request) -> Response:
        try:
            _check_token(request, token)
        except Unauthorized as refusal:
            return _refused(refusal)
        return _json(models())

    async def healthz(request: Request) -> Response:
        return _json({"alive": True})

    async def readyz(request: Request) -> Response:
        ready = health.is_ready()
        return _json({"ready": ready, "parts": health.report()}, status=200 if ready else 503)

    async def numbers(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(metrics.REGISTRY), headers={"content-type": content_type})

    return Starlette(
        routes=[
            Route("/v1/score", score, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", numbers),
        ],
        exception_handlers={HTTPException: _no_such_page},
    )


def _check_token(request: Request, token: str | None) -> None:
    """:raises Unauthorized: there is a token, and the request does not carry it."""
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Compared in constant time: how long it takes must not tell how much of it was right.
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Unauthorized("the token is missing or wrong", where="Authorization", hint="send `Bearer TOKEN`")


async def _asked(submit: Submit, request: ScoreRequest) -> Answer | Refusal:
    """Hands a request to the engine's thread and waits for its reply."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer | Refusal] = loop.create_future()
    started = perf_counter()

    def settle(reply: Answer | Refusal) -> None:
        if not future.done():
            future.set_result(reply)

    def done(reply: Answer | Refusal) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, reply)

    wait_s = ANSWER_S if request.deadline is None else (request.deadline - datetime.now(UTC)).total_seconds()
    submit(request, done)
    try:
        async with asyncio.timeout(min(wait_s, ANSWER_S)):
            return await future
    except TimeoutError:
        if wait_s < ANSWER_S:
            raise EXPIRED from None
        raise NotReady(
            f"no answer within {perf_counter() - started:.0f} s",
            where="score",
            hint="ask again; if it stays so, Postgres hangs or the batches are too large: see /metrics and the log",
        ) from None


async def _body(request: Request) -> bytes:
    """:raises Invalid: it is larger than any request needs, or cut short."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_REQUEST_BYTES:
                raise Invalid(
                    f"more than {MAX_REQUEST_BYTES} bytes", where="request body", hint="send one ScoreRequest"
                )
    except ClientDisconnect:
        raise Invalid("the client left before its request was complete", where="request body") from None
    return bytes(body)


def _refused(refusal: Refusal) -> Response:
    status = STATUS[refusal.outcome]
    again = {"retry-after": str(RETRY_AFTER_S)} if isinstance(refusal, Overloaded | NotReady) else {}
    if isinstance(refusal, Unauthorized):
        again["www-authenticate"] = "Bearer"
    if isinstance(refusal, Stopping):
        again["connection"] = "close"  # the next request on it would find the door shut
    said = {"reason": refusal.outcome, "message": refusal.what, "where": refusal.where, "hint": refusal.hint}
    return _json({"error": said}, status=status, headers=again)


async def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {"reason": "invalid", "message": error.detail, "where": f"{request.method} {request.url.path}"}
    todo = "POST /v1/score; GET /v1/models, /healthz, /readyz, /metrics"
    return _json({"error": {**said, "hint": todo}}, status=error.status_code, headers=dict(error.headers or {}))


def _json(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(value), status_code=status, headers=headers, media_type="application/json")
