"""Valid contents of `.grad` at a step: this optimizer's displacements, complete and once."""

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from sibp import SIBP, ProxBP

F64 = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6, dtype=F64), nn.ReLU(), nn.Linear(6, 3, dtype=F64))


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return F.cross_entropy(model(torch.randn(7, 5, generator=generator, dtype=F64)), torch.arange(7) % 3)


def by_hand(model, optimizer):
    del optimizer
    for p in model.parameters():
        p.grad = torch.ones_like(p)


def in_a_pause(model, optimizer):
    with optimizer.paused():
        loss_of(model).backward()


def after_a_pause(model, optimizer):
    in_a_pause(model, optimizer)
    loss_of(model).backward()


def before_a_pause(model, optimizer):
    loss_of(model).backward()
    in_a_pause(model, optimizer)


def without_zero_grad(model, optimizer):
    loss_of(model).backward()
    optimizer.step()
    loss_of(model).backward()


def replaced(model, optimizer):
    loss_of(model).backward()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    del optimizer


FOREIGN = {
    by_hand: "assigned by hand",
    in_a_pause: "comes from a backward pass inside paused",
    after_a_pause: "comes from a backward pass inside paused",
    before_a_pause: "comes from a backward pass inside paused",
    without_zero_grad: "still holds the displacement of the last step",
    replaced: "assigned by hand",
}


@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize("fill", FOREIGN, ids=lambda fill: fill.__name__)
def test_gradients_that_are_no_displacement_are_refused_by_name(method, fill):
    model = net()
    optimizer = method(model)
    fill(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        RuntimeError, match=rf"layer '0': weight.grad contains something other than displacements .* {FOREIGN[fill]}"
    ):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def test_a_gradient_by_hand_at_the_address_of_a_discarded_displacement_is_refused():
    """`model.zero_grad()` frees the displacement without the optimizer's knowledge, and its memory can be reused."""
    model = nn.Linear(50, 400, dtype=F64)
    optimizer = SIBP(model)
    model(torch.ones(3, 50, dtype=F64)).square().sum().backward()
    kept = {p: p.grad.untyped_storage() for p in model.parameters() if p.grad is not None}
    model.zero_grad()
    for p, memory in kept.items():
        p.grad = torch.empty(0, dtype=F64).set_(memory, 0, p.shape).fill_(1.0)
        assert p.grad.data_ptr() == memory.data_ptr()
    with pytest.raises(RuntimeError, match="assigned by hand"):
        optimizer.step()


@pytest.mark.parametrize("first", ["hook", "optimizer"])
def test_a_penalty_is_refused_although_the_user_has_hooks_on_the_weight(first: str):
    """As tools that draw histograms register them."""
    model, seen = net(), []
    if first == "hook":
        model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    optimizer = SIBP(model)
    if first == "optimizer":
        model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    loss_of(model).backward()
    assert torch.equal(seen[0], model[0].weight.grad)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="layer '0': its weight is also used outside"):
        (loss_of(model) + model[0].weight.square().sum()).backward()


@pytest.mark.parametrize("first", ["hook", "optimizer"])
def test_a_users_hook_may_change_the_displacement(first: str):
    model, twin = net(), net()
    wanted = SIBP(twin, 1.0, 10.0)
    loss_of(twin).backward()
    if first == "hook":
        model[0].weight.register_hook(lambda gradient: 0.5 * gradient)
    optimizer = SIBP(model, 1.0, 10.0)
    if first == "optimizer":
        model[0].weight.register_hook(lambda gradient: 0.5 * gradient)
    loss_of(model).backward()
    optimizer.step()
    wanted.step()
    start = net()[0].weight
    torch.testing.assert_close(model[0].weight - start, 0.5 * (twin[0].weight - start), rtol=1e-12, atol=1e-15)


def test_gradients_older_than_the_optimizer_are_refused():
    model = net()
    loss_of(model).backward()
    optimizer = SIBP(model)
    with pytest.raises(
        RuntimeError,
        match=r"layer '0': weight.grad contains something other than displacements .* before the first backward pass",
    ):
        optimizer.step()
    loss_of(model).backward()  # accumulating a displacement does not make the sum valid
    with pytest.raises(RuntimeError, match="before the first backward pass"):
        optimizer.step()


