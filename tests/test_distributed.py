"""Learning in several processes: nothing is counted twice or left out, and all ranks end as one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import RandomSampler, SequentialSampler

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from arr_coc.training.distributed import Merging, base_of, combine, gain
from arr_coc.training.feeding import Collate, Feed, Part, Share
from training_data import BODIES, FIXED, SMALL, dual_collate, learned, pictures, same
from two_ranks import COUNT

SCRIPT = Path(__file__).with_name("two_ranks.py")
SAMPLES = pictures(36)


def copy(model: ArrCocModel, config: ArrCocConfig) -> ArrCocModel:
    again = attach(tiny.dual(), config)
    state.load(again.learner, state.tensors(model.learner), state.meta(model.learner))
    return again


def batches(part: list[int], merges: int) -> list[list[list[int]]]:
    """A rank's samples in as many turns as there are merges, up to four to a batch."""
    turns = [part[k * len(part) // merges : (k + 1) * len(part) // merges] for k in range(merges)]
    return [[some[i : i + 4] for i in range(0, len(some), 4)] for some in turns]


def split(parts: list[list[int]], config: ArrCocConfig, merges: int = 1) -> ArrCocModel:
    """Learned by several ranks that are merged so many times; parts are indices of samples."""
    first = attach(tiny.dual(), config)
    for turn in range(merges):
        base, own = base_of(first.learner), []
        for part in parts:
            rank = copy(first, config)
            own.append(rank)
            for batch in batches(part, merges)[turn]:
                rank.learn(**dual_collate([SAMPLES[i] for i in batch]))
        combine(own[0].learner, base, [gain(one.learner, base) for one in own])
        first = own[0]
    return first


SPLITS = [
    [list(range(18)), list(range(18, 36))],
    [list(range(0, 36, 2)), list(range(1, 36, 2))],
    [list(range(2)), list(range(2, 36))],
    [[], list(range(36))],
    [list(range(k, 36, 5)) for k in range(5)],
    [sorted(range(36), key=lambda i: -SAMPLES[i]["labels"])[k::2] for k in range(2)],
]


@pytest.mark.parametrize("merges", [1, 3])
@pytest.mark.parametrize("parts", SPLITS)
def test_the_merged_readout_is_the_joint_solution(parts: list[list[int]], merges: int) -> None:
    """R = B'(A + rho I)^-1 over all samples, from activations that no learner has seen."""
    merged = split(parts, FIXED, merges).learner
    eye = attach(tiny.dual(), FIXED)
    told = [batch for part in parts for turn in batches(part, merges) for batch in turn]
    seen = [eye.perceive(**_but_labels([SAMPLES[i] for i in batch])).percept for batch in told]
    answers = [eye.learner.answer(percept) for percept in seen]
    phi = torch.cat([a.climb.phi for a in answers]).double()
    scene = torch.cat([a.scene for a in answers]).double()
    keys = eye.keys(dual_collate(SAMPLES)["input_ids"])
    labels = [SAMPLES[i]["labels"] for batch in told for i in batch]
    rows = torch.tensor([merged.classes.index(keys[label]) for label in labels])
    target = torch.nn.functional.one_hot(rows, len(merged.classes)).double()
    gram = phi.T @ phi
    solution = torch.linalg.solve(gram + FIXED.ridge * torch.eye(len(gram)).double(), phi.T @ target).T
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(merged.readout.weight, solution, **close)
    torch.testing.assert_close(merged.readout.familiarity.gram, gram, **close)
    inverse = torch.linalg.inv(scene.T @ scene + FIXED.ridge * torch.eye(scene.shape[1]).double())
    torch.testing.assert_close(merged.scenes.precision, inverse, **close)
    assert merged.readout.class_count.tolist() == target.sum(0).tolist()
    assert merged.scenes.leverage[3:].tolist() == [36, 36]  # total weight, samples
    assert int(merged.step) == 36


def _but_labels(samples: list) -> dict:
    return {k: v for k, v in dual_collate(samples).items() if k != "labels"}


def test_merging_again_counts_nothing_again() -> None:
    one = split(SPLITS[1], SMALL)
    before, base = learned(one), base_of(one.learner)
    combine(one.learner, base, [gain(copy(one, SMALL).learner, base) for _ in range(3)])
    after = learned(one)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


def test_a_rank_alone_is_what_it_was() -> None:
    one, base = attach(tiny.dual(), SMALL), None
    base = base_of(one.learner)
    for start in range(0, 36, 4):
        one.learn(**dual_collate(SAMPLES[start : start + 4]))
    before = learned(one)
    combine(one.learner, base, [gain(one.learner, base)])
    for name, tensor in learned(one).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-9, atol=1e-9, msg=name)


def test_what_is_no_sum_is_the_average_of_the_changes_by_samples() -> None:
    start = attach(tiny.dual(), SMALL)
    start.learn(**dual_collate(SAMPLES[:4]))
    ranks, base = [copy(start, SMALL) for _ in range(2)], learned(start)
    for rank, count in zip(ranks, (4, 12), strict=True):
        for first in range(4, 4 + count, 4):
            rank.learn(**dual_collate(SAMPLES[first : first + 4]))
    own = [learned(rank) for rank in ranks]
    shared = base_of(start.learner)
    combine(ranks[0].learner, shared, [gain(rank.learner, shared) for rank in ranks])
    merged = learned(ranks[0])
    averaged = "relevance_weight", "own_gain.weight", "errors.log_precision_0", "surprise_watch"
    for name in (*averaged, "confidence.log_scale"):
        changes = [o[name].double() - base[name].double() for o in own]
        expected = base[name].double() + (4 * changes[0] + 12 * changes[1]) / 16
        assert float(changes[1].abs().max()) > 0
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-9)
    gained = [o["unlearned.moments"] - base["unlearned.moments"] for o in own]
    assert bool(gained[1].any())
    torch.testing.assert_close(merged["unlearned.moments"], base["unlearned.moments"] + gained[0] + gained[1])
    # (rho I + sum c c')^-1 over the contexts that all ranks met: one text, once per lesson and sample
    context = ranks[0]._context_embedding((torch.tensor([1, 2, 49]), None), _but_labels(SAMPLES[:1]))[0]
    count = int(base["context_key.count"]) + sum(
        int(o["context_key.count"] - base["context_key.count"]) for o in own
    )
    outer = torch.outer(context.double(), context.double())
    expected = torch.linalg.inv(SMALL.context_ridge * torch.eye(len(outer)) + count * outer)
    torch.testing.assert_close(merged["context_key.inverse_correlation"], expected, rtol=1e-5, atol=1e-5)
    assert len(merged["context_key.met"]) == 1


