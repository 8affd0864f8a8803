"""Methods against closed forms and scikit-learn; percepts against the model; the grid from end to end."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SkRidge
from sklearn.neighbors import NearestCentroid
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from arr_coc import ArrCocConfig, attach
from arr_coc.eval import exam, methods, metrics, percepts, percepts_file, records, run, table
from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_lora import Lora
from arr_coc.eval.methods_plugin import Joint, Oracle, Plugin
from arr_coc.eval.percepts import Store, TextBook
from arr_coc.training import streams

CLASSES = ["a photo of a bag", "a photo of a coat", "a photo of a dress"]
CUES = ["red", "blue"]
CONFIG = ArrCocConfig(expansion=8)


class FakeTexts(TextBook):
    """Unit embeddings drawn from the text itself."""

    def __init__(self, width: int = 6) -> None:
        self.width, self.scale = width, 5.0

    def __call__(self, texts: Any) -> Tensor:
        rows = []
        for text in texts:
            draw = torch.Generator().manual_seed(sum(map(ord, text)))
            rows.append(torch.randn(self.width, generator=draw))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def fake_store(n: int = 60, contexts: bool = True, seed: int = 0) -> Store:
    """Four cells of four tokens in a 4 x 4 grid; the cued cell's tokens lean towards the label."""
    draw = torch.Generator().manual_seed(seed)
    texts = FakeTexts()
    label = torch.randint(3, (n,), generator=draw)
    cue = torch.randint(2, (n,), generator=draw)
    cell = torch.randint(4, (n,), generator=draw)
    grid = torch.arange(16)
    of = (grid // 4 // 2) * 2 + (grid % 4) // 2
    mask = of.unsqueeze(0) == cell.unsqueeze(1)
    lean = torch.randn(3, 8, generator=draw)
    tokens = torch.randn(n, 16, 8, generator=draw) + mask.unsqueeze(2) * lean[label].unsqueeze(1)
    image = torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1)
    return Store(
        tokens=(tokens.half(), torch.randn(n, 16, 8, generator=draw).half()),
        attention=torch.rand(n, 16, generator=draw),
        context=texts(CUES)[cue] if contexts else image,
        own=torch.randn(n, 16, generator=draw),
        image=image,
        pooled=torch.randn(n, 5, generator=draw),
        pixels=torch.randint(256, (n, 12), generator=draw).to(torch.uint8),
        label=label,
        cue=cue if contexts else torch.full((n,), -1),
        mask=mask if contexts else None,
        classes=list(CLASSES),
        contexts=list(CUES) if contexts else [],
        place={("train", i): i for i in range(n)},
        texts=texts,
    )


def feed(method: features.Method, store: Store, order: list[int], size: int = 1) -> None:
    for start in range(0, len(order), size):
        method.observe(store.batch(torch.tensor(order[start : start + size])))


def every(store: Store) -> percepts.Batch:
    return store.batch(torch.arange(len(store)))


# -- closed forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7])
def test_ridge_is_scikit_learns_ridge_in_any_order_and_batch_size(size: int) -> None:
    store = fake_store()
    method = features.Ridge(features.tower_output, (0.7,), chunk=16)
    feed(method, store, torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist(), size)
    phi = np.c_[store.pooled.double().numpy(), np.ones(60)]
    names = method.classes.names
    target = np.eye(3)[[names.index(x) for x in every(store).labels]]
    expected = SkRidge(alpha=0.7, fit_intercept=False, solver="cholesky").fit(phi, target).predict(phi)
    found = method.answer(every(store), names).scores.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_ridge_chooses_the_penalty_that_errs_least_on_what_it_held_back() -> None:
    store = fake_store()
    grid = (1e-3, 1e-1, 1e1, 1e3)
    method = features.Ridge(features.tower_output, grid)
    feed(method, store, list(range(60)))
    method.solve()
    phi = np.c_[store.pooled.double().numpy(), np.ones(60)]
    target = np.eye(3)[[method.classes.names.index(x) for x in every(store).labels]]
    back = np.arange(60) % 5 == 4

    def error(alpha: float) -> float:
        fit = SkRidge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(phi[~back], target[~back])
        return float(((fit.predict(phi[back]) - target[back]) ** 2).sum())

    errors = [error(a) for a in grid]
    place = grid.index(method.penalty)
    assert errors[place] == min(errors[max(place - 1, 0) : place + 2])  # a local minimum, sought downhill


