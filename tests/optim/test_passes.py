"""A layer's backward call uses the batch size of its own forward pass."""

import copy
import gc
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sibp import SIBP, ProxBP
from sibp.capture.passes import ForwardPass

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6, dtype=F64), nn.Tanh(), nn.Linear(6, 3, dtype=F64))


def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 5, generator=generator, dtype=F64), torch.arange(rows) % 3


def displacements(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def expected(rows: int = 8) -> list[Tensor]:
    """The displacements of one undisturbed pass."""
    model = net()
    SIBP(model, lr=0.5, direction_only=True)
    x, y = batch(rows)
    F.cross_entropy(model(x), y).backward()
    return displacements(model)


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b) > 0
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


DISTURBANCES = {
    "a forward of the head alone": lambda m: m[2](torch.ones(7, 6, dtype=F64)),
    "a forward of the body alone": lambda m: m[:2](torch.ones(7, 5, dtype=F64)),
    "a forward of all": lambda m: m(torch.ones(3, 5, dtype=F64)),
    "a forward by name": lambda m: m.forward(torch.ones(3, 5, dtype=F64)),
    "a forward without gradients": lambda m: torch.no_grad()(m)(torch.ones(3, 5, dtype=F64)),
    "a forward that raises": lambda m: _raises(lambda: m(torch.ones(3, 4, dtype=F64))),
    "a forward that raises half way": lambda m: _raises(lambda: m[1:](torch.ones(3, 5, dtype=F64))),
}


def _raises(call) -> None:
    with pytest.raises(RuntimeError):
        call()


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("when", ["before", "between", "both"])
def test_other_forward_passes_do_not_affect_the_next_step(name: str, when: str):
    model = net()
    optimizer = SIBP(model, lr=0.5)
    x, y = batch()
    if when in ("before", "both"):
        DISTURBANCES[name](model)
    loss = F.cross_entropy(model(x), y)
    if when in ("between", "both"):
        DISTURBANCES[name](model)
    loss.backward()
    assert_same(displacements(model), expected())
    optimizer.step()


