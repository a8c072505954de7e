"""Routers in training: their balance loss, the noise that falls, and the start of a mixture, which is not kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from reparam.ops.routing import Router
from reparam.recipe.data_settings import DataSettings
from reparam.train.data import Loaders
from reparam.train.loop import Trainer
from tests.train.loops import CPU, PLAIN, Notes, Routed, trainer


def test_the_start_of_a_mixture_is_not_kept_though_it_is_better(data: DataSettings) -> None:
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
    model = Routed()
    right = model(images).argmax(dim=1)
    loaders = Loaders(train=[(images, labels)], val=[(images, right)])
    settings = replace(PLAIN, opt="momentum", lr=1.0, epochs=2)
    saved: list[bool] = []
    run = Trainer(
        model, loaders, settings=settings, num_classes=3, device=CPU, save=lambda _, *, is_best: saved.append(is_best)
    )
    fit = run.fit()
    assert fit.before.top1 == 100 > fit.epochs[0].evaluation.top1
    assert fit.best_epoch == 1
    assert fit.best == fit.epochs[0].evaluation
    assert saved[:2] == [True, True]


def test_routers_are_trained_by_the_balance_loss_and_their_shares_told_per_layer(data: DataSettings) -> None:
    model, notes = Routed(), Notes()
    start = model.router.weight.detach().clone()
    trainer(model, data, replace(PLAIN, task_loss_weight=0.0, weight_decay=0.0), progress=notes).fit()
    assert not torch.equal(model.router.weight, start)
    report = notes.epochs[0]
    assert report.balance_loss is not None
    assert report.train_loss == pytest.approx(0.01 * report.balance_loss)
    assert list(report.mult_share) == list(report.evaluation.mult_share) == ["router"]
    assert not model.router._forward_hooks


def test_the_noise_of_routers_falls_with_the_share_of_updates_made(data: DataSettings) -> None:
    model, seen = Routed(), []
    model.router.register_forward_pre_hook(lambda router, _: seen.append(router.sigma) if router.training else None)
    run = trainer(model, data, replace(PLAIN, grad_accum_steps=2))
    run.fit()
    total, router = run.updates, Router(64)
    for update in range(total):
        router.set_noise_(update / total)
        assert seen[2 * update : 2 * update + 2] == [router.sigma] * 2
    assert (total, len(seen)) == (6, 12)


def test_without_routers_there_is_no_balance_loss(
    make_vit: Callable[..., VisionTransformer], data: DataSettings
) -> None:
    fit = trainer(make_vit(), data).fit()
    assert fit.epochs[0].balance_loss is None
    assert fit.epochs[0].mean_mult_share is None
