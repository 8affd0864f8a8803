"""Fine-tuning of a part of the backbone beside the local learning."""

import pytest
import torch

from training_data import BODIES, Crash, learned, logged, pictures, same, trainer


@pytest.mark.parametrize("body", BODIES)
def test_finetuning_is_the_local_update_and_an_ordinary_step(tmp_path, body: str) -> None:
    """Against stochastic gradient descent by hand on a copy of the bare model."""
    make, collate = BODIES[body]
    part = {"dual": "visual_projection", "generative": "multi_modal_projector.linear_2"}[body]
    sgd = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    one = trainer(tmp_path, body, finetune=part, train_sampling_strategy="sequential", **sgd)
    one.train()
    bare = make()
    tuned = {n: p for n, p in bare.named_parameters() if part in n}
    optimizer = torch.optim.SGD(tuned.values(), lr=0.05)
    for start in range(0, 30, 4):
        batch = collate(pictures(30)[start : start + 4])
        batch.pop("context_ids", None)
        labels = batch.pop("labels")
        out = bare(**batch) if body == "dual" else bare(**batch, labels=labels)
        loss = torch.nn.functional.cross_entropy(out.logits_per_image, labels) if body == "dual" else out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after, start = one.attached.model.state_dict(), make().state_dict()
    assert tuned
    for name, tensor in start.items():
        if name in tuned:
            torch.testing.assert_close(after[name], tuned[name].detach(), rtol=1e-4, atol=1e-6)
            assert not torch.equal(after[name], tensor)
        else:
            assert torch.equal(after[name], tensor)
    assert int(one.attached.learner.step) == 30 * (1 if body == "dual" else 2)
    assert logged(one, "learning_rate") == [0.05] * 4
    assert all(p.grad is None for p in one.attached.model.parameters())


def test_a_finetuned_part_and_its_optimizer_resume_exactly(tmp_path) -> None:
    changes = {
        "save_strategy": "steps",
        "save_steps": 3,
        "finetune": "visual_projection",
        "max_grad_norm": 1.0,
    }
    whole = trainer(tmp_path / "whole", **changes)
    whole.train()
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trainer(tmp_path / "cut", callbacks=[Crash(5)], **changes).train()
    resumed = trainer(tmp_path / "cut", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))
    assert same(whole.attached.model.state_dict(), resumed.attached.model.state_dict())
    suffixes = {p.suffix for p in (tmp_path / "cut").rglob("*") if p.is_file()}
    assert suffixes == {".json", ".safetensors", ".md"}
    other = trainer(tmp_path / "cut", **{**changes, "finetune": "text_projection"})
    with pytest.raises(ValueError, match="another part fine-tuned"):
        other.train(resume_from_checkpoint=True)
