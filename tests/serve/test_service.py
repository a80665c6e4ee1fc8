"""The service's answers, refusals and limits, spoken to without a network."""

import asyncio
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `search` is not installed")
from fastapi.testclient import TestClient

from crosspair.gallery.gallery import Gallery
from crosspair.serve import uploads
from crosspair.serve.service import Answer, create_app

TOKEN = "a-token-of-some-length"
LOCAL = "http://127.0.0.1:8000"


@pytest.fixture
def gallery(written_gallery) -> Gallery:
    return written_gallery()


@pytest.fixture
def connect(gallery) -> Iterator[Callable[..., TestClient]]:
    """Starts a service of the gallery and gives a client of it."""
    clients = []

    def start(address: str = LOCAL, **settings) -> TestClient:
        client = TestClient(create_app(gallery, **settings), base_url=address, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect) -> TestClient:
    return connect()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def first_id(client: TestClient) -> str:
    return client.get("/images").json()["results"][0]["id"]


def refused(response, status: int) -> str:
    """The sentence of an answer that must be a refusal."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"}
    detail = response.json()["detail"]
    assert "\n" not in detail
    assert len(detail) > 10
    return detail


class TestSearch:
    def test_a_sentence_finds_what_the_model_finds(self, client, gallery):
        answer = Answer.model_validate(client.get("/search", params={"q": "a red square", "top": 3}).json())
        expected = gallery.search(gallery.model().encode_text(["a red square"]).numpy(), 3)
        assert [result.name for result in answer.results] == [gallery.item(row).item_id for row in expected.rows[0]]
        np.testing.assert_allclose([result.score for result in answer.results], expected.scores[0], atol=1e-4)
        assert answer.images == 8

    @pytest.mark.parametrize("form", [False, True], ids=["as the body", "in a form"])
    def test_a_picture_finds_itself(self, client, gallery, form):
        data = gallery.image(2)
        response = client.post("/search", files={"image": data}) if form else client.post("/search", content=data)
        best = Answer.model_validate(response.json()).results[0]
        assert best.name == gallery.item(2).item_id
        assert best.score == pytest.approx(1, abs=1e-4)

    def test_what_is_similar_leaves_out_the_picture_itself(self, client, gallery):
        asked = first_id(client)
        answer = Answer.model_validate(client.get(f"/similar/{asked}").json())
        assert answer.query is not None
        assert answer.query.id == asked
        assert len(answer.results) == 7
        assert asked not in {result.id for result in answer.results}

    def test_without_a_query_it_shows_pictures_from_all_over(self, client, gallery):
        names = [result["name"] for result in client.get("/images?top=3").json()["results"]]
        assert names == [gallery.item(row).item_id for row in (0, 3, 7)]

    def test_pictures_are_given_as_indexed_and_small(self, client, gallery):
        shown = client.get("/search?q=red&top=1").json()["results"][0]
        original, small = client.get(shown["image"]), client.get(shown["thumbnail"])
        assert hashlib.sha256(original.content).hexdigest().startswith(shown["id"])
        assert (original.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")
        assert "immutable" in original.headers["cache-control"]

    def test_a_file_that_is_no_picture_any_more_is_not_given_away(self, client, gallery, images):
        shown = client.get("/search?q=red&top=1").json()["results"][0]
        (images / shown["name"]).write_text("<script>alert(1)</script>")
        assert "no longer the picture" in refused(client.get(shown["image"]), 404)

    def test_sentences_and_pictures_that_come_together_are_one_batch(self, gallery):
        app = create_app(gallery)

        async def ask_all() -> list[tuple[int, bytes]]:
            asked = [call(app, "GET", "/search", f"q=red+{number}&top=2") for number in range(40)]
            asked += [call(app, "POST", "/search", "top=1", body=gallery.image(row)) for row in range(8)]
            return await asyncio.gather(*asked)

        answers = asyncio.run(ask_all())
        assert {status for status, _ in answers} == {200}
        for row, (_, body) in enumerate(answers[40:]):
            assert json.loads(body)["results"][0]["name"] == gallery.item(row).item_id
        lines = asyncio.run(call(app, "GET", "/metrics"))[1].decode().splitlines()
        counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(counts["crosspair_batch_size_sum"]) == 48
        assert float(counts["crosspair_batch_size_count"]) < 24


class TestRefusals:
    @pytest.mark.parametrize(
        ("address", "status", "words"),
        [
            ("/search", 422, "q: field required"),
            ("/search?q=", 422, "q: "),
            ("/search?q=%20%20", 422, "q is empty"),
            (f"/search?q={'a' * 1001}", 422, "1000 characters"),
            ("/search?q=dog&top=0", 422, "top: "),
            ("/search?q=dog&top=many", 422, "top: "),
            ("/similar/ffffffffffffffff", 404, "no picture ffffffffffffffff"),
            ("/similar/..%2F..%2Fetc%2Fpasswd", 404, "there is no GET"),
            ("/images/etc", 422, "id: "),
            ("/images/..%2Fgallery.json", 404, "there is no GET"),
            ("/nowhere", 404, "there is no GET /nowhere"),
        ],
    )
    def test_a_wrong_query_is_refused_in_a_sentence(self, client, address, status, words):
        assert words in refused(client.get(address), status)

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            (b"", 400, "found no picture"),
            (b"hello", 415, "not a picture in a known format"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", 415, "the format eps"),
            (encoded(Image.effect_noise((64, 64), 50))[:2000], 415, "broken or cut off"),
            (encoded(Image.new("1", (8000, 8000))), 413, "8,000 x 8,000 pixels; at most 50,000,000"),
            (encoded(Image.new("1", (30000, 30000))), 413, "too many pixels; at most 50,000,000"),
            (bytes(uploads.MAX_BYTES + 1), 413, "more than 20,971,520 bytes"),
        ],
        ids=["empty", "text", "postscript", "cut off", "many pixels", "more than Pillow takes", "many bytes"],
    )
    def test_what_is_no_decent_picture_is_refused(self, client, body, status, words):
        assert words in refused(client.post("/search", content=body), status)

    def test_a_broken_form_is_refused(self, client):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        assert "form can't be read" in refused(client.post("/search", content=b"--y\r\n", headers=headers), 400)
        assert "found no picture" in refused(client.post("/search", data={"q": "x"}, files={"f": b""}), 400)

    def test_a_picture_that_trickles_in_is_given_up(self, gallery):
        app = create_app(gallery, upload_seconds=0.1)
        status, body = asyncio.run(call(app, "POST", "/search", body=b"\xff\xd8", rest=5))
        assert (status, b"did not come within 0.1 seconds" in body) == (408, True)

    def test_pictures_that_fill_the_memory_together_are_put_off(self, gallery, monkeypatch):
        receiver = uploads.Uploads(gallery.model().image_input, max_held=1000)
        monkeypatch.setattr("crosspair.serve.service.Uploads", lambda *args, **settings: receiver)
        app = create_app(gallery)
        status, body = asyncio.run(call(app, "POST", "/search", body=bytes(2000)))
        assert (status, b"try again" in body) == (503, True)
        assert asyncio.run(call(app, "POST", "/search", body=gallery.image(0)))[0] == 200  # nothing is held any more

    def test_more_queries_than_can_wait_are_put_off(self, connect, monkeypatch):
        client = connect()

        async def busy(self, query):
            from crosspair.serve.queries import Busy

            raise Busy

        monkeypatch.setattr("crosspair.serve.queries.Batcher.ask", busy)
        response = client.get("/search?q=red")
        assert "try again" in refused(response, 503)
        assert response.headers["retry-after"] == "1"

    def test_a_failure_inside_is_a_sentence_too(self, client, gallery, monkeypatch):
        monkeypatch.setattr(gallery, "search", lambda *arguments: 1 / 0)
        assert "ZeroDivision" not in refused(client.get("/search?q=red"), 500)
        monkeypatch.undo()
        assert client.get("/search?q=red").status_code == 200


class TestAccess:
    def test_another_name_for_this_machine_is_refused(self, connect):
        assert "another host" in refused(connect("http://rebound.example:8000").get("/search?q=dog"), 421)
        for name in ("localhost", "[::1]:99", "LOCALHOST:1"):
            assert connect(f"http://{name}").get("/healthz").status_code == 200

    def test_another_site_s_page_may_not_search(self, client):
        theirs = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert "another site" in refused(client.get("/search?q=dog", headers=theirs), 403)
        assert client.get("/", headers={**theirs, "Sec-Fetch-Mode": "navigate"}).status_code == 200

    def test_a_token_opens_everything_and_nothing_else_does(self, connect):
        client = connect("http://gallery.example", token=TOKEN)
        paths = ["/search?q=dog", "/similar/0123456789abcdef", "/images", "/images/0123456789abcdef", "/metrics"]
        for wrong in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": b"Bearer \xe9"},
        ):
            for path in paths:
                response = client.get(path, headers=wrong)
                assert "needs its token" in refused(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/search?q=dog", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        for public in ("/", "/page.js", "/page.css", "/icon.svg", "/docs", "/openapi.json", "/healthz"):
            assert client.get(public).status_code == 200

    def test_a_picture_s_address_opens_that_picture_alone(self, connect):
        client = connect("http://gallery.example", token=TOKEN)
        first, second = client.get("/images", headers={"Authorization": f"Bearer {TOKEN}"}).json()["results"][:2]
        assert client.get(first["thumbnail"]).status_code == 200
        assert client.get(first["image"]).status_code == 200
        assert TOKEN not in first["image"]
        refused(client.get(second["image"].replace(second["id"], first["id"])), 401)
        refused(client.get(first["image"].split("?")[0]), 401)

    def test_every_answer_carries_the_headers_that_protect_it(self, client):
        for path in ("/", "/search?q=dog", "/nowhere", "/docs"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


class TestPages:
    def test_no_page_needs_anything_from_elsewhere(self, client):
        for path in ("/", "/page.js", "/page.css", "/docs", "/icon.svg"):
            text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
            text = text.replace("http://localhost:8000", "").replace("http://gallery.example:8000", "")
            assert "http:" not in text
            assert "https:" not in text

    def test_the_description_of_the_api_names_every_route(self, client):
        text = client.get("/docs").text
        for path in client.get("/openapi.json").json()["paths"]:
            assert path in text

    def test_the_page_knows_the_service_s_limit(self, client):
        assert uploads.MAX_BYTES == 20 * 2**20
        assert "MAX_BYTES = 20 * 2 ** 20" in client.get("/page.js").text

    def test_metrics_count_requests_by_route(self, client):
        client.get("/search?q=dog")
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        text = client.get("/metrics").text
        assert 'crosspair_requests_total{method="GET",route="/search",status="200"} 1.0' in text
        assert 'crosspair_requests_total{method="GET",route="other",status="404"} 2.0' in text
        assert "crosspair_gallery_images 8.0" in text
        assert 'crosspair_request_seconds_bucket{le="0.1",route="/search"}' in text


async def call(app, method: str, path: str, query: str = "", body: bytes = b"", headers=(), rest: float = 0):
    """Status and body of a request. rest: seconds for which the body's end is kept back; then the connection is cut."""
    received = [{"type": "http.request", "body": body, "more_body": bool(rest)}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        if len(received) == 1:
            await asyncio.sleep(rest)
        return received.pop(0) if received else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="surrogateescape"),
        "query_string": query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_ten_thousand_fuzzed_requests_leave_it_answering(gallery):
    draw = random.Random(0)
    real = [gallery.image(row) for row in range(3)]
    known = gallery.item(0).sha256[:16]
    starts = ["/search", "/similar/", "/images/", "/images", "/", "/healthz", "/docs", "//", "/search/"]
    kinds = [b"image/png", b"multipart/form-data; boundary=x", b"multipart/form-data", b"\xff\x00", b"application/json"]

    def noise(most: int) -> bytes:
        return draw.randbytes(draw.randrange(most))

    def body() -> bytes:
        data = bytearray(draw.choice([*real, noise(300), b"--x\r\nContent-Disposition: form-data; " + noise(99), b""]))
        for _ in range(draw.randrange(4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data[: draw.randrange(len(data) + 1)]) if draw.random() < 0.3 else bytes(data)

    def request(app):
        path = draw.choice(starts) + draw.choice(
            ["", known, "0123456789abcdef", noise(20).decode("latin-1"), "../" * 3]
        )
        names = draw.choices(["q", "top", "size", "key", noise(4).decode("latin-1")], k=draw.randrange(4))
        query = "&".join(
            f"{name}={draw.choice(['1', '3', '-1', '9' * 40, noise(30).decode('latin-1')])}" for name in names
        )
        headers = [(b"content-type", draw.choice(kinds)), (noise(5).lower() or b"x", noise(30))]
        method = draw.choice(["GET", "GET", "POST", "POST", "PUT", "HEAD", "\x00"])
        return call(app, method, path, query, body(), headers, rest=0.001 * (draw.random() < 0.05))

    async def attack(app) -> dict[int, int]:
        statuses: dict[int, int] = {}
        for _ in range(200):
            for status, answer in await asyncio.gather(*(request(app) for _ in range(50))):
                statuses[status] = statuses.get(status, 0) + 1
                if status >= 400 and answer:
                    assert set(json.loads(answer)) == {"detail"}
        return statuses

    app = create_app(gallery)
    statuses = asyncio.run(attack(app))
    assert sum(statuses.values()) == 10_000
    assert set(statuses) <= {200, 400, 404, 405, 413, 415, 422, 503}
    assert statuses[200] > 300
    assert asyncio.run(call(app, "GET", "/search", "q=red"))[0] == 200