def test_when_classes_were_met_goes_on_as_if_ranks_took_turns() -> None:
    start = attach(tiny.dual(), FIXED)
    start.learn(**dual_collate(SAMPLES[:2]))  # steps 1 and 2
    ranks, base = [copy(start, FIXED) for _ in range(2)], base_of(start.learner)
    new = [{**SAMPLES[0], "labels": label} for label in range(5)]
    ranks[0].learn(**dual_collate([new[3], new[4]]))
    ranks[1].learn(**dual_collate([new[4], new[3], new[3], new[4]]))
    combine(ranks[0].learner, base, [gain(rank.learner, base) for rank in ranks])
    learner, keys = ranks[0].learner, start.keys(dual_collate(SAMPLES)["input_ids"])
    met = dict(zip(learner.classes, learner.readout.last_met.tolist(), strict=True))
    assert int(learner.step) == 2 + 6
    assert met[keys[4]] == 8  # the last of both ranks
    assert met[keys[3]] == pytest.approx(2 + 6 * 3 / 4)  # after three quarters of the second rank's samples


def test_one_process_merges_nothing() -> None:
    one = attach(tiny.dual(), SMALL)
    merging, before = Merging(torch.device("cpu")), learned(one)
    merging.begin([one.learner])
    merging.merge()
    assert same(before, learned(one))


@pytest.mark.parametrize("count", [0, 1, 5, 16, 23, 24])
@pytest.mark.parametrize(("batch", "ranks"), [(4, 1), (4, 2), (3, 5), (1, 3)])
def test_every_sample_is_read_once_in_as_many_steps_by_all(count: int, batch: int, ranks: int) -> None:
    data = list(range(count))
    read, order = [], Share(RandomSampler(data) if count else SequentialSampler(data), batch)
    order.set_epoch(1)
    for rank in range(ranks):
        sampler = RandomSampler(data) if count else SequentialSampler(data)
        share = Share(sampler, batch, rank, ranks, seed=7)
        share.set_epoch(1)
        read.append(list(Feed(data, batch_sampler=share, collate_fn=Collate(list))))
        assert len(read[-1]) == len(share) == -(-count // (batch * ranks))
        assert all(len(some) <= batch for some in read[-1])
    assert sorted(i for part in read for some in part for i in some) == data
    assert all(some or some == {} for part in read for some in part)
    whole = Share(SequentialSampler(data), batch, 0, ranks, drop_last=True)
    assert len(list(whole)) == len(whole) == count // (batch * ranks)


def test_an_order_belongs_to_its_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list:
        share = Share(RandomSampler(range(50)), 5, seed=seed)
        share.set_epoch(epoch)
        torch.manual_seed(seed + 100)
        return list(share)

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1)


@pytest.mark.parametrize("shards", [1, 4, 5])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_streaming_set_gives_each_rank_its_own_part(shards: int, ranks: int) -> None:
    table = datasets.Dataset.from_dict({"id": list(range(23))}).to_iterable_dataset(num_shards=shards)
    for dataset in (table, range(23)):
        for passes in (1, 2):
            read = [list(Part(dataset, rank, ranks, passes)) for rank in range(ranks)]
            ids = [[s["id"] if isinstance(s, dict) else s for s in part] for part in read]
            assert sorted(i for part in ids for i in part) == sorted(passes * list(range(23)))
            assert all(ids)


# -- real processes ------------------------------------------------------------------------------------------


