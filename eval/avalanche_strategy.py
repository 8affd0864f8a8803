"""arr-coc in Avalanche (`pip install avalanche-lib`): a strategy that learns by the plugin's own steps.

A benchmark's `x` are pixel values, (B, 3, H, W), and its `y` rows among the class texts, (B,). Each
minibatch is one `ArrCocModel.learn`: no criterion is descended, there is no optimizer, and task labels and
boundaries are not looked at. Everything else (plugins that only watch, metrics, loggers, online streams by
`split_online_stream`) is Avalanche's.
"""

from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters.attached import ArrCocModel

try:
    from avalanche.training.templates import SupervisedTemplate
except ModuleNotFoundError as error:
    if error.name != "avalanche":
        raise
    raise ModuleNotFoundError(
        "avalanche is not installed, and this strategy is for it: pip install avalanche-lib", name="avalanche"
    ) from None


class ArrCocStrategy(SupervisedTemplate):
    """`strategy.train(experience)`, `strategy.eval(stream)`.

    Args:
        model: an attached dual encoder.
        texts: the class texts as the model takes them, `input_ids` and `attention_mask`, (C, T); class y is
            said by row y.
        criterion: only for the loss that loggers show.
        further: of `SupervisedTemplate`: train_mb_size, eval_mb_size, device, plugins, evaluator, eval_every.

    Raises:
        ValueError: for more than one epoch: a sample is met once.
    """

    def __init__(
        self,
        *,
        model: ArrCocModel,
        texts: dict[str, Tensor],
        criterion: Any = torch.nn.functional.cross_entropy,
        **further: Any,
    ) -> None:
        if further.get("train_epochs", 1) != 1:
            raise ValueError(f"train_epochs={further['train_epochs']}: possible is 1, a sample is met once")
        super().__init__(model=model, optimizer=None, criterion=criterion, **further)
        self.texts = {name: tensor.to(self.device) for name, tensor in texts.items()}

    def forward(self) -> Tensor:
        """Scores of every class, (B, C)."""
        return self.model(pixel_values=self.mb_x, **self.texts).logits_per_image

    def training_epoch(self, **kwargs: Any) -> None:
        """One step a minibatch; what is shown of it is the answer from before the step."""
        self.model.eval()  # a frozen model stays as it answers: no dropout
        for minibatch in self.dataloader:
            if self._stop_training:
                break
            self.mbatch = minibatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._before_forward(**kwargs)
            with torch.no_grad():
                self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.criterion()
            self._before_update(**kwargs)
            self.model.learn(pixel_values=self.mb_x, labels=self.mb_y, **self.texts)
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)

    def make_optimizer(self, **kwargs: Any) -> None:
        """There is none."""
