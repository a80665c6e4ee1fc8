"""Scenarios of two processes that share a run, as torchrun would start them; run as a script by test_distributed.py.

It imports everything once and forks, so that a process costs little. Each scenario leaves FOLDER/scenario-RANK.json.
"""

import json
import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import lightning_fabric
import timm  # noqa: F401 - before the fork
import torch
import torch.utils.tensorboard
from torch import nn

from crosspair.data.batching import Batch, BatchSource, Reading
from crosspair.data.dataset import open_data
from crosspair.data.plans import plan_epoch
from crosspair.data.splits import run_splits
from crosspair.encode.split import embed_split  # noqa: F401
from crosspair.errors import UserError
from crosspair.registry import register_loss
from crosspair.training import loop
from crosspair.training.distributed import Processes, launch, synchronise_batch_norm
from crosspair.training.interruption import Interrupted
from crosspair.training.loop import train
from crosspair.training.losses import MatchingLosses
from crosspair.training.optimizer import StageOptimizer
from crosspair.training.recipe import StageConfig
from crosspair.training.recipe_files import load_recipe
from crosspair.training.step import TrainingStep
from crosspair.training.trainer import build_trainer


@register_loss("own-function")
def own_function(image_embeddings, text_embeddings, image_labels, text_labels, *, power: float = 3.0):
    """Hardest pairs of the whole batch: wrong where a process sees its own part alone."""
    cosines = image_embeddings @ text_embeddings.T
    wrong = cosines.masked_fill(image_labels[:, None] == text_labels, -torch.inf)
    return wrong.amax(1).tanh().add(1).pow(power).mean()


@register_loss("own-module")
class OwnModule(nn.Module):
    def __init__(self, num_classes: int, embedding_dim: int):
        super().__init__()
        self.proxies = nn.Parameter(torch.linspace(-1, 1, num_classes * embedding_dim).view(num_classes, -1))

    def forward(self, image_embeddings, text_embeddings, image_labels, text_labels):
        logits = image_embeddings @ self.proxies.T
        return nn.functional.cross_entropy(logits, image_labels) + (text_embeddings.mean(0) @ self.proxies.T).logsumexp(
            0
        )


EVERY_LOSS = {"cmpm": {"weight": 1.0, "scale": 20.0}, "cmpc": 0.7, "infonce": 0.5, "sdm": 0.3, "triplet": 0.2}
EVERY_LOSS |= {"siglip": 0.1, "own-function": 0.4, "own-module": 0.6}
PLAIN_CMPM = {"cmpm": {"weight": 1.0, "ratio_epsilon": 1e-8}}
data, folder = open_data(Path(sys.argv[1])), Path(sys.argv[2])
recipe = load_recipe(sys.argv[3])
calm = replace(
    recipe,
    model=replace(
        recipe.model,
        image=replace(recipe.model.image, feature_dropout=0.0),
        text=replace(recipe.model.text, dropout=0.0),
    ),
)


def alone() -> Processes:
    return Processes(lightning_fabric.Fabric(accelerator="cpu", devices=1))


def gradients(processes, losses, images, texts, image_labels, text_labels, image_rows):
    """Loss, and its gradients with respect to the embeddings and what the losses learn, averaged as training does."""
    images, texts = images.clone().requires_grad_(), texts.clone().requires_grad_()
    losses.zero_grad()
    words = torch.ones(len(texts), 1, dtype=torch.int64)
    batch = Batch(words, words[:, 0], image_labels, text_labels, image_rows)
    total, terms = losses(images, texts, batch, processes.gather(images, texts, batch))
    (total * processes.size).backward()
    processes.average_gradients(losses.parameters())
    learned = {name: value.grad.clone() for name, value in losses.named_parameters()}
    seen = processes.sum({"loss": total, **terms})
    return seen, images.grad / processes.size, texts.grad / processes.size, learned


def difference(found, expected) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1))


def losses_of(rank, shards, heads=1, config=EVERY_LOSS):
    """The losses of a batch whose pictures and captions are shared as `shards` says: (pictures, captions) of each."""
    torch.manual_seed(0)
    losses = MatchingLosses(config, 7, 16, heads).double()
    num_images, captions = (sum(column) for column in zip(*shards, strict=True))
    images, texts = torch.randn(num_images, 16).double(), torch.randn(captions, 16).double()
    rows = []
    for n, m in shards:
        first = sum(part[0] for part in shards[: len(rows)])
        rows.append(first + torch.arange(m) % n)
    image_rows = torch.cat(rows)
    labels = torch.arange(num_images) % 5  # pictures of one label in both processes
    own_images = slice(sum(part[0] for part in shards[:rank]), sum(part[0] for part in shards[: rank + 1]))
    own_texts = slice(sum(part[1] for part in shards[:rank]), sum(part[1] for part in shards[: rank + 1]))
    whole = gradients(alone(), losses, images, texts, labels, labels[image_rows], image_rows)
    share = gradients(
        Processes(launch_two().fabric),
        losses,
        images[own_images],
        texts[own_texts],
        labels[own_images],
        labels[image_rows][own_texts],
        image_rows[own_texts] - own_images.start,
    )
    return {
        **{name: difference(share[0][name], value) for name, value in whole[0].items()},
        "image gradient": difference(share[1], whole[1][own_images]),
        "text gradient": difference(share[2], whole[2][own_texts]),
        **{f"{name} gradient": difference(share[3][name], value) for name, value in whole[3].items()},
    }


