"""The compatibility sweep: tiny models of the architectures, attached to; and that a broken promise shows."""

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from arr_coc.adapters import pretrained
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.eval import sweep
from arr_coc.eval.cli import app
from arr_coc.eval.tiny_models import LAYERS, architectures, shrink, tiny_config

DOZEN = [
    ("clip", "dual"),
    ("siglip2", "dual"),  # patches in a row, of any size
    ("blip-2", "dual"),  # queries, several embeddings a picture
    ("align", "dual"),  # convolutions
    ("vision-text-dual-encoder", "dual"),
    ("qwen2_5_vl", "generative"),  # flat patches with grids
    ("gemma3", "generative"),  # sliding attention
    ("glm5_next", "generative"),  # parallel residual streams
    ("git", "generative"),  # pictures in front of the words
    ("kosmos-2", "generative"),  # places said by a mask
    ("instructblip", "generative"),  # an inner language model generates
    ("mllama", "generative"),  # cross-attention in the decoder
    ("t5gemma2", "generative"),  # an encoder-decoder
    ("pix2struct", "generative"),  # no prompt at all
]
ALL = [pytest.param(*a, marks=[] if a in DOZEN else pytest.mark.slow) for a in architectures()]


@pytest.mark.parametrize(("kind", "task"), ALL)
def test_every_promise_holds_for_the_architecture(kind: str, task: str) -> None:
    if kind in sweep.OUTSIDE:
        pytest.skip(sweep.OUTSIDE[kind])
    record = sweep.one(kind, task)
    assert record.get("held"), record
    assert record.get("written", "yes") == "yes" or "the bare model cannot" in record["written"], record


def test_shrinking_keeps_equal_token_ids_equal_and_cuts_lists_by_layer() -> None:
    fields: dict[str, Any] = {
        "image_token_id": 151655,
        "pad_token_id": 0,
        "text_config": {
            "num_hidden_layers": 8,
            "hidden_size": 4096,
            "layer_types": ["sliding_attention"] * 7 + ["full_attention"],
            "image_token_id": 151655,
            "eos_token_id": 151645,
        },
    }
    small = shrink(fields)
    text = small["text_config"]
    assert small["image_token_id"] == text["image_token_id"] != text["eos_token_id"]
    assert small["pad_token_id"] == 0
    assert text["num_hidden_layers"] == LAYERS == len(text["layer_types"])
    assert text["layer_types"][-1] == "full_attention"
    assert fields["text_config"]["num_hidden_layers"] == 8  # what was given stays


def test_a_body_that_breaks_a_promise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def meddles(self, capture, learner, output, rows):
        output.logits = output.logits + 1e-6
        return output

    monkeypatch.setattr(GenerativeBody, "augment", meddles)
    record = sweep.one("llava", "generative")
    assert record["built"]
    assert not record["held"]
    assert "before learning" in record["why"]


@pytest.mark.parametrize("mixed", ["tokens", "context", "state", "grid", "nothing"])
@pytest.mark.parametrize("kind", ["clip", "llava", "t5gemma2"])
def test_samples_that_are_mixed_up_in_a_batch_are_caught(
    kind: str, mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attached outputs were compared with the bare model's alone, and learning as a whole: each sample might
    have had the other's."""
    if (kind, mixed) in (("clip", "state"), ("t5gemma2", "grid")):
        pytest.skip("it has none")
    task = "dual" if kind == "clip" else "generative"
    body = DualEncoderBody if task == "dual" else GenerativeBody
    honest = body.percept

    def flipped(self, *given):
        seen = honest(self, *given)
        if seen.batch == 1 or mixed == "nothing":
            return seen
        if mixed == "grid":  # neighbours share only where a sample is alone
            return replace(seen, grid=None)
        if mixed == "tokens":
            return replace(seen, tokens=tuple(t.flip(0) for t in seen.tokens), made=None)
        return replace(seen, **{mixed: getattr(seen, mixed).flip(0)})

    monkeypatch.setattr(body, "percept", flipped)
    record = sweep.one(kind, task)
    assert record["held"] == (mixed == "nothing"), record
    if record["held"]:
        assert record["alone"]["batch"] == "yes"
    else:
        assert "alone" in record["why"] or "learning" in record["why"], record["why"]


def test_the_command_prints_the_table_and_the_records(tmp_path) -> None:
    runner = CliRunner()
    path = tmp_path / "sweep.json"
    done = runner.invoke(app, ["inspect", "--sweep", "--only", "clip,git", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert "2 of 2 hold" in done.output
    assert sweep.verdict([{"architecture": "evolla", "held": False}]).startswith("0 of 1 hold")
    kept = json.loads(path.read_text())
    assert [r["architecture"] for r in kept["architectures"]] == ["clip", "git"]
    wrong = runner.invoke(app, ["inspect", "--sweep", "--only", "clop"])
    assert wrong.exit_code == 2
    assert runner.invoke(app, ["inspect"]).exit_code == 2
    nowhere = runner.invoke(
        app, ["inspect", "--sweep", "--only", "clip", "--json", str(tmp_path / "no" / "x")]
    )
    assert nowhere.exit_code == 2
    assert "hold" not in nowhere.output  # said before the work, not after it


def test_a_config_is_enough_to_say_what_would_be_read(tmp_path) -> None:
    tiny_config("qwen2_5_vl").save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "Qwen2_5_VLForConditionalGeneration (generative)" in done.output
    assert "model.language_model.layers.2" in done.output


def test_a_config_with_a_field_that_cannot_be_is_one_line(tmp_path) -> None:
    """It was a traceback of huggingface_hub's, whose error is no ValueError."""
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "clip", "vision_config": {"hidden_size": "a"}}')
    done = CliRunner().invoke(app, ["inspect", str(file)])
    assert done.exit_code == 2, done.output
    assert "hidden_size" in done.output
    with pytest.raises(ValueError, match="hidden_size"):
        pretrained.load(str(tmp_path))
