"""What a training sends to the Hub: the adapter's own files and its card, checkpoints where asked for.

What is sent is written (or copied) to a scratch folder first. An upload in the background so never meets a
file that is being written or a checkpoint that has been rotated away, and nothing else that lies in the
training's folder goes with it.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from arr_coc.adapters import hub

logger = logging.getLogger(__name__)


class Publishing:
    """Uploads of one training, one after another in a thread of their own.

    Args:
        trainer: whose repo, arguments and state are meant.
        write: puts its adapter into a folder; options are those of `save_pretrained`.
    """

    def __init__(self, trainer: Any, write: Callable[..., Any]) -> None:
        self.trainer, self.write = trainer, write
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arr_coc_push")

    def end(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save to the training's folder, and send the adapter as it stands.

        Args:
            token, revision: instead of `hub_token` and `hub_revision`.
            private: whether a repo that has to be made is.
            card: `metrics` and `picture`, as in `save_pretrained`.

        Returns:
            The commit, or a future of it where not `blocking`; None in further processes.
        """
        trainer = self.trainer
        trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
        if trainer.hub_model_id is None:
            trainer.init_hf_repo(token=token, private=private)
        trainer.save_model(_internal_call=True)
        if not trainer.is_world_process_zero():
            return None
        trainer._finish_current_push()
        options = self._options(commit_message) | ({} if token is None else {"token": token})
        options |= {} if revision is None else {"revision": revision}
        sent = self._send(partial(self.write, where=trainer.hub_model_id, **card), options)
        return sent.result() if blocking else sent

    def save(self, checkpoint: Path) -> None:
        """Send what was saved just now, as `hub_strategy` says, unless the last push is still on its way."""
        if not self.trainer.is_world_process_zero():
            return
        args, before = self.trainer.args, self.trainer.push_in_progress
        under_way = before is not None and not before.is_done()
        if args.hub_strategy == HubStrategy.END or (under_way and not args.hub_always_push):
            return
        self.trainer.callback_handler.on_push_begin(args, self.trainer.state, self.trainer.control)
        said = f"Training in progress, step {self.trainer.state.global_step}"
        write = partial(self.write, where=self.trainer.hub_model_id)
        jobs = [self._send(write, self._options(said))]
        inside = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        if args.hub_strategy in inside:
            options = self._options(f"{said}, checkpoint") | {"subfolder": inside[args.hub_strategy]}
            jobs.append(self._send(partial(shutil.copytree, checkpoint), options))
        for job in jobs:
            job.add_done_callback(_told)
        self.trainer.push_in_progress = PushInProgress()
        self.trainer.push_in_progress.jobs = [*(before.jobs if under_way else []), *jobs]

    def _options(self, message: str | None) -> dict[str, Any]:
        args = self.trainer.args
        return {"commit_message": message, "token": args.hub_token, "revision": args.hub_revision}

    def _send(self, write: Callable[[Path], Any], options: dict[str, Any]) -> Future[Any]:
        scratch = tempfile.TemporaryDirectory(prefix="arr_coc_push.")
        new = Path(scratch.name) / "new"
        try:
            write(new)
        except BaseException:
            scratch.cleanup()
            raise

        def upload() -> Any:
            with scratch:
                return hub.push(partial(shutil.move, new), self.trainer.hub_model_id, **options)

        return self._thread.submit(upload)


def _told(job: Future[Any]) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning("a push to the Hub failed, and the training goes on without it: %s", job.exception())