def test_a_functional_call_with_other_tensors_leaves_the_layers_alone():
    model = net()
    optimizer = SIBP(model)
    copies = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss_of(lambda x: functional_call(model, copies, x)).backward()
    assert all(p.grad is None for p in model.parameters())
    derived = {name: 2 * p for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="also used outside the layer's own forward pass"):
        loss_of(lambda x: functional_call(model, derived, x)).backward()
    assert optimizer.param_groups


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("of_model", [True, False])
def test_zeroed_gradients_count_as_none(to_none: bool, of_model: bool):
    model, plain = net(), net()
    optimizer, reference = SIBP(model), SIBP(plain)
    in_a_pause(model, optimizer)
    for _ in range(3):
        (model if of_model else optimizer).zero_grad(set_to_none=to_none)
        loss_of(model).backward()
        optimizer.step()
        reference.zero_grad()
        loss_of(plain).backward()
        reference.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3),
        lambda m: nn.utils.clip_grad_value_(m.parameters(), 1e-4),
        lambda m: [p.grad.mul_(0.5) for p in m.parameters()],
    ],
    ids=["by norm", "by value", "scaled"],
)
def test_clipping_clips_the_displacement(change):
    model = net()
    optimizer = SIBP(model)
    loss_of(model).backward()
    change(model)
    expected = [(p - p.grad).detach() for p in model.parameters()]  # pyright: ignore[reportOperatorIssue]
    optimizer.step()
    for p, w in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p, w)


@pytest.mark.parametrize("unscale", [True, False])
def test_a_scaled_loss_is_refused(unscale: bool):
    model = net()
    optimizer, scaler = SIBP(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model)).backward()
    if unscale:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="SIBP cannot undo the scale of a GradScaler"):
        scaler.step(optimizer)
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()  # a step without the scaler is unaffected


@pytest.mark.parametrize("enabled", [True, False])
def test_an_enabled_scaler_around_the_outer_optimizer_is_refused(enabled: bool):
    model, other = net(), net()
    direction, outer = SIBP(model, direction_only=True), torch.optim.SGD(model.parameters(), 1.0)
    torch.optim.lr_scheduler.StepLR(outer, 1)  # wraps the step
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=enabled)
    scaler.scale(loss_of(model)).backward()
    if not enabled:
        before, found = model[0].weight.detach().clone(), model[0].weight.grad
        scaler.step(outer)
        assert torch.equal(model[0].weight, before - found)  # pyright: ignore[reportOperatorIssue]
        return
    with pytest.raises(RuntimeError, match="SGD steps along displacements of SIBP, whose scale a GradScaler cannot"):
        scaler.step(outer)
    del direction  # the model's layers keep it alive
    elsewhere = torch.optim.SGD(other.parameters(), 1.0)
    scaler.scale(loss_of(other)).backward()
    scaler.step(elsewhere)  # an unrelated model is unaffected


def test_frameworks_may_clip():
    """Lightning refuses `gradient_clip_val` in bf16-mixed where this is True; a GradScaler is refused all the same."""
    assert not getattr(SIBP(net()), "_step_supports_amp_scaling", False)


def test_a_disabled_scaler_is_accepted():
    model, plain = net(), net()
    optimizer, reference = SIBP(model), SIBP(plain)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)
    scaler.update()
    loss_of(plain).backward()
    reference.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_layer_unfrozen_later_is_guarded_and_trained():
    model = net()
    model[0].requires_grad_(False)
    optimizer = SIBP(model)
    model[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="layer '0': its weight is also used outside"):
        (loss_of(model) + model[0].weight.square().sum()).backward()
    optimizer.zero_grad()
    before = model[0].weight.detach().clone()
    loss_of(model).backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_replaced_parameters_and_forwards_are_named():
    model = net()
    optimizer = SIBP(model)
    model.load_state_dict(net().state_dict(), assign=True)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match=r"layer '0': its weight was replaced after the optimizer was made"):
        optimizer.step()
    assert next(row for row in optimizer.summary().splitlines() if row.startswith("0 ")).endswith("replaced since")
    wrapped = net()
    optimizer = SIBP(wrapped)
    own = wrapped[2].forward
    wrapped[2].forward = lambda x: 2 * own(x)
    loss_of(wrapped).backward()
    with pytest.raises(RuntimeError, match=r"layer '2': its forward was replaced after the optimizer was made"):
        optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.utils.prune.l1_unstructured(m[0], "weight", 0.5),
        lambda m: nn.utils.parametrizations.spectral_norm(m[0]),
        lambda m: nn.utils.parametrize.register_parametrization(m[0], "weight", nn.Tanh()),
    ],
    ids=["pruned", "spectral norm", "parametrized"],
)
def test_layers_parametrized_afterwards_are_named(change):
    model = net()
    optimizer = SIBP(model)
    change(model)

    def train() -> None:
        loss_of(model).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"layer '0': its weight was replaced after the optimizer was made"):
        train()


def bias_as_buffer(model: nn.Sequential) -> None:
    bias = model[0].get_parameter("bias").detach()
    del model[0].bias
    model[0].register_buffer("bias", bias)


