"""The HTTP API of a gallery as an ASGI application: search by a sentence or an image, and the page to do it on.

app = create_app(Gallery.open("GALLERY"))     # any ASGI server runs it; `crosspair serve` uses uvicorn (server.py)
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from crosspair.data.records import printable
from crosspair.errors import UserError
from crosspair.gallery.gallery import Gallery
from crosspair.serve.access import LOOPBACK_NAMES, Access, image_key
from crosspair.serve.monitoring import Monitor, Monitoring
from crosspair.serve.pages import add_pages
from crosspair.serve.queries import Answerer, Batcher, Busy, Hit, SearchQuery
from crosspair.serve.uploads import MAX_SECONDS, Uploads
from crosspair.version import __version__

TOP = 40
MAX_TOP = 500
MAX_CHARACTERS = 1000  # of a sentence
FOREVER = "private, max-age=31536000, immutable"  # an image's id is made of its bytes
# By their first bytes, never by their name: a browser must not take an image for a page.
_TYPES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"BM"), "image/bmp"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
)


class Result(BaseModel):
    """An image of the gallery."""

    id: str
    name: str
    score: float | None  # cosine, -1..1; None without a query
    width: int
    height: int
    label: int | None
    captions: list[str]
    thumbnail: str
    image: str
    similar: str


class Answer(BaseModel):
    """Images, best first."""

    images: int  # in the gallery
    query: Result | None  # the image of the gallery whose like was searched
    results: list[Result]


class Problem(BaseModel):
    """The reason why there is no answer, in a sentence."""

    detail: str


Top = Annotated[int, Query(ge=1, le=MAX_TOP, description="how many images, at most")]
ImageId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="the id of a result")]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what was sent can't be read"},
    401: {"model": Problem, "description": "the token is missing or wrong"},
    422: {"model": Problem, "description": "a parameter is missing or wrong"},
    503: {"model": Problem, "description": "too many queries wait; Retry-After says when to try again"},
}
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "there is no such image"}}
UPLOAD_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "the image came too slowly"},
    413: {"model": Problem, "description": "the image is too large"},
    415: {"model": Problem, "description": "what was sent is no image"},
}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "an image's bytes, or a form with one file; at most 20 MB and 50 million pixels",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}


def create_app(
    gallery: Gallery,
    *,
    token: str | None = None,
    hosts: frozenset[str] = LOOPBACK_NAMES,
    upload_seconds: float = MAX_SECONDS,
) -> FastAPI:
    """The service of one gallery. Raises UserError when its model can't be had.

    token: needed for everything but the empty page. Without one, only requests for one of `hosts` are answered.
    upload_seconds: that a client may take to send an image.
    """
    answerer = Answerer(gallery)
    batcher: Batcher[SearchQuery, list[Hit]] = Batcher(
        answerer, cost=lambda query: query.cost, observe=lambda *batch: monitor.batch(*batch)
    )
    monitor = Monitor(len(gallery), lambda: len(batcher))
    uploads = Uploads(answerer.model.image_input, max_seconds=upload_seconds)
    shown = Shown(gallery, token)

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()
        uploads.close()

    app = FastAPI(
        title="crosspair gallery",
        description="Search images by a sentence or an image.",
        version=__version__,
        docs_url=None,  # it would load its parts from another site
        redoc_url=None,
        redirect_slashes=False,
        lifespan=closing,
    )
    app.add_middleware(Access, token=token, hosts=hosts)
    app.add_middleware(Monitoring, monitor=monitor)
    _add_errors(app)

    async def answer(query: SearchQuery) -> JSONResponse:
        try:
            hits = await batcher.ask(query)
        except Busy:
            raise HTTPException(503, "too many queries wait; try again", {"Retry-After": "1"}) from None
        return shown.answer(hits, query.row)

    @app.get("/search", response_model=Answer, responses=PROBLEMS, summary="Images that a sentence describes")
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=MAX_CHARACTERS, description="the sentence")], top: Top = TOP
    ) -> JSONResponse:
        if not q.strip():
            raise HTTPException(422, "q is empty; expected a sentence")
        return await answer(SearchQuery(top, text=q))

    @app.post(
        "/search",
        response_model=Answer,
        responses=PROBLEMS
        | {
            status: {"model": Problem, "description": "the image is too slow, too large or none"}
            for status in (408, 413, 415)
        },
        openapi_extra=UPLOAD,
        summary="Images that look like yours",
    )
    async def search_by_image(request: Request, top: Top = TOP) -> JSONResponse:
        return await answer(SearchQuery(top, image=await uploads.image(request)))

    @app.get("/similar/{id}", response_model=Answer, responses=PROBLEMS | MISSING, summary="Images like one of them")
    async def similar(id: ImageId, top: Top = TOP) -> JSONResponse:
        return await answer(SearchQuery(top, row=shown.row(id)))

    @app.get("/images", response_model=Answer, summary="Some images, from all over the gallery")
    async def images(top: Top = TOP) -> JSONResponse:
        rows = np.linspace(0, len(gallery) - 1, min(top, len(gallery))).astype(int).tolist()
        return shown.answer([Hit(row, None) for row in rows])

    @app.get(
        "/images/{id}",
        response_class=Response,
        responses=MISSING | {200: {"content": {"image/*": {}}, "description": "the encoded image"}},
        summary="An image as it was indexed, or its thumbnail",
    )
    def image(id: ImageId, size: Literal["original", "thumbnail"] = "original") -> Response:
        row = shown.row(id)
        try:
            data = gallery.thumbnail(row) if size == "thumbnail" else gallery.image(row)
        except UserError as error:
            raise HTTPException(404, str(error)) from None
        return Response(data, media_type=_media_type(data), headers={"Cache-Control": FOREVER})

    @app.get("/healthz", summary="Whether it answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, summary="Counts and times for Prometheus")
    def metrics() -> Response:
        return Response(monitor.text(), media_type="text/plain; version=0.0.4")

    add_pages(app)
    return app


class Shown:
    """A gallery's images as clients see them: under ids made of their checksums, never by a path."""

    def __init__(self, gallery: Gallery, token: str | None) -> None:
        self._gallery = gallery
        self._token = token
        numbers = np.array([int(checksum[:16], 16) for checksum in gallery.items["sha256"]], np.uint64)
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]
        self._described = lru_cache(8192)(self._describe)

    def row(self, image_id: str) -> int:
        """The first row of an image. Raises HTTPException when there is none."""
        number = np.uint64(int(image_id, 16))
        place = int(np.searchsorted(self._sorted, number))
        if place == len(self._sorted) or self._sorted[place] != number:
            raise HTTPException(404, f"there is no picture {image_id} in this gallery")
        return int(self._order[place])

    def answer(self, hits: list[Hit], query: int | None = None) -> JSONResponse:
        """Hits as an `Answer`. query: the row whose like was searched."""
        content = {
            "images": len(self._gallery),
            "query": None if query is None else self._described(query) | {"score": None},
            "results": [self._described(hit.row) | {"score": _rounded(hit.score)} for hit in hits],
        }
        return JSONResponse(content)

    def _describe(self, row: int) -> dict[str, Any]:
        item = self._gallery.item(row)
        image_id = item.sha256[:16]
        address = f"/images/{image_id}"
        key = f"key={image_key(self._token, image_id)}" if self._token else ""
        return {
            "id": image_id,
            "name": item.item_id,
            "width": item.width,
            "height": item.height,
            "label": item.label,
            "captions": item.captions or [],
            "thumbnail": f"{address}?size=thumbnail{key and '&' + key}",
            "image": f"{address}{key and '?' + key}",
            "similar": f"/similar/{image_id}",
        }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _media_type(data: bytes) -> str:
    return next((kind for start, kind in _TYPES if start.match(data)), "application/octet-stream")


def _add_errors(app: FastAPI) -> None:
    """Every problem as {"detail": one sentence}."""

    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code in (404, 405) and detail == HTTPStatus(error.status_code).phrase:
            asked = f"{request.method} {request.scope['path']}"
            detail = f"there is no {printable(asked)}; /docs lists what there is"
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        name = found["loc"][-1]
        return JSONResponse({"detail": f"{name}: {found['msg'][:1].lower()}{found['msg'][1:]}"}, 422)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the service failed at this; its log says why"}, 500)

    app.add_exception_handler(HTTPException, refused)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, failed)
