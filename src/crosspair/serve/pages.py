"""The search page, and a page about the API made from its OpenAPI description; neither loads external resources."""

from collections.abc import Awaitable, Callable
from html import escape
from importlib import resources
from string import Template
from typing import Any

from fastapi import FastAPI, Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def add_pages(app: FastAPI) -> None:
    """Routes of the search page, its assets and the API's documentation."""
    folder = resources.files("crosspair.serve") / "page"
    for address, (name, media_type) in _FILES.items():
        app.add_api_route(address, _file((folder / name).read_bytes(), media_type), include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(documentation(app.openapi()), media_type="text/html")


def _file(data: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(data, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return page


def documentation(openapi: dict[str, Any]) -> str:
    """HTML about every route: what it takes and what it answers."""
    template = (resources.files("crosspair.serve") / "page" / "docs.html").read_text(encoding="utf-8")
    routes = [
        _route(method.upper(), path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    return Template(template).substitute(
        title=escape(openapi["info"]["title"]),
        description=escape(openapi["info"]["description"]),
        version=escape(openapi["info"]["version"]),
        routes="\n".join(routes),
    )


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [_parameter(parameter) for parameter in operation.get("parameters", [])]
    if body := operation.get("requestBody"):
        rows.append(f"<dt>body</dt><dd>{escape(body['description'])}</dd>")
    answers = [
        f"<dt>{escape(status)}</dt><dd>{escape(response['description'])}</dd>"
        for status, response in sorted(operation["responses"].items())
        if status != "200"
    ]
    parts = [f"<h2><code>{method} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    parts += [f"<dl>{''.join(rows)}</dl>"] if rows else []
    parts += [f"<details><summary>Problems</summary><dl>{''.join(answers)}</dl></details>"] if answers else []
    return f"<section>{''.join(parts)}</section>"


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    facts = [parameter.get("description", "")]
    facts += [f"one of {', '.join(schema['enum'])}"] if "enum" in schema else []
    if "minimum" in schema:
        facts.append(f"{schema['minimum']} to {schema['maximum']}")
    facts.append("needed" if parameter["required"] else f"default {schema['default']}")
    return f"<dt>{escape(parameter['name'])}</dt><dd>{escape('; '.join(filter(None, facts)))}</dd>"