def test_nearest_mean_is_scikit_learns_nearest_centroid() -> None:
    store = fake_store()
    method = features.NearestMean(features.tower_output)
    feed(method, store, list(range(60)), 4)
    batch = every(store)
    oracle = NearestCentroid().fit(store.pooled.double().numpy(), batch.labels)
    assert method.predict(batch, CLASSES) == list(oracle.predict(store.pooled.double().numpy()))


def test_product_in_the_contexts_span_solves_what_the_whole_product_solves() -> None:
    store = fake_store()
    basis = features.context_basis(store)
    assert len(basis) == len(CUES)
    whole = torch.eye(store.context.shape[1])
    answers = []
    for coordinates in (basis, whole):
        product = features.context_product(features.mean_pooled, coordinates)
        method = features.Ridge(product, (1.0,))
        feed(method, store, list(range(60)), 10)
        answers.append(method.answer(every(store), CLASSES).scores)
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=0)


def test_per_cell_features_are_the_means_over_the_cells() -> None:
    store = fake_store()
    cells = features.per_cell(2)(every(store)).reshape(60, 4, 8)
    f = torch.nn.functional.layer_norm(store.tokens[-1].float(), (8,))
    torch.testing.assert_close(cells[:, 1], f[:, [2, 3, 6, 7]].mean(1))


def test_random_relu_keeps_its_matrix() -> None:
    store = fake_store()
    lifted = features.random_relu(features.tower_output, 32, seed=3)
    assert torch.equal(lifted(every(store)), lifted(every(store)))
    assert (lifted(every(store)) >= 0).all()


def test_what_was_never_learned_cannot_be_said() -> None:
    store = fake_store()
    method = features.Ridge(features.tower_output, (1.0,))
    assert not torch.isfinite(method.answer(every(store), CLASSES).scores).any()
    feed(method, store, [int((store.label == 0).nonzero()[0])])
    finite = torch.isfinite(method.answer(every(store), CLASSES).scores).all(0)
    assert finite.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("context", "text", "expected"),
    [
        ("red", "a photo of a bag", "a photo of a red bag"),
        (None, "a photo of a bag", "a photo of a bag"),
        ("dax", "bag", "dax bag"),
    ],
)
def test_join(context: str | None, text: str, expected: str) -> None:
    assert features.join(context, text) == expected


def test_joined_zero_shot_asks_with_each_samples_own_context() -> None:
    store = fake_store()
    batch = every(store)
    found = features.ZeroShot(joined=True).answer(batch, CLASSES).scores
    for i in (0, 7):
        said = [features.join(batch.contexts[i], t) for t in CLASSES]
        torch.testing.assert_close(found[i], 5.0 * store.image[i] @ store.texts(said).T)


# -- the plugin and its bounds -------------------------------------------------------------------------------


def test_joint_with_relevance_fixed_equals_the_plugin_in_any_order() -> None:
    store = fake_store()
    config = replace(CONFIG, learn_relevance=False)
    joint = Joint(store, config, seed=5)
    feed(joint, store, list(range(60)))
    joint.finish()
    for seed in range(3):
        plugin = Plugin(store, config)
        feed(plugin, store, torch.randperm(60, generator=torch.Generator().manual_seed(seed)).tolist())
        rows = plugin.learner.readout.rows(joint.learner.classes)
        residual = plugin.learner.readout.weight[rows] - joint.learner.readout.weight
        assert float(residual.norm() / joint.learner.readout.weight.norm()) < 1e-8


def test_oracle_points_exactly_and_does_not_see_the_context() -> None:
    store = fake_store()
    method = Oracle(store, CONFIG)
    feed(method, store, list(range(40)))
    batch = every(store)
    answer = method.answer(batch, CLASSES)
    assert answer.relevance is not None
    assert float(exam.pointing(answer.relevance, store.mask).mean()) == 1.0
    blind = replace(store, context=store.context.flip(0), own=store.own.flip(0))
    assert torch.equal(method.answer(every(blind), CLASSES).scores, answer.scores)
    with pytest.raises(ValueError, match="truth"):
        Oracle(fake_store(contexts=False), CONFIG)


def test_raw_attention_is_the_models_attention_made_a_distribution() -> None:
    store = fake_store()
    method = methods.spec("raw-attention").make(methods.Setup(store, CONFIG))
    feed(method, store, list(range(5)))
    r = method.relevance(every(store), CLASSES)
    torch.testing.assert_close(r, store.attention / store.attention.sum(1, keepdim=True))


def test_backprop_that_does_not_move_is_the_plugin_with_relevance_fixed() -> None:
    store = fake_store()
    still = replace(CONFIG, evidence="uniform")
    setup = methods.Setup(store, still, settings={"rate": 0.0})
    moved = methods.spec("backprop-relevance").make(setup)
    fixed = methods.spec("plugin-fixed").make(setup)
    for method in (moved, fixed):
        feed(method, store, list(range(30)))
    a, b = (m.answer(every(store), CLASSES).scores for m in (moved, fixed))
    assert torch.equal(a, b)