BIAS_CHANGES = [
    lambda m: nn.utils.prune.random_unstructured(m[0], "bias", 1),
    lambda m: nn.utils.parametrize.register_parametrization(m[0], "bias", nn.Tanh()),
    bias_as_buffer,
]


@pytest.mark.parametrize("change", BIAS_CHANGES, ids=["pruned", "parametrized", "buffer"])
def test_a_layer_whose_bias_is_no_parameter_keeps_it_and_is_explicit(change):
    plain, model = net(), net()
    for each in (plain, model):
        torch.manual_seed(1)  # of the pruning
        change(each)
    optimizer = SIBP(model, fallback=lambda params: torch.optim.SGD(params, lr=0.1))
    loss_of(model).backward()
    loss_of(plain).backward()
    assert optimizer.solver_stats().keys() == {"2"}
    torch.testing.assert_close(model[0](torch.ones(2, 5, dtype=F64)), plain[0](torch.ones(2, 5, dtype=F64)))
    optimizer.step()
    assert not torch.equal(model[0].get_parameter("weight"), plain[0].get_parameter("weight"))


@pytest.mark.parametrize("change", BIAS_CHANGES, ids=["pruned", "parametrized", "buffer"])
def test_a_bias_outside_the_optimizer_that_is_replaced_later_is_named(change):
    model = net()
    optimizer = SIBP(model, params=[model[0].weight])
    change(model)
    x = torch.ones(2, 5, dtype=F64)
    torch.testing.assert_close(model[0](x), F.linear(x, model[0].weight, model[0].bias))

    def train() -> None:
        loss_of(model).backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"layer '0': its bias was replaced after the optimizer was made"):
        train()
    assert "replaced since" in optimizer.summary()


def test_a_layer_that_replaces_a_tapped_one_is_not_listed_as_proximal():
    model = net()
    optimizer = SIBP(model)
    model[2] = nn.Linear(6, 3, dtype=F64)
    rows = {row.split()[0]: row for row in optimizer.summary().splitlines()[1:]}
    assert rows["2"].endswith("replaced since")
    assert rows["0"].endswith("proximal")


# -- unsupported inputs and transforms


def forward_mode(model: nn.Module) -> None:
    with forward_ad.dual_level():
        model(forward_ad.make_dual(torch.ones(2, 5, dtype=F64), torch.ones(2, 5, dtype=F64)))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: m(torch.ones(2, 5, dtype=F64).to_sparse()), "layer '0': SIBP takes dense inputs only, not sparse"),
        (
            lambda m: m(torch.nested.nested_tensor([torch.ones(2, 5), torch.ones(3, 5)], dtype=F64)),
            "layer '0': SIBP takes dense inputs only, not nested",
        ),
        (
            lambda m: torch.func.vmap(m)(torch.ones(2, 5, dtype=F64)),
            "layer '0' is tapped by SIBP, whose backward pass torch.func cannot transform",
        ),
        (
            lambda m: torch.func.jvp(m, (torch.ones(2, 5, dtype=F64),), (torch.ones(2, 5, dtype=F64),)),
            "layer '0' is tapped by SIBP, whose backward pass torch.func cannot transform",
        ),
        (torch.jit.script, "layer '0' is tapped by SIBP, which TorchScript cannot compile"),
        (lambda m: torch.jit.trace(m, torch.ones(2, 5, dtype=F64)), "layer '0' is tapped by SIBP, and a trace with"),
        (lambda m: forward_mode(m), "layer '0' is tapped and has no forward-mode derivative"),
    ],
    ids=["sparse", "nested", "vmap", "jvp", "script", "trace", "forward mode"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch's own uses it in jvp
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_unsupported_uses_are_refused_with_the_layers_name(use, message: str):
    model = net()
    optimizer = SIBP(model)
    with pytest.raises(RuntimeError, match=message):
        use(model)
    loss_of(model).backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_models_can_be_traced_without_gradients_and_scripted_afterwards():
    model, x = net(), torch.ones(2, 5, dtype=F64)
    optimizer = SIBP(model)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, x)(x), model(x))
    optimizer.remove()
    assert torch.equal(torch.jit.script(model)(x), model(x))


def test_a_replica_of_data_parallel_is_refused():
    model = net()
    optimizer = SIBP(model)
    replica = model[0]._replicate_for_data_parallel()
    replica.weight, replica.bias = model[0].weight, model[0].bias
    with pytest.raises(RuntimeError, match=r"layer '0' runs as a copy \(nn.DataParallel"):
        replica(torch.ones(2, 5, dtype=F64))
    assert optimizer.param_groups
