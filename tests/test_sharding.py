"""Which backbones are refused because they are split in a way that would learn something else, or hang."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import tiny
from arr_coc import attach
from arr_coc.adapters import base
from arr_coc.adapters.structure import stacks
from arr_coc.training import sharding
from arr_coc.training.trainer import ArrCocTrainer
from training_data import SMALL, arguments, dual_collate, generative_collate, pictures


@pytest.fixture
def group(tmp_path):
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def wrapped(model: nn.Module, mesh) -> None:
    for _, blocks in stacks(model):
        blocks[0] = FullyShardedDataParallel(blocks[0], device_id=torch.device("cpu"), use_orig_params=True)


def whole(model: nn.Module, mesh) -> None:
    fully_shard(model, mesh=mesh)


def tensors(model: nn.Module, mesh) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    parallelize_module(model.model.vision_tower.encoder.layers[0].mlp, mesh, {"fc1": ColwiseParallel()})


@pytest.mark.parametrize(
    ("how", "words"), [(wrapped, "FSDP1"), (whole, "split as a whole"), (tensors, "tensor parallelism")]
)
def test_a_backbone_that_is_split_otherwise_is_refused(group, tmp_path, how, words: str) -> None:
    model = tiny.generative()  # CLIP's scale is a scalar, which FSDP2 itself refuses to split
    how(model, group)
    before = [len(m._forward_hooks) for m in model.modules()]
    with pytest.raises(ValueError, match=rf"{words}.*sharding\.shard"):
        ArrCocTrainer(model, arguments(tmp_path), generative_collate, pictures(4), adapter=SMALL)
    assert [len(m._forward_hooks) for m in model.modules()] == before


def test_split_weights_are_sampled_as_whole_ones_and_remembered(group) -> None:
    model, bare = tiny.dual(), tiny.dual()
    for _, blocks in stacks(model):
        for block in blocks:
            fully_shard(block, mesh=group, reshard_after_forward=True)
    assert sharding.split(model)
    sharding.check(model)
    expected = base.sample(bare)
    assert base.sample(model).keys() == expected.keys()
    assert all(torch.equal(base.sample(model)[name], expected[name]) for name in expected)
    base.remember(model)
    with torch.no_grad():
        model.visual_projection.weight.zero_()
    assert all(torch.equal(base.sample(model)[name], expected[name]) for name in expected)
    with pytest.raises(RuntimeError, match="there is one process"):
        sharding.shard(tiny.dual())


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_what_accelerate_would_wrap_whole_is_refused_before_anything_is_attached(
    tmp_path, monkeypatch, name: str
) -> None:
    model, args = tiny.dual(), arguments(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=rf"{name} would wrap the whole model"):
        ArrCocTrainer(model, args, dual_collate, pictures(4), adapter=SMALL)
    attach(model, SMALL).detach()


def test_stacks_are_the_outermost_lists_of_blocks() -> None:
    found = [path for path, _ in stacks(tiny.generative())]
    assert found == ["model.vision_tower.encoder.layers", "model.language_model.layers"]