def test_backprop_learns_relevance_and_readout() -> None:
    store = fake_store()
    method = methods.spec("backprop").make(methods.Setup(store, CONFIG, settings={"rate": 1e-2}))
    feed(method, store, list(range(40)))
    assert isinstance(method, Plugin)
    assert method.learner.relevance_weight.abs().max() > 0
    right = (method.answer(every(store), CLASSES).scores[:40].argmax(1) == store.label[:40]).float().mean()
    assert right > 0.5  # chance is a third, and it has just seen them


@pytest.mark.parametrize(
    "name", [n for n, s in methods.METHODS.items() if n != "lora" and "dual" in s.bodies]
)
def test_every_method_answers_and_counts_its_bytes(name: str) -> None:
    store = fake_store()
    setup = methods.Setup(replace(store, pixels=torch.zeros(60, 12, dtype=torch.uint8)), CONFIG)
    method = methods.spec(name).make(setup)
    feed(method, store, list(range(30)), 5)
    method.finish()
    answer = method.answer(every(store), CLASSES)
    assert answer.scores.shape == (60, 3)
    assert set(method.predict(every(store), CLASSES)) <= set(CLASSES)
    assert (method.state_bytes() > 0) != name.startswith("zero-shot")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'plugin'"):
        methods.spec("plugn")


def test_controls_without_a_place_are_left_out() -> None:
    with_all, without = (methods.sensible("dual", contexts=c, mask=c) for c in (True, False))
    assert with_all == [n for n, s in methods.METHODS.items() if s.role != "ablation" and "dual" in s.bodies]
    assert set(methods.ABLATIONS).isdisjoint(with_all)
    assert set(with_all) - set(without) == {"zero-shot-joined", "oracle", "cells-context"}


# -- the examination -----------------------------------------------------------------------------------------


def test_pointing_is_expected_under_ties() -> None:
    r = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.25] * 4])
    mask = torch.tensor([[True, False, False, False]] * 3)
    assert exam.pointing(r, mask).tolist() == [0.5, 0.0, 0.25]


class Scripted(features.Method):
    """Knows the answers of the first `known` classes, and says the last class otherwise."""

    known = 0

    def answer(self, batch: percepts.Batch, texts: list[str]) -> features.Answered:
        scores = torch.zeros(len(batch.labels), len(texts))
        scores[:, 2] = 1
        for i, label in enumerate(batch.labels):
            if texts.index(label) < self.known:
                scores[i, texts.index(label)] = 2
        return features.Answered(scores)


def test_union_restricts_the_answers_to_what_was_taught() -> None:
    store = fake_store()
    probes = [(store.label == k).nonzero().flatten() for k in range(3)]
    met = [CLASSES[: k + 1] for k in range(3)]
    stream = streams.Stream("fake", [], [[c] for c in CLASSES], CLASSES, [])
    plan = percepts.Plan(torch.arange(0), [0, 0, 0], probes, [[c] for c in CLASSES], met, stream, [[]] * 3)
    plan = replace(plan, places=[list(range(len(p))) for p in probes])
    method = Scripted()
    method.known = 1
    found = exam.examine(method, plan, store, over=2)
    assert found.accuracy == [1.0, 0.0, 1.0]
    # with one class there is only one answer; with two, the second is unknown and the first wins by ties
    n = [len(p) for p in probes]
    assert found.union == [1.0, pytest.approx(n[0] / (n[0] + n[1])), None]


# -- percepts on a real (tiny) model -------------------------------------------------------------------------


class FakeProcessor:
    """Pixels scaled to -1..1 and words hashed to ids; padding as CLIP's tokenizer has it."""

    def image_processor(self, images: list[Any], return_tensors: str = "pt") -> dict[str, Tensor]:
        arrays = np.stack([np.asarray(i, np.float32) for i in images]) / 127.5 - 1
        return {"pixel_values": torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()}

    def tokenizer(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        rows = [[1 + sum(map(ord, w)) % 90 for w in t.split()] + [99] for t in texts]
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, FakeProcessor]:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={**size, "image_size": 96, "patch_size": 8},
        text_config={**size, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 0},
        projection_dim=8,
    )
    return CLIPModel(config).eval(), FakeProcessor()


def small(name: str = "cued-clutter", **options: Any) -> streams.Stream:
    return streams.load(name, seed=2, **{"n_train": 12, "n_test": 12, **options})