def port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def environment(**more: object) -> dict[str, str]:
    root = str(SCRIPT.parents[1])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{root}:{SCRIPT.parent}",
        **{k: str(v) for k, v in more.items()},
    }


MODES = ["indexed", "merging", "flow", "shards", "examples", "few", "learning"]
APART = [f"{body}-{how}" for body in BODIES for how in ("whole", "split")]


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """Where two processes have left what they held after each mode."""
    folder = tmp_path_factory.mktemp("ranks")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(port()), str(SCRIPT), str(folder)]
    launch += [*MODES[:2], "resumed", *MODES[2:], *APART, "dual-starved"]
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("body", BODIES)
def test_blocks_that_are_split_between_processes_learn_the_same_bit_for_bit(launched, body: str) -> None:
    whole, split = (
        [json.loads((launched / f"{body}-{how}-{rank}.json").read_text()) for rank in range(2)]
        for how in ("whole", "split")
    )
    towers = ["text_model.encoder.layers", "vision_model.encoder.layers"]
    if body == "generative":
        towers = ["model.vision_tower.encoder.layers", "model.language_model.layers"]
    for rank in range(2):
        assert split[rank]["found"] == towers
        assert split[rank]["held"] < 0.75  # embeddings and projections are whole
        assert split[rank]["told"] == whole[0]["told"]
        assert split[rank]["eval_loss"] == whole[0]["eval_loss"]
    for checkpoint in ("checkpoint-2", "checkpoint-3"):
        for name in ("arr_coc_model.safetensors", "arr_coc_base.safetensors"):
            one, two = (launched / f"{body}-{how}" / checkpoint / name for how in ("whole", "split"))
            assert same(load_file(one), load_file(two))
    split_folder = launched / f"{body}-split" / "checkpoint-3"
    learner = ArrCocModel.from_pretrained(BODIES[body][0](), split_folder).learner  # onto a whole one
    assert int(learner.step) == 17 * (1 if body == "dual" else 2)
    moved = learner.relevance_weight if body == "dual" else learner.readout.weight
    assert float(moved.abs().max()) > 0


def test_a_process_that_never_had_a_sample_is_an_error_in_all_before_anything_is_learned(launched) -> None:
    for rank in range(2):
        about = json.loads((launched / f"dual-starved-{rank}.json").read_text())
        assert about["said"].startswith("a backbone that is split needs at least one sample per process")
        assert about["steps"] == 0


def test_two_launched_processes_learn_as_one(launched) -> None:
    tmp_path = launched
    for mode in MODES:
        about = [json.loads((tmp_path / f"{mode}-{rank}.json").read_text()) for rank in range(2)]
        held = [load_file(tmp_path / f"{mode}-{rank}.safetensors") for rank in range(2)]
        told = [batch for one in about for batch in one["met"]]
        count = 5 if mode == "few" else COUNT
        assert sorted(i for batch in told for i in batch) == list(range(count)), mode
        assert all(one["met"] for one in about), mode
        assert same(*held), mode  # all ranks end bit-identical
        assert about[0]["classes"] == about[1]["classes"]
        assert about[0]["eval_loss"] == about[1]["eval_loss"]
        assert about[0]["loss"] == about[1]["loss"]
        if mode == "learning":
            assert float(held[0]["relevance_weight"].abs().max()) > 0
            continue
        single = attach(tiny.dual(), FIXED)
        for batch in told:
            single.learn(**dual_collate([pictures(COUNT)[i] for i in batch]))
        order = [about[0]["classes"].index(name) for name in single.learner.classes]
        alone = learned(single)
        for name in ("readout.weight", "readout.cross", "readout.class_count"):
            torch.testing.assert_close(held[0][name][order], alone[name], rtol=0, atol=1e-10)
        for name in ("readout.familiarity.gram", "readout.familiarity.precision", "scenes.precision", "step"):
            torch.testing.assert_close(held[0][name], alone[name], rtol=0, atol=1e-10)
        single.detach()
    resumed, whole = (load_file(tmp_path / f"{m}-1.safetensors") for m in ("resumed", "merging"))
    assert same(resumed, whole)  # what was stopped at checkpoint-2 ends as what was not
    saved = sorted(p.name for p in (tmp_path / "merging").glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-3"]
    randoms = sorted(p.name for p in (tmp_path / "merging" / "checkpoint-2").glob("rng_state*"))
    assert randoms == ["rng_state_0.safetensors", "rng_state_1.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["die", "hang"])
def test_a_lost_process_is_an_error_on_the_others(tmp_path, mode: str) -> None:
    """Without a launcher that would end the others: they must notice by themselves."""
    known = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "LOCAL_WORLD_SIZE": 2}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), mode],
            env=environment(RANK=rank, LOCAL_RANK=rank, **known),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    began = time.monotonic()
    try:
        _, said = ranks[0].communicate(timeout=90)
    finally:
        for one in ranks:
            one.kill()
        ranks[1].communicate()
    assert ranks[0].returncode not in (0, None)
    assert "another process of this training has ended or did not answer" in said
    assert time.monotonic() - began < 90
