"""Vectors over HTTP: embeddings, classes, scores and ranks, by the clients that people have."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ollama
import openai
import pytest
import requests
import torch
from quire import LLM, AsyncEngine
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.pooled_checkpoints import PooledCheckpoint, make_pooled
from quire.fuzz.rerankers import asked, make_reranker, overrides
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from .conftest import served

CLS, SEP, UNK, FIRST = 3, 4, 5, 10
QUERY = "w20 w21 w22"
DOCUMENTS = ["w30 w31", "w20 w21 w22 w23", "w90", "w30 w31"]


def write_tokenizer(folder: Path, *, types: bool) -> None:
    """Whole words w10, w11, ... whose ids are their numbers, between BERT's special tokens."""
    words = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNK}
    words |= {f"w{i}": i for i in range(FIRST, VOCAB_SIZE)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    second = "$B:1 [SEP]:1" if types else "$B [SEP]"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] {second}",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    backend.save(str(folder / "tokenizer.json"))


def ids(text: str) -> list[int]:
    return [CLS, *(int(word[1:]) for word in text.split()), SEP]


def make_client(live: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def demo_client(demo: Any) -> Iterator[openai.OpenAI]:
    with make_client(demo) as client:
        yield client


class Served(NamedTuple):
    """A server of a checkpoint."""

    live: Any
    made: PooledCheckpoint
    openai: openai.OpenAI

    def post(self, path: str, **body: Any) -> Any:
        """Ask; the answer must be 200."""
        response = requests.post(self.live.url + path, json=body, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, **body: Any) -> str:
        """Ask in vain, and return what is said."""
        response = requests.post(self.live.url + path, json=body, timeout=60)
        assert response.status_code == 400, response.text
        return response.json()["error"]["message"]  # type: ignore[no-any-return]  # a text


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """Start a server of a kind of checkpoint, once."""
    with ExitStack() as stack:
        started: dict[str, Served] = {}

        def start(kind: str) -> Served:
            if kind not in started:
                folder = tmp_path_factory.mktemp(kind)
                made = make_pooled(kind, folder)
                write_tokenizer(folder, types=kind.startswith("bert"))
                engine = AsyncEngine(model=str(folder), served_model_name=kind, num_threads=1)
                live = stack.enter_context(served(engine))
                started[kind] = Served(live, made, stack.enter_context(make_client(live)))
            return started[kind]

        yield start


@pytest.fixture
def embedding(serve: Callable[[str], Served]) -> Served:
    return serve("bert-mean-dense")


@pytest.fixture
def cross(serve: Callable[[str], Served]) -> Served:
    return serve("xlmr-cross")


def test_the_openai_client_embeds_texts_and_tokens(embedding: Served) -> None:
    texts = [QUERY, *DOCUMENTS]
    wanted = np.stack([embedding.made.vector(ids(text)).numpy() for text in texts])
    given = embedding.openai.embeddings.create(model="bert-mean-dense", input=texts)
    assert [one.index for one in given.data] == list(range(len(texts)))
    found = np.array([one.embedding for one in given.data], np.float32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert given.usage.prompt_tokens == given.usage.total_tokens == sum(len(ids(t)) for t in texts)
    tokens = embedding.openai.embeddings.create(
        model="bert-mean-dense", input=[ids(text) for text in texts], encoding_format="float"
    )
    assert np.array_equal(np.array([one.embedding for one in tokens.data], np.float32), found)


def test_formats_hold_the_same_bits(embedding: Served) -> None:
    plain = embedding.post("/v1/embeddings", input=QUERY)["data"][0]["embedding"]
    packed = embedding.post("/v1/embeddings", input=QUERY, encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    assert np.array_equal(decoded, np.array(plain, np.float32))
    assert packed["id"].startswith("embd-") and packed["object"] == "list"


def test_dimensions_cut_and_normalize(embedding: Served) -> None:
    whole = embedding.made.vector(ids(QUERY)).double()
    given = embedding.openai.embeddings.create(
        model="bert-mean-dense", input=QUERY, dimensions=12, extra_body={"normalize": True}
    )
    wanted = whole[:12] / whole[:12].norm()
    np.testing.assert_allclose(given.data[0].embedding, wanted.numpy(), rtol=0, atol=1e-5)
    for wrong, message in ((0, "dimensions is 0"), (49, "from 1 to 48")):
        assert message in embedding.refused("/v1/embeddings", input=QUERY, dimensions=wrong)


def test_a_text_that_is_too_long_is_refused_or_cut(embedding: Served) -> None:
    text = " ".join(["w30"] * 200)
    assert "it must have at most 96" in embedding.refused("/v1/embeddings", input=text)
    cut = embedding.post("/v1/embeddings", input=text, truncate_prompt_tokens=-1)
    assert cut["usage"]["prompt_tokens"] == 96
    shorter = embedding.post("/v1/embeddings", input=text, truncate_prompt_tokens=10)
    wanted = embedding.made.vector(ids(" ".join(["w30"] * 8))).numpy()
    np.testing.assert_allclose(shorter["data"][0]["embedding"], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": []}, "input is empty"),
        ({"input": ""}, "input is empty"),
        ({"input": [[]]}, "input is empty"),
        ({"input": ["a", 5]}, "input is a list of several kinds"),
        ({"input": [VOCAB_SIZE]}, f"0 to {VOCAB_SIZE - 1}"),
        ({"input": [-1]}, "a token id"),
        ({"input": "w10", "encoding_format": "hex"}, "one of float, base64"),
        ({"input": "w10", "temperature": 1}, "temperature is not a known field"),
        ({"input": ["w10"] * 5000}, "at most 2048 are allowed"),
        ({"input": "w10", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_bad_bodies_are_told_what_is_allowed(
    embedding: Served, body: dict[str, Any], message: str
) -> None:
    assert message in embedding.refused("/v1/embeddings", **body)
    assert embedding.post("/v1/embeddings", input="w10")["data"]
    assert embedding.live.num_used_blocks() == 0


def test_prompts_of_sentence_transformers_are_written(tmp_path: Path) -> None:
    """By name or by default; the states of their tokens count only where the checkpoint says so."""
    made = make_pooled("bert-weighted", tmp_path)
    write_tokenizer(tmp_path, types=True)
    settings = {"prompts": {"query": "w50 w51 ", "plain": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    file = tmp_path / "1_Pooling/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"include_prompt": False}))
    long = made.vector(ids(f"w50 w51 {QUERY}"), skipped=3).numpy()
    wanted = {None: long, "query": long, "plain": made.vector(ids(QUERY)).numpy()}
    options: dict[str, Any] = {"pooler_config": {"default_prompt_name": ""}}
    with LLM(str(tmp_path), num_threads=1, **options) as llm:
        for name, vector in (wanted | {None: wanted["plain"]}).items():
            (output,) = llm.embed(QUERY, prompt_name=name, use_tqdm=False)
            np.testing.assert_allclose(output.outputs.data, vector, rtol=0, atol=1e-5)
    engine = AsyncEngine(model=str(tmp_path), num_threads=1)
    with served(engine) as live, make_client(live) as client:
        asks = Served(live, made, client)
        for name, vector in wanted.items():
            for path, what in (("/v1/embeddings", "embedding"), ("/pooling", "data")):
                given = asks.post(path, input=[QUERY], prompt_name=name)["data"][0][what]
                np.testing.assert_allclose(given, vector, rtol=0, atol=1e-5)
        told = asks.refused("/v1/embeddings", input=QUERY, prompt_name="passage")
        assert told == "prompt_name is 'passage': it must be empty or one of ['plain', 'query']."


def test_embeddings_score_by_their_angle(embedding: Served) -> None:
    query, *rest = (embedding.made.vector(ids(text)).double() for text in (QUERY, *DOCUMENTS))
    wanted = [float(torch.cosine_similarity(query, one, 0)) for one in rest]
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        body = dict(zip(names, (QUERY, DOCUMENTS), strict=True))
        given = embedding.post("/v1/score", **body)
        np.testing.assert_allclose([one["score"] for one in given["data"]], wanted, atol=1e-5)
    assert "given once" in embedding.refused("/v1/score", text_1="w10")
    assert "as many" in embedding.refused("/score", text_1=["a", "b"], text_2=["c"])


def test_a_model_that_reads_both_texts_scores(cross: Served) -> None:
    def pair(document: str) -> float:
        both = [*ids(QUERY), *ids(document)[1:]]
        return float(cross.made.vector(both).sigmoid())

    wanted = [pair(document) for document in DOCUMENTS]
    given = cross.post("/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose([one["score"] for one in given["data"]], wanted, atol=1e-5)
    ranked = cross.post("/v1/rerank", query=QUERY, documents=DOCUMENTS)["results"]
    order = sorted(range(len(wanted)), key=lambda index: -wanted[index])
    assert [one["index"] for one in ranked] == order
    assert [one["document"]["text"] for one in ranked] == [DOCUMENTS[index] for index in order]
    best = cross.post(
        "/v2/rerank",
        query=QUERY,
        documents=[{"text": one} for one in DOCUMENTS],
        top_n=1,
        return_documents=False,
    )["results"]
    assert best == [{"index": order[0], "relevance_score": ranked[0]["relevance_score"]}]
    assert "documents is empty" in cross.refused("/rerank", query="w10", documents=[])
    assert "top_n" in cross.refused("/rerank", query="w10", documents=["w11"], top_n=-1)


def test_a_causal_model_ranks_by_how_likely_yes_is(tmp_path: Path) -> None:
    made = make_reranker(tmp_path, "qwen3")
    engine = AsyncEngine(model=str(tmp_path), hf_overrides=overrides("qwen3"), num_threads=1)
    texts = ["yes, a cat", "a dog", "no"]
    likely = [1 / (1 + np.exp(-made.margin(asked("A cat?", text)))) for text in texts]
    with served(engine) as live, make_client(live) as client:
        asks = Served(live, made, client)  # type: ignore[arg-type]  # another kind of checkpoint
        given = asks.post("/v1/score", text_1="A cat?", text_2=texts)["data"]
        np.testing.assert_allclose([one["score"] for one in given], likely, rtol=0, atol=1e-5)
        ranked = asks.post("/v1/rerank", query="A cat?", documents=texts)["results"]
        assert [one["index"] for one in ranked] == sorted(range(3), key=lambda i: -likely[i])
        body = {"query": "A cat?", "documents": texts[:1], "instruction": "Find cats."}
        margin = made.margin(asked("A cat?", texts[0], "Find cats."))
        (one,) = asks.post("/v1/rerank", use_activation=False, **body)["results"]
        assert abs(one["relevance_score"] - margin) < 1e-5


def test_an_instruction_needs_a_model_that_takes_it(embedding: Served, cross: Served) -> None:
    body = {"query": "w10", "documents": ["w11"], "instruction": "w12"}
    assert "has no place for it" in embedding.refused("/v1/rerank", **body)
    assert "has no place for it" in cross.refused("/v1/rerank", **body)


def test_texts_are_told_apart_by_their_types(serve: Callable[[str], Served]) -> None:
    """A classifier of pairs with BERT's token types: the second text has the second one."""
    classes = serve("bert-classes")
    assert "3 labels" in classes.refused("/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    from quire import TextPair
    from quire.engine.params import PoolingParams

    async def ask() -> Any:
        return await classes.live.engine.encode(
            TextPair(QUERY, "w30 w31"), PoolingParams(use_activation=False)
        )

    import asyncio

    output = asyncio.run_coroutine_threadsafe(ask(), classes.live.loop).result(30)
    wanted = classes.made.vector(ids(QUERY), ids("w30 w31")[1:]).numpy()
    np.testing.assert_allclose(output.outputs.data, wanted, rtol=0, atol=1e-5)


def test_classes_have_labels_and_probabilities(serve: Callable[[str], Served]) -> None:
    classes = serve("bert-classes")
    given = classes.post("/classify", input=[QUERY, "w30"])
    for one, text in zip(given["data"], (QUERY, "w30"), strict=True):
        wanted = classes.made.vector(ids(text)).softmax(0)
        np.testing.assert_allclose(one["probs"], wanted.numpy(), atol=1e-5)
        assert one["label"] == f"LABEL_{int(wanted.argmax())}" and one["num_classes"] == 3
    raw = classes.post("/pooling", input=QUERY, use_activation=False)["data"][0]["data"]
    np.testing.assert_allclose(raw, classes.made.vector(ids(QUERY)).numpy(), atol=1e-5)
    assert "ask /classify instead" in classes.refused("/v1/embeddings", input=QUERY)


def test_a_model_of_vectors_says_that_it_does_not_generate(embedding: Served) -> None:
    body = {"prompt": "w10", "max_tokens": 2}
    assert "does not generate" in embedding.refused("/v1/completions", **body)
    assert "ask /v1/embeddings instead" in embedding.refused("/classify", input="w10")


def test_many_texts_wait_for_their_turn_and_none_is_mixed_up(embedding: Served) -> None:
    texts = [f"w{10 + index % 140} w{11 + index % 139}" for index in range(700)]
    given = embedding.post("/v1/embeddings", input=texts)["data"]
    for index in (0, 139, 140, 333, 699):
        (alone,) = embedding.post("/v1/embeddings", input=texts[index])["data"]
        assert given[index]["embedding"] == alone["embedding"]
    assert embedding.live.num_used_blocks() == 0


def test_a_client_that_leaves_frees_the_engine(embedding: Served) -> None:
    texts = [" ".join(f"w{10 + (index + i) % 140}" for i in range(90)) for index in range(1500)]
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            f"{embedding.live.url}/v1/embeddings", json={"input": texts}, timeout=(5, 0.3)
        )
    embedding.live.wait_until_empty()
    assert embedding.live.num_used_blocks() == 0


def test_the_demo_model_embeds_beside_what_it_generates(
    demo: Any, demo_client: openai.OpenAI
) -> None:
    client = demo_client
    texts = ["a king and his dog", "a king and a dog", "what is 3 + 4 ?"]
    before = client.completions.create(model="demo", prompt=texts[0], max_tokens=8, seed=1)
    data = client.embeddings.create(model="demo", input=texts).data
    after = client.completions.create(model="demo", prompt=texts[0], max_tokens=8, seed=1)
    assert before.choices[0].text == after.choices[0].text
    a, b, c = (np.array(one.embedding) for one in data)
    assert abs(np.linalg.norm(a) - 1) < 1e-6
    assert a @ b > a @ c
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    assert demo.num_used_blocks() == 0


def test_the_ollama_client_embeds(demo: Any, demo_client: openai.OpenAI) -> None:
    texts = ["a king", "a dog"]
    wanted = [
        one.embedding for one in demo_client.embeddings.create(model="demo", input=texts).data
    ]
    client = ollama.Client(demo.url)
    with closing(client._client):
        given = client.embed("demo", texts)
        one = np.array(client.embeddings("demo", texts[0]).embedding)
        nothing = client.embed("demo", [])
    assert np.array_equal(np.array(given.embeddings, np.float32), np.array(wanted, np.float32))
    assert given.prompt_eval_count and given.total_duration
    np.testing.assert_allclose(one / np.linalg.norm(one), wanted[0], atol=1e-6)
    assert nothing.embeddings == []


def test_the_live_view_shows_steps_of_an_encoder(embedding: Served) -> None:
    """All of what it computes is of prompts, and nothing of it stays."""
    live, view = embedding.live, embedding.live.engine.live
    live.call(view.open)
    try:
        embedding.openai.embeddings.create(model="bert-mean-dense", input=[QUERY])
        live.wait_until_empty()
        look = live.call(view.look)
    finally:
        live.call(view.close)
    assert [step.num_prefill_tokens for step in look.steps] == [len(ids(QUERY))]
    assert [step.num_decode_tokens for step in look.steps] == [0]
    assert look.block_counts == (len(look.cells), 0, 0, 0)