def test_store_holds_what_the_model_perceives(tiny: tuple[Any, FakeProcessor]) -> None:
    model, processor = tiny
    stream = small()
    texts = TextBook(model, processor)
    attached = attach(model)
    try:
        store = percepts_file.of_stream(attached, texts, stream, batch=5)
        sample = stream.samples[7]
        row = store.place["train", sample["index"]]
        said = texts.tokens([sample["context"]])
        shown = processor.image_processor([sample["image"]])
        seen = attached.perceive(
            **shown,
            **texts.tokens(stream.classes),
            context_ids=said["input_ids"],
            context_attention_mask=said["attention_mask"],
        )
    finally:
        attached.detach()
    batch = store.batch(torch.tensor([row]))
    torch.testing.assert_close(batch.percept.tokens[0].float(), seen.percept.tokens[0], atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(batch.percept.own, seen.percept.own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.percept.context, seen.percept.context, atol=1e-5, rtol=1e-5)
    own = batch.own_logits(stream.classes)
    torch.testing.assert_close(own, seen.output.logits_per_image, atol=1e-4, rtol=1e-4)
    assert batch.labels == [sample["label"]]
    assert batch.contexts == [sample["context"]]
    assert batch.percept.asked == "text"
    assert torch.equal(batch.mask[0], torch.from_numpy(sample["mask"]).flatten())


def test_a_store_survives_the_disk_bit_for_bit_and_rubbish_does_not(
    tiny: tuple[Any, FakeProcessor], tmp_path: Path
) -> None:
    texts, store = FakeTexts(), fake_store()
    path = tmp_path / "store.safetensors"
    percepts_file.save(store, path)
    back = percepts_file.restore(path, texts)
    assert all(torch.equal(a, b) for a, b in zip(store.tokens, back.tokens, strict=True))
    assert torch.equal(store.own, back.own)
    assert (back.place, back.classes, back.contexts) == (store.place, store.classes, store.contexts)
    assert torch.equal(store.mask, back.mask)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="no store"):
        percepts_file.restore(path, texts)


def test_cache_name_changes_with_the_weights(tiny: tuple[Any, FakeProcessor], tmp_path: Path) -> None:
    model, _ = tiny
    other = CLIPModel(model.config)
    names = {percepts_file.cache_path(tmp_path, "s", {"n": 1}, 0, m).name for m in (model, other)}
    names.add(percepts_file.cache_path(tmp_path, "s", {"n": 2}, 0, model).name)
    assert len(names) == 3
    assert percepts_file.fingerprint(model) == percepts_file.fingerprint(model)


@pytest.mark.parametrize("name", ["cued-clutter", "cued-clutter-classes", "split-fashion"])
def test_orders_share_a_store_and_plans_say_what_the_stream_says(
    name: str, tiny: tuple[Any, FakeProcessor]
) -> None:
    model, processor = tiny
    options = {"n_train": 60, "n_test": 60}
    store = percepts_file.of_stream(
        attached := attach(model), TextBook(model, processor), small(name, **options)
    )
    attached.detach()
    for order in range(2):
        stream = small(name, order=order, **options)
        plan = percepts.plan(stream, store, probe_limit=3)
        batch = store.batch(plan.train)
        samples = list(stream.samples)
        assert batch.labels == [s["label"] for s in samples]
        assert batch.contexts == [s["context"] for s in samples]
        assert plan.ends[-1] == len(samples)
        assert [samples[e - 1]["experience"] for e in plan.ends] == list(range(len(plan.ends)))
        for probe, rows, places in zip(stream.probes, plan.probes, plan.places, strict=True):
            assert len(rows) <= 3
            assert store.batch(rows).labels == [probe[i]["label"] for i in places]


def test_lora_starts_as_the_frozen_model_and_moves_nothing_of_it(tiny: tuple[Any, FakeProcessor]) -> None:
    model, processor = tiny
    stream = small()
    texts = TextBook(model, processor)
    store = percepts_file.of_stream(attached := attach(model), texts, stream)
    attached.detach()
    method = Lora(model, texts, stream.classes, rate=1e-2)
    rows = torch.arange(4)
    batch = store.batch(rows, [stream.samples[i]["image"] for i in range(4)])
    rows = torch.tensor([store.place["train", stream.samples[i]["index"]] for i in range(4)])
    batch = replace(store.batch(rows), images=batch.images)
    frozen = features.ZeroShot(joined=True).answer(batch, stream.classes).scores
    torch.testing.assert_close(method.answer(batch, stream.classes).scores, frozen, atol=1e-4, rtol=1e-4)
    before = {n: p.detach().clone() for n, p in method.model.named_parameters()}
    for _ in range(2):
        method.observe(batch)
    moved = {n for n, p in method.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in n and "vision_model" in n for n in moved)
    assert not torch.equal(method.answer(batch, stream.classes).scores, frozen)
    with pytest.raises(ValueError, match="images"):
        method.answer(store.batch(rows), stream.classes)