def launch_two() -> Processes:
    return launch(replace(recipe, devices=2))


def a_step(rank, mini_batch_size=0):
    """One training step of the whole model on a shared batch: 7 pictures, so 3 and 4, with 1 to 3 captions.

    mini_batch_size: of the two processes; then the image encoder's batch norm is fixed, as it would see fewer pictures.
    """

    def train_on(processes, shard) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        with loop.quiet_libraries():
            settings = replace(calm, loss=EVERY_LOSS, precision="64-true")
            trainer = build_trainer(
                settings, run_splits(data, ["train"], validate=True), folder, alone(), show=False, with_weights=False
            )
        model, losses = trainer.model, trainer.losses
        if processes.size > 1:
            synchronise_batch_norm(model)
        stage = StageConfig(1, batch_size=7, captions_per_image=0, learning_rate=1e-3)
        model.unfreeze_image_encoder(freeze_bn_stats=mini_batch_size > 0)
        optimizer = StageOptimizer(model, losses, calm.optimizer, stage, 1)
        step = TrainingStep(processes, processes.fabric.setup_module(model), losses, optimizer, None)
        step.mini_batch_size = mini_batch_size if processes.size > 1 else 0
        source = BatchSource(data.split("train"), Reading(model.tokenize, model.image_input))
        how = {"captions_per_image": 0, "covers": "images", "hflip": True, "seed": (1,)}
        plan = plan_epoch(source.caption_counts, batch_size=7, **how)[0]
        model.train()
        seen = step(source[shard(plan)], 0, observe=True)
        parameters = [*model.named_parameters(), *losses.named_parameters(prefix="losses")]
        buffers = {name: value for name, value in model.named_buffers() if "running" in name}
        return {**seen, **{name: value.grad for name, value in parameters}, **buffers}

    whole = train_on(alone(), lambda plan: plan)
    share = train_on(launch_two(), lambda plan: plan.shard(rank, 2))
    assert share.keys() == whole.keys()
    return {name: difference(share[name], value) for name, value in whole.items() if value is not None}


def a_run(rank, name, **changes):
    train(replace(recipe, **changes), data, folder / name, progress=False)


def few_images(rank, name):
    a_run(rank, name, stage1=replace(recipe.stage1, batch_size=3))


def stopped(rank, name, number, by):
    """A signal comes to one process in the middle of a step, then the run is resumed."""
    steps = []
    call = TrainingStep.__call__

    def interrupting(self, *arguments, **options):
        steps.append(None)
        if len(steps) == number and rank == by:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, *arguments, **options)

    TrainingStep.__call__ = interrupting
    try:
        train(recipe, data, folder / name, progress=False)
    except Interrupted as error:
        return {"error": str(error), "checkpoint": max((folder / name / "checkpoints").glob("step-*")).name}


def resumed(rank, name):
    train(recipe, data, folder / name, resume=True, progress=False)


def full_disk(rank, name):
    def full(directory, checkpoint):
        raise UserError("the disk is full")

    loop.save_checkpoint = full
    a_run(rank, name)


SCENARIOS = {
    "even": (losses_of, [(6, 9), (6, 9)]),
    "uneven": (losses_of, [(5, 11), (7, 7)]),
    "heads": (losses_of, [(5, 11), (7, 7)], 2),
    "cmpm": (losses_of, [(5, 11), (7, 7)], 1, PLAIN_CMPM),
    "step": (a_step,),
    "parts": (a_step, 2),
    "plain": (a_run, "plain"),
    "stopped": (stopped, "stopped", 2, 1),
    "resumed": (resumed, "stopped"),
    "again": (resumed, "stopped"),
    "few": (few_images, "few"),
    "full": (full_disk, "full"),
}


def start(rank, name, port) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {
        **{"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    try:
        act, *arguments = SCENARIOS[name]
        result = act(rank, *arguments)
    except UserError as error:
        result = {"error": str(error)}
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    (folder / f"{name}-{rank}.json").write_text(json.dumps(result))
    os._exit(0)


def main() -> None:
    for name in SCENARIOS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [start(rank, name, port) for rank in range(2)]
        failed = [os.waitpid(child, 0)[1] for child in children]
        if any(failed):
            sys.exit(f"{name} failed")


if __name__ == "__main__":
    main()
