"""Surprise token by token: F of the drives that relevance would give if it were all around one visual token.

x_ln = mean of f_lm over the tokens m around n,  z_ln = f(W_l z_{l-1,n} + x_ln + b_l)
F_n = F(z_n) as for a whole sample
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d

from arr_coc.answer import Answer
from arr_coc.learner import Learner


def token_surprise(
    learner: Learner, answer: Answer, grid: tuple[int, int] | None = None, around: int = 2
) -> Tensor:
    """F_n, (B, N), of an answer's tokens, in nats per unit as `Answer.surprise` is. Changes nothing.

    Args:
        grid: rows and columns that the tokens stand in; None: each token by itself.
        around: how far away on the grid tokens still count as around it: what modules learn from are drives,
            means over many tokens, and a single one is noisier than those.
    """
    features = answer.features  # (B, N, L * width)
    batch, count, wide = features.shape
    if grid is not None and around:
        image = features.mT.reshape(batch, wide, *grid)
        pooled = avg_pool2d(image, 2 * around + 1, 1, around, count_include_pad=False)
        features = pooled.flatten(2).mT
    if learner.answers is not None:
        return learner.answers.surprise(features[..., -learner.ladder.width :])
    context = answer.context.repeat_interleave(count, 0)
    ladder, blank = learner.ladder, None
    if ladder.state_width:  # a state (a generative model's) enters phi alone: it says nothing of any token
        matrix = ladder.project_state
        blank = features.new_zeros(
            batch * count, matrix.shape[1] if isinstance(matrix, Tensor) else ladder.state_width
        )
    climb = ladder.climb(features.flatten(0, 1), context, blank)
    climb = learner.rule.infer(ladder, climb)
    return learner.errors.surprise(learner.errors.errors(climb.states, context)).reshape(batch, count)