# -- the grid ------------------------------------------------------------------------------------------------


def test_grid_runs_resumes_and_its_records_give_the_table(
    tiny: tuple[Any, FakeProcessor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {n: replace(s, grid=s.grid[:1]) for n, s in methods.METHODS.items()}
    monkeypatch.setattr(methods, "METHODS", quick)
    grid = run.Grid("cued-clutter", 1, n_train=24, n_test=12, lora_train=6, tune_train=6, config=CONFIG)
    names = ["zero-shot", "plugin", "joint", "oracle", "backprop", "lora", "random-tower"]
    out = tmp_path / "runs.jsonl"
    asked = {"seeds": [0, 1], "orders": [0], "model": tiny, "out": out, "held": 2}
    found = run.run(grid, names, **asked)
    assert len(found) == 2 * len(names)
    written = out.read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a run that stands in the file was run again")

    monkeypatch.setattr(run, "one", never)
    again = run.run(grid, names, **asked)
    assert out.read_bytes() == written
    assert again == [json.loads(line) for line in written.decode().splitlines()]

    plugin = found[1]
    assert plugin["method"] == "plugin"
    assert len(plugin["R"]) == 7
    assert all(len(row) == 6 for row in plugin["R"])
    assert plugin["step_cost"] > 1
    lora = next(r for r in found if r["method"] == "lora")
    assert lora["n_learned"] == 6
    oracle = next(r for r in found if r["method"] == "oracle")
    assert oracle["P"][-1] == [1.0] * 6

    run.export(found, tmp_path / "records.jsonl")
    raw = records.by_run(records.read(tmp_path / "records.jsonl"))
    matrix = records.matrix(raw["plugin", "cued-clutter", 0, 0])
    assert metrics.final_accuracy(matrix) == pytest.approx(table.scores(plugin)["final_accuracy"])
    rows = table.summary(found)
    assert [r["method"] for r in rows] == names
    by_name = {r["method"]: r for r in rows}
    gap = by_name["joint"]["final_accuracy"].mean - by_name["plugin"]["final_accuracy"].mean
    assert by_name["plugin"]["joint_gap"].mean == pytest.approx(gap)
    assert by_name["plugin"]["final_accuracy"].n == 2
    assert "| plugin |" in table.markdown(rows)
    assert "lora (n = 6)" in table.markdown(rows)


def test_a_line_that_was_cut_off_is_a_run_that_did_not_end(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    run._append(path, {"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "R": [[0.')
    run._append(path, {"key": "c"})
    assert [r["key"] for r in run.read(path)] == ["a", "c"]


def test_settings_are_tuned_on_a_seed_that_no_run_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = streams.load

    def load(name: str, seed: int = 0, **options: Any) -> streams.Stream:
        seen.append(seed)
        return real(name, seed=seed, **options)

    monkeypatch.setattr(run.streams, "load", load)
    monkeypatch.setattr(run.percepts, "plan", lambda *_: None)
    scores = iter([0.1, 0.7, 0.3, 0.2, 0.5])
    monkeypatch.setattr(run, "one", lambda *_, **__: {"R": [[next(scores)]]})
    store = fake_store()
    fake = SimpleNamespace(processor=None, store=lambda *_: store, model=None)
    grid = run.Grid("cued-clutter", n_train=24, n_test=12)
    best, tried = run.tune("backprop", grid, lambda _: fake)
    assert best == {"rate": methods.RATES[1]}
    assert len(tried) == len(methods.RATES)
    assert set(seen) == {run.TUNING_SEED}


def test_a_product_that_is_too_wide_to_solve_is_refused() -> None:
    store = fake_store()
    texts = FakeTexts(width=64)
    many = replace(store, texts=texts, contexts=[f"cue {i}" * (i + 1) for i in range(40)])
    with pytest.raises(ValueError, match="too wide"):
        methods.spec("mean-context").make(methods.Setup(many, CONFIG))


def test_an_unknown_stream_stops_the_grid_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cued-clutter'"):
        run.run(run.Grid("cued-cluter"), ["plugin"], out=tmp_path / "x.jsonl")


def test_an_unknown_method_stops_the_grid_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method"):
        run.run(run.Grid("cued-clutter"), ["plugins!"], out=tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()