def test_a_model_called_in_parts_has_the_batch_size_of_its_first_layer():
    """The head sees eight times as many rows as there are samples; the loss averages over samples."""

    class Unfolded(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = net()[:2], nn.Linear(6, 3, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            rows = torch.stack([h, h + 1], 1).flatten(0, 1)
            return self.head(rows).unflatten(0, (-1, 2)).sum(1)

    x, y = batch()
    steps = []
    for call in (lambda m: m(x), lambda m: m.forward(x)):
        model = Unfolded()
        optimizer = SIBP(model, lr=0.5)
        F.cross_entropy(call(model), y).backward()
        steps.append(displacements(model))
        assert optimizer.solver_stats()
    assert_same(*steps)


class Flattening(nn.Module):
    """A block that flattens time into the batch, run again in the backward pass if it is checkpointed."""

    def __init__(self, reentrant: bool | None, what: str = "block"):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.out = (nn.Linear(5, n, dtype=F64) for n in (5, 5, 3))
        self.reentrant, self.what = reentrant, what

    def block(self, h: Tensor) -> Tensor:
        B, T, C = h.shape
        return torch.tanh(self.b(h.reshape(B * T, C))).reshape(B, T, C)

    def whole(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.a(x)).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.whole(x)
        if self.what == "the whole":
            return checkpoint(self.whole, x.requires_grad_(), use_reentrant=self.reentrant)
        if self.what == "each part":  # no layer runs with gradients before the backward pass
            h = x.requires_grad_()
            for part in (self.a, lambda h: self.block(h).mean(1), self.out):
                h = checkpoint(part, h, use_reentrant=self.reentrant)
            return h
        return self.out(checkpoint(self.block, self.a(x), use_reentrant=self.reentrant).mean(1))


@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize("what", ["block", "the whole", "each part"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_recomputed_in_its_own_pass(method, reentrant: bool, what: str):
    x, y = torch.randn(4, 6, 5, dtype=F64), torch.arange(4) % 3
    steps = []
    for model in (Flattening(None), Flattening(reentrant, what)):
        optimizer = method(model, lr=1.0, prox_weight=10.0)
        for part in (x[:1], x):  # a pass of another size before, whose graph is dropped
            loss = F.cross_entropy(model(part.clone()), y[: len(part)])
        loss.backward()
        steps.append(displacements(model))
        optimizer.step()
    assert_same(*steps)


def test_rollouts_in_grad_mode_do_not_count_as_batches():
    """As in reinforcement learning: many small forwards that stay in memory, then one update."""
    model = net()
    optimizer = SIBP(model, lr=0.5)
    rollout = [model(torch.randn(1, 5, dtype=F64)) for _ in range(10)]
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert_same(displacements(model), expected())
    optimizer.step()
    assert len(rollout) == 10


def test_two_losses_each_have_their_own_batch_size():
    """Both forwards come before the one backward; as in a siamese net or two tasks."""
    first, second = net(), net()
    ours, theirs = SIBP(first, lr=0.5), SIBP(second, lr=0.5)
    (x, y), (u, v) = batch(8), batch(3)
    for inputs, targets in ((x, y), (u, v)):
        F.cross_entropy(first(inputs), targets).backward()
    losses = [F.cross_entropy(second(inputs), targets) for inputs, targets in ((x, y), (u, v))]
    for loss in losses:
        loss.backward()
    assert_same(displacements(first), displacements(second))
    ours.step()
    theirs.step()


def test_nested_models_have_separate_passes():
    """The inner model, with an optimizer of its own, sees every second row."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.first, self.last = nn.Linear(5, 5, dtype=F64), nn.Linear(3, 3, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(inner(torch.tanh(self.first(x))[::2]))

    steps = []
    for average in (True, 8):
        inner, outer = net(), Outer()
        SIBP(inner, lr=0.5, loss_average=4 if average == 8 else True, direction_only=True)
        SIBP(outer, lr=0.5, loss_average=average, direction_only=True)
        x, y = batch(8)
        F.cross_entropy(outer(x), y[::2]).backward()
        steps.append(displacements(inner) + displacements(outer))
    assert_same(*steps)


def test_threads_have_separate_passes():
    models = [net() for _ in range(4)]
    optimizers = [SIBP(model, lr=0.5) for model in models]
    shared = net()
    guard = SIBP(shared, lr=0.5)
    failed: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(20):
                shared(batch(k + 2)[0])  # all threads run the same model, on batches of their own sizes
                optimizers[k].zero_grad()
                x, y = batch()
                F.cross_entropy(models[k](x), y).backward()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for model in models:
        assert_same(displacements(model), expected())
    x, y = batch()
    F.cross_entropy(shared(x), y).backward()
    assert_same(displacements(shared), expected())
    guard.step()


def test_concurrent_calls_of_a_model_have_separate_passes():
    """Both threads are inside the model's forward, and inside every layer, at once, with batches of different sizes."""
    inside = threading.Barrier(2)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.barrier = net(), threading.Barrier(2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layers[0](x)
            self.barrier.wait(10)
            return self.layers[2](torch.tanh(h))

    model = Meeting()
    optimizer = SIBP(model, lr=0.5)
    losses: dict[int, Tensor] = {}

    def saves(t: Tensor) -> Tensor:
        inside.wait(10)
        return t

    def call(rows: int) -> None:
        x, y = batch(rows)
        with torch.autograd.graph.saved_tensors_hooks(saves, lambda t: t):
            losses[rows] = F.cross_entropy(model(x), y)

    threads = [threading.Thread(target=call, args=(rows,)) for rows in (3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, loss in losses.items():
        optimizer.zero_grad()
        loss.backward()
        assert_same(displacements(model), expected(rows))
    assert len(losses) == 2


def test_a_forward_pass_without_backward_leaves_nothing_behind():
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is ForwardPass for thing in gc.get_objects())

    model = net()
    optimizer = SIBP(model, lr=0.5)
    before = alive()
    out = model(batch()[0])
    assert alive() == before + 1
    del out
    assert alive() == before
    with torch.no_grad():
        model(batch()[0])
    assert alive() == before
    assert optimizer.param_groups


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_ordinary_modules(how: str):
    model = net()
    optimizer = SIBP(model)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert all(type(layer) in (nn.Linear, nn.Tanh) for layer in twin)
    assert all("forward" not in vars(layer) for layer in (*twin, *model))
    x, y = batch()
    F.cross_entropy(twin(x), y).backward()
    plain = net()
    F.cross_entropy(plain(x), y).backward()
    assert_same(displacements(twin), displacements(plain))
    assert isinstance(model[0], nn.Linear)
    assert type(model[0]).__name__ == "Linear"
    assert optimizer.param_groups


# -- gradients that are not gradients


@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_inputs_only_are_ordinary_gradients(method, frozen: bool):
    """Adversarial examples, saliency, a generator's gradient through a discriminator: no step is wanted."""
    model, plain = net(), net()
    optimizer = method(model, lr=0.5)
    if frozen:
        model.requires_grad_(False)
    x, y = batch()
    gradients = [torch.autograd.grad(F.cross_entropy(m(x.requires_grad_()), y), x)[0] for m in (model, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    assert not optimizer.solver_stats()
    model.requires_grad_(True)
    optimizer.zero_grad()
    F.cross_entropy(model(x.detach()), y).backward()
    if method is SIBP:
        assert_same(displacements(model), expected())
    optimizer.step()


@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize("key", ["weight", "bias"])
def test_a_parameter_that_a_pass_does_not_ask_for_stays_in_the_subproblem_as_well(method, key: str):
    """The other is solved for alone, as if this one did not require a gradient."""
    x, y = batch()
    asked, frozen = net(), net()
    optimizers = [method(model, lr=0.5, solver="exact", direction_only=True) for model in (asked, frozen)]
    wanted = [p for name, p in asked.named_parameters() if not name.endswith(key)]
    F.cross_entropy(asked(x), y).backward(inputs=wanted)
    for name, p in frozen.named_parameters():
        p.requires_grad_(not name.endswith(key))
    F.cross_entropy(frozen(x), y).backward()
    assert_same(displacements(asked), displacements(frozen))
    del optimizers


def test_jacobians_of_inputs_are_those_of_the_plain_model():
    model, plain = net(), net()
    optimizer = SIBP(model)
    x = batch(2)[0]
    jacobians = [torch.autograd.functional.jacobian(m, x) for m in (model, plain)]
    torch.testing.assert_close(*jacobians, rtol=1e-12, atol=1e-15)
    assert not optimizer.solver_stats()


def test_second_derivatives_with_respect_to_weights_are_refused_by_layer_name():
    """A gradient penalty: its second gradient reaches the weights past the layers' backward calls."""
    model = net()
    optimizer = SIBP(model)
    x = batch()[0].requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"layer '\d': its weight is also used outside"):
        g.square().sum().backward()
    with optimizer.paused():
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        g.square().sum().backward()


# -- forward calls that raise


class Stopping(nn.Module):
    """An identity that raises while told to."""

    raises: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.raises is not None:
            raise self.raises
        return x


def stopped_net() -> tuple[nn.Sequential, Stopping]:
    stop = Stopping()
    return nn.Sequential(*net()[:2], nn.Sequential(net()[2], stop)), stop


def test_an_interrupted_call_ends_its_pass():
    model, stop = stopped_net()
    optimizer = SIBP(model, lr=0.5)
    stop.raises = KeyboardInterrupt  # for which torch calls no hook
    with pytest.raises(KeyboardInterrupt):
        model(batch(3)[0])
    stop.raises = None
    x, y = batch()
    F.cross_entropy(model(x), y).backward()  # the same call again
    assert_same(displacements(model), expected())
    stop.raises = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model(batch(3)[0])
    stop.raises = None
    optimizer.zero_grad()
    F.cross_entropy(model[2](model[:2](x)), y).backward()  # other calls, in a new step
    assert_same(displacements(model), expected())


def test_a_part_called_after_an_interrupted_one_begins_a_pass():
    """The head cannot contain the body, so its call is over."""
    model, stop = stopped_net()
    model = nn.ModuleDict({"body": model[:2], "head": model[2]})
    SIBP(model, lr=0.5, direction_only=True)
    stop.raises = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model["head"](model["body"](batch(3)[0]))
    stop.raises = None
    x, y = batch()
    F.cross_entropy(model["head"](model["body"](x)), y).backward()
    assert_same(displacements(model), expected())


def test_a_call_refused_by_a_hook_keeps_the_enclosing_pass_open():
    model, _ = stopped_net()
    optimizer = SIBP(model, lr=0.5)

    def refuse(*_) -> None:
        raise ValueError("not now")

    handle = model.register_forward_pre_hook(refuse, prepend=True)
    with pytest.raises(ValueError, match="not now"):
        model(batch(3)[0])
    handle.remove()
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert_same(displacements(model), expected())
    optimizer.step()


class WithTeacher(nn.Module):
    """Looks at other samples without gradients before it runs."""

    def __init__(self):
        super().__init__()
        self.student = net()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.student(x[:3])
        return self.student(x)


def test_calls_without_gradients_do_not_count_as_batches():
    model = WithTeacher()
    optimizer = SIBP(model, lr=0.5)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert_same(displacements(model), expected())
    optimizer.step()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("direct", [False, True])
def test_nested_checkpoints_solve_with_the_activation(depth: int, direct: bool):
    x, D = batch()[0], torch.linspace(-1, 1, 24, dtype=F64).reshape(8, 3)

    def backward(model, checkpointed: bool):
        def inner(h: Tensor) -> Tensor:
            return torch.relu(model[0](h))

        def outer(h: Tensor) -> Tensor:
            return model[2](checkpoint(inner, h, use_reentrant=True) if checkpointed and depth == 2 else inner(h))

        h = x.clone().requires_grad_()
        out = checkpoint(outer, h, use_reentrant=True) if checkpointed else outer(h)
        if direct:
            out.backward(D)
        else:
            (out * D).sum().backward()
        return displacements(model)

    plain, again = net(), net()
    optimizers = [SIBP(model, lr=0.5, solver="cg:3") for model in (plain, again)]
    assert_same(backward(again, True), backward(plain, False))
    assert all(optimizer.solver_stats() for optimizer in optimizers)


@pytest.mark.parametrize("additions", [20, 200])
def test_a_head_behind_many_residual_additions_continues_the_pass_of_its_body(additions: int):
    """Every addition doubles the ways to the body, and the head sees each sample twice."""
    torch.manual_seed(0)
    body, head = nn.Linear(5, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)
    model = nn.ModuleDict({"body": body, "head": head})
    SIBP(model, lr=0.5, solver="exact", direction_only=True)
    x, y = batch()

    def residuals(h: Tensor) -> Tensor:
        for _ in range(additions):
            h = 0.5 * (h + h.tanh())
        return torch.cat([h, h])

    F.cross_entropy(head(residuals(body(x))), torch.cat([y, y])).backward()
    in_parts = displacements(model)
    whole = nn.Sequential(body, nn.Module(), head)
    whole[1].forward = residuals
    model.zero_grad()
    SIBP(whole, lr=0.5, solver="exact", direction_only=True)
    F.cross_entropy(whole(x), torch.cat([y, y])).backward()
    assert_same(in_parts, displacements(whole))
